"""Random Kangaroo adapters. Written here, not by the project: file and tensor names are the published ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function below."""
    return [
        {"weights": str(write()), "threshold": 0.0, "gamma": 3},
        {"weights": str(write()), "threshold": 0.5},
        {"weights": str(write(useful=False, changes={"exit_layer": 2})), "threshold": 0.0},
        {"weights": str(write(ranking=list(range(60, 200)))), "threshold": 0.0, "draft_vocab": 140},
        {"weights": str(write()), "threshold": 0.0, "gamma": 4, "beam": 3},
        {"weights": str(write()), "threshold": 0.2, "gamma": 3, "beam": 10, "nodes": 9},
    ]


def write(
    folder: Path,
    model: Any,
    *,
    useful: bool = True,
    authors: bool = False,
    ranking: list[int] | None = None,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
) -> None:
    """An adapter with 4 heads for transformers' `model`.

    `useful`: its final norm is the target's and its attention is weak, so on a `faint` model many drafts are right.
    `authors`: their two files, which know neither exit layer nor ranking. `changes` go into config.json (a value of
    None: left out), `tensors` replace weights (None: left out), `ranking` lists token ids by falling frequency.
    """
    d = model.config.hidden_size
    weights = _adapter_weights(d)
    if useful:
        weights["layers.0.self_attn.o_proj.weight"] *= 0.1
        weights["norm.weight"] = model.model.norm.weight.detach().clone()
    config = {"hidden_size": d, "num_attention_heads": 4, "rms_norm_eps": 1e-6}
    if authors:
        config |= {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": model.config.vocab_size}
    else:
        config |= {"exit_layer": 1, "draft_vocab": 0}
        if ranking is not None:
            weights["token_ranking"] = torch.tensor(ranking, dtype=torch.int32)
    weights = {name: tensor for name, tensor in (weights | (tensors or {})).items() if tensor is not None}
    config = {key: value for key, value in (config | (changes or {})).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    if authors:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "adapter.safetensors")


def _adapter_weights(d: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    matrices = {
        f"layers.0.self_attn.{name}_proj.weight": torch.randn(d, d, generator=generator) * 1.5 / d**0.5
        for name in "qkvo"
    }
    names = ("layers.0.input_layernorm.weight", "norm.weight")
    return matrices | {name: 1 + 0.3 * torch.randn(d, generator=generator) for name in names}
