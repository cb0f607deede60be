"""Long computations are cached chunk by chunk: an interrupted training continues where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from bench.files import save_tensors, writing

_NAME = "states"


def load(path: Path, shape: Sequence[int]) -> Tensor | None:
    """Return the tensor in `path`, mapped from the file; None if there is none of this shape: absent, or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensor: Tensor | None = load_file(path).get(_NAME)
    except (SafetensorError, OSError):  # absent, or cut short by a crash
        return None
    return tensor if tensor is not None and tensor.shape == tuple(shape) else None


def keep(path: Path, tensor: Tensor) -> None:
    """Write a tensor to `path`, where it appears once it is completely written.

    Raises:
        UserError: the disk is full or the cache cannot be written.

    """
    with writing(path.parent):
        save_tensors({_NAME: tensor}, path)
