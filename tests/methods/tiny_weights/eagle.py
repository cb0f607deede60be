"""EAGLE heads, written here, not by the project: file and tensor names are the published ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.eagle_reference import PaperHead
from tests.reference import greedy, random_ids

LAYER = "layers.0."
RANKING = list(range(60, 200))


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function below."""
    published = {"fc_bias": True, "input_norm": False, "output_norm": False}
    return [
        {"weights": str(write()), "threshold": 0.0, "gamma": 3, "beam": 1},
        {"weights": str(write()), "threshold": 0.0, "gamma": 4, "beam": 3},
        {"weights": str(write()), "tree": "mc_sim_25"},
        {"weights": str(write()), "tree": "best", "gamma": 4, "beam": 4, "nodes": 11},
        {"weights": str(write(useful=False, changes=published)), "threshold": 0.1},
        {"weights": str(write(ranking=RANKING)), "threshold": 0.0, "draft_vocab": 140},
    ]


def write(
    folder: Path,
    model: Any,
    *,
    version: int = 1,
    useful: bool = True,
    ranking: list[int] | None = None,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
) -> None:
    """A head for transformers' `model`.

    `useful`: drafts are often right. Of version 1 on a `faint` model, as the head is the target's first layer; of
    version 3, as it is trained on the model's answers to a few prompts. `changes` go into config.json (a value of None:
    left out), `tensors` replace weights (None: left out), `ranking` lists token ids by falling frequency.
    """
    config = config_for(model, version) | (changes or {})
    weights = random_weights(config, model.config.vocab_size)
    if useful and version == 1:
        d = model.config.hidden_size
        own = {name: value.detach() for name, value in model.model.layers[0].named_parameters()}
        weights |= {f"{LAYER}{name}": value for name, value in own.items()}
        weights["fc.weight"] = torch.cat((torch.eye(d), 0.1 * weights["fc.weight"][:, d:]), dim=1)
        weights["norm.weight"] = model.model.norm.weight.detach()
    if useful and version == 3:
        weights |= _trained(model, json.dumps(config))
    if ranking is not None:
        weights["token_ranking"] = torch.tensor(ranking, dtype=torch.int32)
    kept = {name: value.clone() for name, value in (weights | (tensors or {})).items() if value is not None}
    save_file(kept, folder / "head.safetensors")
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def config_for(model: Any, version: int) -> dict[str, Any]:
    """The sizes of the model's own layers; norms as ours."""
    c = model.config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    config = {
        "hidden_size": c.hidden_size,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": head_dim,
        "intermediate_size": c.intermediate_size,
        "rms_norm_eps": c.rms_norm_eps,
        "qk_norm": c.model_type == "qwen3",
        "version": version,
    }
    return config | ({"taps": list(range(c.num_hidden_layers + 1))[1::2]} if version == 3 else {})


def random_weights(config: dict[str, Any], vocab: int) -> dict[str, Tensor]:
    """All tensors that the form has."""
    d, width, inner = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    taps, three = len(config.get("taps", ())), config["version"] == 3
    generator = torch.Generator().manual_seed(13)
    read = 2 * d if three else d
    shapes = {"fc": (d, taps * d if three else 2 * d), f"{LAYER}self_attn.o_proj": (d, heads * width)}
    rows = {"q": heads, "k": kv_heads, "v": kv_heads}
    shapes |= {f"{LAYER}self_attn.{name}_proj": (count * width, read) for name, count in rows.items()}
    shapes |= {f"{LAYER}mlp.gate_proj": (inner, d), f"{LAYER}mlp.up_proj": (inner, d)}
    shapes |= {f"{LAYER}mlp.down_proj": (d, inner)}
    if config.get("own_head"):
        shapes["lm_head"] = (config["own_head"], d)
    found = {
        f"{name}.weight": torch.randn(shape, generator=generator) * 1.5 / shape[1] ** 0.5
        for name, shape in shapes.items()
    }
    biased = ["fc"] if config.get("fc_bias") else []
    biased += [f"{LAYER}self_attn.{name}_proj" for name in "qkv"] if config.get("qkv_bias") else []
    found |= {f"{name}.bias": 0.5 * torch.randn(shapes[name][0], generator=generator) for name in biased}
    norms: dict[str, tuple[int, ...]] = {f"{LAYER}post_attention_layernorm": (d,)}
    if config.get("input_norm", True):
        norms[f"{LAYER}input_layernorm"] = (d,)
    if config.get("output_norm", True):
        norms["norm"] = (d,)
    if three:
        norms[f"{LAYER}hidden_norm"] = (d,)
    if config.get("fc_norm") or config.get("norm_before_fc"):
        norms["fc_norm"] = (taps, d) if config.get("fc_norm") else (taps * d,)
    if config.get("qk_norm"):
        norms |= {f"{LAYER}self_attn.{name}_norm": (width,) for name in "qk"}
    return found | {
        f"{name}.weight": 1 + 0.3 * torch.randn(shape, generator=generator) for name, shape in norms.items()
    }


@functools.cache
def _trained(model: Any, config_text: str) -> dict[str, Tensor]:
    """Weights fitted to the model's answers to two prompts, over three drafts in a row."""
    config = json.loads(config_text)
    with torch.inference_mode(False), torch.enable_grad():
        weights = {
            name: value.requires_grad_() for name, value in random_weights(config, model.config.vocab_size).items()
        }
        paper = PaperHead(weights, config)
        texts = []
        for prompt in (random_ids(12, seed=1), random_ids(1, seed=2)):
            tokens = torch.tensor(prompt + greedy(model, tuple(prompt), 40, frozenset()))
            with torch.no_grad():
                hidden = model(tokens[None], output_hidden_states=True).hidden_states
                texts.append((tokens, model.model.embed_tokens(tokens), [hidden[i][0] for i in config["taps"]]))
        lm_head = model.lm_head.weight.detach()
        optimizer = torch.optim.Adam(weights.values(), lr=0.01)
        for _ in range(60):
            loss = torch.zeros(())
            for tokens, embedded, taps in texts:
                features = paper.features(taps)[:-1]
                for ahead in range(3):
                    features, read = paper.outputs(embedded[1:], features)
                    loss = loss + F.cross_entropy(read[ahead:-1] @ lm_head.T, tokens[2 + ahead :])
                    features = torch.cat((torch.zeros_like(features[:1]), features[:-1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach() for name, value in weights.items()}
