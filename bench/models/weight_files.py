"""The files that hold a checkpoint's weights: which they are, and the tensors in them. torch is imported on use."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.files import first_line
from bench.models.config_files import ShardIndex, read

if TYPE_CHECKING:
    import torch

# One file or shards; safetensors first, as in transformers. Adapters and other layouts have other names.
PATTERNS = (("model.safetensors", "model*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin"))


def find(folder: Path) -> list[Path]:
    """The files that hold the weights, sorted.

    Raises:
        UserError: there are none, or files of the index are missing.

    """
    for single, pattern in PATTERNS:
        index, files = folder / f"{single}.index.json", sorted(folder.glob(pattern))
        if folder / single in files:
            files = [folder / single]  # others repeat it in another layout
        elif index.is_file():
            files = [folder / name for name in sorted(set(read(ShardIndex, index)["weight_map"].values()))]
        if missing := [path for path in files if not path.is_file()]:
            raise UserError(
                f"{len(missing)} of {len(files)} weight files are missing, first {missing[0]}: fetch it again"
            )
        if files:
            return files
    raise UserError(f"no weights in {folder}: put model.safetensors, its shards or pytorch_model*.bin there")


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of one file, on the CPU in the stored dtype. Pickled files are read with `weights_only`.

    Raises:
        UserError: the file is missing, damaged or unsafe, or holds something other than named tensors.

    """
    from safetensors import SafetensorError

    try:
        yield from (_safetensors if path.suffix == ".safetensors" else _pickled)(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        reason = "it is damaged, or holds more than tensors, which could run code and is never loaded"
        raise UserError(
            f"cannot read the weights {path}: {reason}; fetch it again, as safetensors if you can"
        ) from error
    except Exception as error:  # torch and the unpickler raise nearly every type for a damaged file
        known = isinstance(error, OSError | RuntimeError | SafetensorError)
        reason = first_line(error) if known else type(error).__name__
        raise UserError(
            f"cannot read the weights {path}: it is incomplete or damaged ({reason}); fetch it again"
        ) from error


def _safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            yield name, file.get_tensor(name)


def unpickled(path: Path, *, mmap: bool = False) -> Any:
    """What torch saved in a file; it runs no code. torch's errors pass, its advice does not."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _pickled(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    def is_plain(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"

    stored = unpickled(path, mmap=zipfile.is_zipfile(path))  # torch's older format cannot be mapped
    if not isinstance(stored, dict):
        found = f"an object of type {type(stored).__name__}"
        raise UserError(f"{path} holds {found} instead of a state dict: save the model's state_dict() there")
    for name, value in stored.items():
        if not isinstance(name, str) or not is_plain(value):
            found = f"an object of type {type(value).__name__} called {name!r}"
            raise UserError(f"{path} holds {found}, no dense tensor: save the model's state_dict() there")
        yield name, value
