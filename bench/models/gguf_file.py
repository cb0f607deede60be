"""The GGUF format: settings and tensors of a file, read and checked without any of the weights. Needs no torch.

Source: github.com/ggml-org/ggml, docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from bench.errors import UserError

T = TypeVar("T")
MAGIC = b"GGUF"
_FORMAT = re.compile(r"[-._](i?q\d\w*|tq\d\w*|mxfp4\w*|bf16|fp?16|fp?32)$", re.IGNORECASE)  # at the end of a name
_SPLIT_NAME = re.compile(r"-\d{5}-of-\d{5}$")
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_AGAIN = "fetch it again"


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is in the file. `shape`: as in torch, the last dimension is contiguous."""

    name: str
    shape: tuple[int, ...]
    kind: Any  # gguf.GGMLQuantizationType
    begin: int  # its first byte in the file
    nbytes: int


@dataclass(frozen=True)
class Gguf:
    """The settings and tensors of a file."""

    path: Path
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A setting; int counts as float.

        Raises:
            UserError: it is missing and there is no default, or it is of another type.

        """
        value = self.settings.get(key)
        if value is None:
            if default is None:
                raise self.refused(f"it has no {key}")
            return default
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise self.refused(f"{key} is a {type(value).__name__}, and not a {kind.__name__}")
        return value

    def refused(self, reason: str, remedy: str = _AGAIN) -> UserError:
        """The error for a file that cannot be used."""
        return refused(self.path, reason, remedy)


def refused(path: Path, reason: str, remedy: str = _AGAIN) -> UserError:
    """The error for a file that cannot be used."""
    return UserError(f"cannot use the GGUF file {path}: {reason}; {remedy}")


def model_of(name: str) -> str:
    """A model's name without the number format of a GGUF: what was made for the model serves it in every format."""
    found = _FORMAT.search(name)
    return name[: found.start()].lower() if found and found.start() else name


def check_name(path: Path) -> None:
    """Refuse a file that cannot be a whole GGUF by its name and its first bytes.

    Raises:
        UserError: it is one of several parts, is no GGUF, or cannot be read.

    """
    if _SPLIT_NAME.search(path.stem):
        raise _is_split(path)
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
    except OSError as error:
        raise refused(path, f"it cannot be read ({error.strerror})", "check its permissions") from error
    if begin != MAGIC:
        wanted = "give one, or a folder in Hugging Face's layout"
        raise UserError(f"{path} is not a GGUF file (it begins with {begin!r}, not {MAGIC!r}): {wanted}")


def read(path: Path) -> Gguf:
    """Read the settings of a file and where its tensors are.

    Raises:
        UserError: it is not a whole GGUF of versions 2 and 3, or it is one of several parts.

    """
    check_name(path)
    with path.open("rb") as file:
        reader = _Reader(file, path)
        try:
            found = _read(reader)
        except (UnicodeDecodeError, RecursionError) as error:
            raise refused(path, f"it is damaged ({type(error).__name__} at byte {reader.at})") from error
    if found.get("split.count", int, 1) > 1:
        raise _is_split(path)
    return found


def _is_split(path: Path) -> UserError:
    remedy = (
        "join all parts with llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf`, or take a file in one part"
    )
    return refused(path, "it is one of several parts", remedy)


class _Reader:
    """Takes values one after the other, and none beyond the end of the file."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.size, self.at = file, path, path.stat().st_size, 0
        self.kinds: dict[int, Callable[[], Any]] = {_STRING: self.string, _ARRAY: self.array}

    def take(self, count: int) -> bytes:
        self.at += count
        if self.at > self.size:
            raise refused(self.path, f"it is incomplete: its {self.size:,} bytes end within its settings")
        return self.file.read(count)

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if code := _SCALARS.get(kind):
            return self.scalar(code)
        if kind not in self.kinds:
            raise refused(self.path, f"it is damaged: a value of type {kind} at byte {self.at}")
        return self.kinds[kind]()

    def array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if code := _SCALARS.get(kind):
            packed = self.take(count * struct.calcsize(f"<{code}"))
            return [value for (value,) in struct.iter_unpack(f"<{code}", packed)]
        return [self.value(kind) for _ in range(count)]


def _read(reader: _Reader) -> Gguf:
    reader.take(len(MAGIC))
    version = reader.scalar("I")
    if version not in _VERSIONS:
        which = "in big-endian order" if version & 0xFFFF == 0 else f"of version {version}"
        remedy = "take a newer file of the model" if version == 1 else _AGAIN
        raise refused(
            reader.path, f"it is {which}, and only versions 2 and 3 in little-endian order can be read", remedy
        )
    tensors, settings = reader.scalar("Q"), reader.scalar("Q")
    found = {reader.string(): reader.value(reader.scalar("I")) for _ in range(settings)}
    alignment = found.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise refused(reader.path, f"it is damaged: general.alignment is {alignment!r}")
    listed = [_info(reader) for _ in range(tensors)]
    begin = -(-reader.at // alignment) * alignment
    placed = {name: _placed(reader, name, dims, kind, begin + offset) for name, dims, kind, offset in listed}
    return Gguf(reader.path, found, placed)


def _info(reader: _Reader) -> tuple[str, list[int], int, int]:
    name, count = reader.string(), reader.scalar("I")
    if count > _MOST_DIMENSIONS:
        raise refused(reader.path, f"it is damaged: tensor {name} has {count} dimensions")
    return name, [reader.scalar("Q") for _ in range(count)], reader.scalar("I"), reader.scalar("Q")


def _placed(reader: _Reader, name: str, dims: list[int], number: int, begin: int) -> Tensor:
    """Find a tensor's bytes; `dims`: the contiguous dimension is the first."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        remedy = "take a file in another format, such as Q8_0 or F16"
        raise refused(reader.path, f"tensor {name} is in the unknown format {number}", remedy) from None
    if dims and dims[0] % block:
        raise refused(reader.path, f"it is damaged: tensor {name} has rows of {dims[0]} values in blocks of {block}")
    count = 1
    for size in dims:
        count *= size
    nbytes = count // block * block_bytes
    if begin + nbytes > reader.size:
        reason = f"it is incomplete: tensor {name} ends at byte {begin + nbytes:,} of {reader.size:,}"
        raise refused(reader.path, reason)
    return Tensor(name, tuple(reversed(dims)), kind, begin, nbytes)
