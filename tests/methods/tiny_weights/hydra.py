"""Hydra heads in the authors' layout, written here, not by the project; the prefix layer is transformers' own model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from tests.reference import greedy, random_ids

CONFIG = {"hydra_head_arch": "prefix-mlp", "grounded_heads": True, "hidden_state_offset": 0}
CONFIG |= {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "transformers_version": "4.35.2"}
PROMPTS = [(12, 1), (1, 2)]  # length and seed of the prompts after which useful heads are often right


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function below."""
    return [
        {"weights": str(write()), "tree": "chain"},
        {"weights": str(write())},
        {"weights": str(write(layers=1)), "tree": "0/1/0-0/1-0/1-1/0-0-2"},
        {"weights": str(write(useful=False)), "tree": "0/1/0-3", "draft_weights": "plain"},
        {"weights": str(write(heads=1)), "tree": "none"},
    ]


def prefix_model(model: Any) -> Any:
    """A model of one layer like `model`'s, with weights of its own: the authors' `LlamaModel` over input embeddings."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    config._attn_implementation = "eager"
    prefix = AutoModel.from_config(config, dtype=model.dtype).eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, weight in prefix.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if "norm" in name else noise / weight.shape[-1] ** 0.5)
    return prefix


def write(
    folder: Path,
    model: Any,
    *,
    heads: int = 3,
    layers: int = 4,
    useful: bool = True,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
) -> None:
    """Heads of `layers` blocks for transformers' `model`.

    `useful`: heads that fit the model's greedy answers to a few prompts, so that drafts are often right, and sometimes
    wrong; otherwise random ones. `changes` go into config.json, `tensors` replace weights (None: left out).
    """
    d, vocab = model.config.hidden_size, model.config.vocab_size
    generator, prefix = torch.Generator().manual_seed(9), prefix_model(model)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    weights = {f"prefix_embeding_layer.{name}": tensor for name, tensor in prefix.state_dict().items()}
    weights["input_embed_fn.weight"] = model.get_input_embeddings().weight
    for i in range(heads):
        wide = (i + 2) * d
        own = {"linear.weight": random(d, wide), "linear.bias": random(d)}
        own |= {"res_connection.weight": random(d, wide), "res_connection.bias": random(d)}
        later = {"linear.weight": random(d, d), "linear.bias": random(d)}
        lm_head = {"weight": 3 * random(vocab, d), "bias": random(vocab)}
        if useful:
            own["res_connection.weight"], lm_head["weight"], lm_head["bias"] = _fitted(model, prefix, i)
            own["linear.weight"], later["linear.weight"] = 0 * own["linear.weight"], 0 * later["linear.weight"]
            own["linear.bias"], own["res_connection.bias"], later["linear.bias"] = (torch.zeros(d) for _ in range(3))
        weights |= {f"hydra_mlp.{i}.1.{name}": tensor for name, tensor in own.items()}
        for block in range(1, layers):
            weights |= {f"hydra_mlp.{i}.{2 * block + 1}.{name}": tensor for name, tensor in later.items()}
        weights |= {f"hydra_lm_head.{i}.1.{name}": tensor for name, tensor in lm_head.items()}
    kept = {name: tensor.detach() for name, tensor in (weights | (tensors or {})).items() if tensor is not None}
    torch.save(kept, folder / "hydra_lm_head.pt")
    config = CONFIG | {"hydra_num_heads": heads, "hydra_num_layers": layers}
    (folder / "config.json").write_text(json.dumps(config | (changes or {})))


def _fitted(model: Any, prefix: Any, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """A head's connection [d, (i + 2) d], and its LM head [V, d] with bias [V], by regression of rank d."""
    d, rows, wanted = model.config.hidden_size, [], []
    for prompt in ([token % model.config.vocab_size for token in random_ids(*given)] for given in PROMPTS):
        text = torch.tensor([prompt + greedy(model, tuple(prompt), 40, frozenset())])
        with torch.inference_mode():
            states = model(text, output_hidden_states=True).hidden_states[-1]
            read = prefix(inputs_embeds=states).last_hidden_state[0]
            embedded = model.get_input_embeddings()(text)[0]
        n = text.shape[1] - head - 2
        rows.append(torch.cat([read[:n], *(embedded[i + 1 : i + 1 + n] for i in range(head + 1))], dim=1).double())
        wanted.append(text[0, head + 2 :])
    x = torch.nn.functional.pad(torch.cat(rows), (0, 1), value=1.0)
    y = torch.nn.functional.one_hot(torch.cat(wanted), model.config.vocab_size).double()
    solution = torch.linalg.solve(x.T @ x + 100.0 * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y).T
    left, sizes, right = torch.linalg.svd(solution[:, :-1], full_matrices=False)
    connection, lm_head = torch.zeros(d, x.shape[1] - 1), torch.zeros(model.config.vocab_size, d)
    rank = min(d, len(sizes))
    connection[:rank], lm_head[:, :rank] = right[:rank], left[:, :rank] * sizes[:rank]
    return connection, lm_head, solution[:, -1].float()
