"""DFlash checkpoints in z-lab's and DeepSpec's layouts, and a literal reading of their forward. Written here, not by
the project."""

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

from tests.reference import greedy, random_ids

BLOCK, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 5, 4, 2, 16, 2
CHEAP = "0.0/0.1/1:1.0/16:1.2"


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function below."""
    return [
        {"weights": str(write()), "stop": "threshold"},
        {"weights": str(write(anchor=True)), "costs": CHEAP},
        {"weights": str(write(useful=False)), "stop": "threshold", "threshold": 0.1},
    ]


def write(
    folder: Path,
    model: Any,
    *,
    useful: bool = True,
    anchor: bool = False,
    heads: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
) -> None:
    """A checkpoint for transformers' `model`.

    `useful`: fitted to the model's greedy answers to a few prompts, so that drafts are often right; else random.
    `anchor`: DeepSpec's layout, in which the newest token's row drafts, too. `heads`: what its config.json says of more
    heads. `changes` go into config.json, `tensors` replace weights (None: left out).
    """
    c = model.config
    values = config_of(model, anchor) | (heads or {}) | (changes or {})
    weights = dict(_fitted(model, anchor)) if useful else random_weights(values)
    if anchor:
        weights |= {"embed_tokens.weight": model.model.embed_tokens.weight, "lm_head.weight": model.lm_head.weight}
    if rank := (heads or {}).get("markov_rank"):
        generator = torch.Generator().manual_seed(8)
        size = 0.1 if useful else 1.0
        weights |= {
            f"markov_head.markov_w{i}.weight": size * torch.randn(c.vocab_size, rank, generator=generator)
            for i in (1, 2)
        }
        if values["enable_confidence_head"]:
            width = c.hidden_size + rank * values["confidence_head_with_markov"]
            weights["confidence_head.proj.weight"] = torch.randn(1, width, generator=generator) / width**0.5
            weights["confidence_head.proj.bias"] = torch.tensor([0.3])
    kept = {n: t.detach().clone().contiguous() for n, t in (weights | (tensors or {})).items() if t is not None}
    save_file(kept, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))


def config_of(model: Any, anchor: bool) -> dict[str, Any]:
    """config.json as published, for small sizes."""
    c = model.config
    ids = [0, c.num_hidden_layers - 2] if c.num_hidden_layers > 2 else [0]
    own = {"mask_token_id": c.vocab_size - 2, "target_layer_ids": ids}
    values = {
        "architectures": ["Qwen3DSparkModel" if anchor else "DFlashDraftModel"],
        "attention_bias": False,
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "block_size": BLOCK,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "intermediate_size": 64,
        "layer_types": ["full_attention"] * LAYERS,
        "max_position_embeddings": 512,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "num_target_layers": c.num_hidden_layers,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 5000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": c.vocab_size,
    }
    more = {"markov_rank": 0, "enable_confidence_head": False, "num_anchors": 4}
    return values | (own | more if anchor else {"dflash_config": own})


def settings(values: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the block, wherever it says so."""
    return values | values.get("dflash_config", {})


def random_weights(values: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of the network by name."""
    generator = torch.Generator().manual_seed(6)
    d, inner, taps = values["hidden_size"], values["intermediate_size"], len(settings(values)["target_layer_ids"])
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"fc": (d, taps * d), "hidden_norm": (d,), "norm": (d,)}
    for i in range(LAYERS):
        layer = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
        layer |= {"self_attn.o_proj": (d, q), "self_attn.q_norm": (HEAD_DIM,), "self_attn.k_norm": (HEAD_DIM,)}
        layer |= {"mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d), "mlp.down_proj": (d, inner)}
        layer |= {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = 1 + 0.3 * noise if len(shape) == 1 else noise * 1.5 / shape[1] ** 0.5
        if values["attention_bias"] and name.endswith(("q_proj", "k_proj", "v_proj", "o_proj")):
            weights[f"{name}.bias"] = 0.5 * torch.randn(shape[0], generator=generator)
    return weights


def forward(
    w: dict[str, Tensor], values: dict[str, Any], context: Tensor, x: Tensor, start: Tensor, seen: Tensor | None = None
) -> Tensor:
    """The official forward without a cache: features [n, T d] and block embeddings [B, d] -> states [B, d].

    The block begins at position `start`; `seen` [n]: which rows of the context there are (all).
    """

    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, rows: Tensor) -> Tensor:
        scale = (rows.pow(2).mean(-1, keepdim=True) + values["rms_norm_eps"]).rsqrt()
        return w[f"{name}.weight"] * rows * scale

    n, block = len(context), len(x)
    inverse = 1.0 / values["rope_theta"] ** (torch.arange(0, HEAD_DIM, 2).to(x) / HEAD_DIM)
    positions = torch.cat((torch.arange(n).to(x), start + torch.arange(block).to(x)))
    angles = positions[:, None] * torch.cat((inverse, inverse))
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def rotate(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        low, high = rows.chunk(2, dim=-1)
        return rows * cos + torch.cat((-high, low), dim=-1) * sin

    target = norm("hidden_norm", linear("fc", context))
    hidden = torch.ones(n + block, dtype=torch.bool) if seen is None else torch.cat((seen, seen.new_ones(block)))
    for i in range(LAYERS):
        at = f"layers.{i}."
        h = norm(f"{at}input_layernorm", x)
        both = torch.cat((target, h))
        q = norm(f"{at}self_attn.q_norm", linear(f"{at}self_attn.q_proj", h).view(block, HEADS, HEAD_DIM))
        k = norm(f"{at}self_attn.k_norm", linear(f"{at}self_attn.k_proj", both).view(-1, KV_HEADS, HEAD_DIM))
        v = linear(f"{at}self_attn.v_proj", both).view(-1, KV_HEADS, HEAD_DIM)
        q, k = rotate(q, cos[n:], sin[n:]), rotate(k, cos, sin)
        k, v = (rows.repeat_interleave(HEADS // KV_HEADS, dim=1) for rows in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5
        p = scores.masked_fill(~hidden, -torch.inf).softmax(-1)
        x = x + linear(f"{at}self_attn.o_proj", torch.einsum("hqk,khd->qhd", p, v).reshape(block, -1))
        h = norm(f"{at}post_attention_layernorm", x)
        gate, up = linear(f"{at}mlp.gate_proj", h), linear(f"{at}mlp.up_proj", h)
        x = x + linear(f"{at}mlp.down_proj", F.silu(gate) * up)
    return norm("norm", x)


def features(model: Any, values: dict[str, Any], text: list[int]) -> Tensor:
    """transformers' states of a text that the network reads, [n, T d]: after id + 1 layers."""
    with torch.no_grad():
        states = model(torch.tensor([text]), output_hidden_states=True).hidden_states
    return torch.cat([states[number + 1][0] for number in settings(values)["target_layer_ids"]], dim=-1)


def embed_block(model: Any, values: dict[str, Any], newest: int) -> Tensor:
    """The embeddings of the newest token and the masks, [B, d]."""
    ids = [newest] + [settings(values)["mask_token_id"]] * (settings(values)["block_size"] - 1)
    return model.model.embed_tokens.weight[ids].detach()


@functools.cache
def _fitted(model: Any, anchor: bool) -> dict[str, Tensor]:
    """Trained for a second on a few answers: often right on these, hardly on others."""
    values, first = config_of(model, anchor), int(not anchor)
    weights = {name: tensor.requires_grad_() for name, tensor in random_weights(values).items()}
    texts = [prompt + greedy(model, tuple(prompt), 45, frozenset()) for prompt in (random_ids(12, 1), random_ids(1, 2))]
    longest = max(map(len, texts))
    anchors = [
        (F.pad(features(model, values, text), (0, 0, 0, longest - len(text))), embed_block(model, values, text[at]), at,
         text[at + 1 : at + 1 + BLOCK - first])
        for text in texts
        for at in range(len(text) - 45, len(text) - BLOCK)
    ]  # fmt: skip
    context, x, starts, wanted = zip(*anchors, strict=True)
    start = torch.tensor(starts)
    seen = torch.arange(longest) < start[:, None]
    labels = torch.tensor(wanted)
    run = torch.vmap(lambda *one: forward(weights, values, *one))
    optimizer = torch.optim.Adam(weights.values(), lr=5e-3)
    for _ in range(22):
        states = run(torch.stack(context), torch.stack(x), start.float(), seen)
        logits = F.linear(states[:, first:], model.lm_head.weight.detach())
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in weights.items()}
