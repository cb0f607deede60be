"""Long computations are cached chunk by chunk: an interrupted training continues where it stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from bench.files import save_tensors, writing


def load_or_make(
    path: Path, is_whole: Callable[[dict[str, Tensor]], bool], make: Callable[[], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors cached in `path` and True; else the result of `make`, once it is cached, and False.

    A damaged file, or one whose tensors are not what `is_whole` expects, is rebuilt.

    Raises:
        UserError: the disk is full or the cache cannot be written.

    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with contextlib.suppress(SafetensorError, OSError):  # absent, or cut short by a crash
        cached = load_file(path)
        if is_whole(cached):
            return cached, True
    made = make()
    assert is_whole(made)
    keep(path, made)
    return made, False


def keep(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to `path`, where they appear once they are completely written.

    Raises:
        UserError: the disk is full or the cache cannot be written.

    """
    with writing(path.parent):
        save_tensors(tensors, path)
