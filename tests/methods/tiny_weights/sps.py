"""Draft models in Hugging Face's layout: a target's first layers as a model of their own, saved by transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.byte_tokenizer import byte_tokenizer

COSTS = "0/0.2+0.4/1:1.0/2:1.05/4:1.1/8:1.4/16:2.0"


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function below."""
    return [
        {"model": str(write()), "stop": "threshold", "gamma": 4},
        {"model": str(write()), "stop": "heuristic"},
        {"model": str(write()), "costs": COSTS},
        {"model": str(write(layers=2, rows=16)), "stop": "threshold", "threshold": 0.3},
        {"model": str(write(rows=-13)), "stop": "heuristic", "quantize": "none"},
    ]


def small_model(model: Any, *, layers: int = 1, rows: int = 0, context: int = 0) -> Any:
    """The embedding, first layers, norm and LM head of transformers' `model`.

    `rows`: of embedding and head, more or fewer than the model's; added ones are likely tokens. `context`: another one.
    """
    small = copy.deepcopy(model)
    small.model.layers = small.model.layers[:layers]
    small.config.num_hidden_layers = layers
    if getattr(small.config, "layer_types", None):
        small.config.layer_types = small.config.layer_types[:layers]
    if rows:
        small.resize_token_embeddings(small.config.vocab_size + rows, mean_resizing=False)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(7)
            head = small.lm_head.weight
            head[model.config.vocab_size :] = 3 * torch.randn(max(0, rows), head.shape[1], generator=generator)
    small.config.max_position_embeddings = context or small.config.max_position_embeddings
    return small.eval()


def write(folder: Path, model: Any, *, tokenizer: Any = None, **options: Any) -> None:
    """A draft model for transformers' `model`, which on a `faint` one is often right."""
    small_model(model, **options).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
