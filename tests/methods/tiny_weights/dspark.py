"""DSpark checkpoints in DeepSpec's layout, written here, not by the project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.methods.tiny_weights import dflash

HEADS = {
    "markov_rank": 6,
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function below."""
    return [
        {"weights": str(write()), "stop": "threshold"},
        {"weights": str(write()), "costs": dflash.CHEAP},
        {"weights": str(write(useful=False)), "stop": "threshold", "threshold": 0.5},
    ]


def write(folder: Path, model: Any, *, heads: dict[str, Any] | None = None, **options: Any) -> None:
    """As `dflash.write`, with a Markov head and a confidence head; `heads`: what is special about them."""
    dflash.write(folder, model, anchor=True, heads=HEADS | (heads or {}), **options)
