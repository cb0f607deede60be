"""The kernels of narrow.cpp: built once for this machine, loaded, and called with tensors. CPU and float32 only.

Needs a C++ compiler (c++, g++, clang++ or $CXX) when it is first used; where there is none, `kernels` is None and
passes are run operation by operation.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.files import cache_root

if TYPE_CHECKING:
    from bench.engine.decoder import DecoderConfig
    from bench.engine.execute import Linear
    from bench.engine.kv_cache import KVCache

SOURCE = Path(__file__).with_name("narrow.cpp")
MOST_POSITIONS = 64  # wider passes are bound by arithmetic, where torch's own products are better
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
_FOLDER = "kernels"  # in the cache


class Matrix(Structure):
    """As in narrow.cpp."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64))


class LayerPointers(Structure):
    """As in narrow.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "q_norm", "k_norm", "post_norm")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
    )


class Pass(Structure):
    """As in narrow.cpp."""

    _fields_ = (
        ("layers", POINTER(LayerPointers)),
        *((name, c_int64) for name in ("count", "positions", "hidden", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        ("threads", c_int32),
        *((name, c_void_p) for name in ("x", "y", "cos", "sin", "cache")),
        *((name, c_int64) for name in ("layer_stride", "room", "start")),
        ("mask", c_void_p),
        ("scratch", c_void_p),
    )


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library, built if need be; None where it cannot be, for a reason that `why_not` tells."""
    try:
        library = ctypes.CDLL(str(_built()))
    except (_CannotBuildError, OSError) as error:
        _reason.append(str(error))
        return None
    library.scratch_floats.restype = c_int64
    library.run_layers.restype = library.multiply_add.restype = None
    return library


def is_built() -> bool:
    """Whether `kernels` need not compile anything, which takes some seconds."""
    try:
        return _library()[1].exists()
    except _CannotBuildError:
        return True


def why_not() -> str:
    """Why there are no kernels here; empty where there are."""
    return "" if kernels() is not None else _reason[0]


_reason: list[str] = []


class _CannotBuildError(Exception):
    """No compiler, or one that cannot do it."""


def _built() -> Path:
    """The library's file."""
    compiler, path = _library()
    if not path.exists():
        _build(compiler, path)
    return path


def _library() -> tuple[str, Path]:
    """The compiler, and what it makes of the source for this machine: a file in the cache."""
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise _CannotBuildError("there is no C++ compiler here (g++ or clang++): install one")
    told = "\n".join([SOURCE.read_text(encoding="utf-8"), *_FLAGS, compiler, _cpu_flags(), *_openmp()])
    return compiler, cache_root() / _FOLDER / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"


def _build(compiler: str, path: Path) -> None:
    """Compile to a temporary name, then rename: two processes may do it at once, and both are right."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as partial:
            made = Path(partial) / "kernels.so"
            compiled = Path(partial) / "kernels.o"
            steps = (
                [compiler, *_FLAGS[:-1], "-fopenmp", "-c", str(SOURCE), "-o", str(compiled)],
                [compiler, "-shared", str(compiled), "-o", str(made), *_openmp()],
            )
            for step in steps:
                done = subprocess.run(step, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
                    raise _CannotBuildError(f"{Path(compiler).name} cannot build narrow.cpp: {said}")
            made.replace(path)
    except OSError as error:
        raise _CannotBuildError(f"the kernels cannot be built in {path.parent}: {error.strerror or error}") from error


def _openmp() -> list[str]:
    """How to link: with the very OpenMP library that torch has loaded, whose threads are then shared.

    With another copy, either's idle threads would keep a core busy while the other's work.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            path = line.rpartition(" ")[2]
            if Path(path).name.startswith(("libgomp", "libomp", "libiomp")):
                return [path]
    return ["-fopenmp"]


def _cpu_flags() -> str:
    """What the processor can do, as far as the system tells: a cache may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"


def matrix(linear: Linear) -> Matrix:
    """A product for the kernels; the tensors must outlive it."""
    return Matrix(_address(linear.weight), _address(linear.bias), linear.out_features, linear.in_features)


def multiply_add(linear: Matrix, x: Tensor, added: Tensor | None) -> Tensor:
    """x [.., n_in] -> x W^T + b (+ added) [.., n_out]."""
    library = kernels()
    assert library is not None
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], linear.outputs))
    added = None if added is None else added.contiguous()
    rows = x.numel() // linear.inputs
    library.multiply_add(
        byref(linear), c_void_p(x.data_ptr()), c_void_p(_address(added)), c_void_p(out.data_ptr()),
        c_int64(rows), c_int32(torch.get_num_threads()),
    )  # fmt: skip
    return out


class Layers:
    """A decoder's layers for the kernels."""

    def __init__(self, config: DecoderConfig, layers: Sequence[Any]):
        """`layers`: as the decoder has them, with plain float32 weights; kept alive here."""
        self.config, self.layers = config, list(layers)
        self.pointers = (LayerPointers * len(layers))(*(_pointers(layer) for layer in layers))
        self.scratch = torch.empty(0)

    def run(
        self,
        x: Tensor,
        start: int,
        cache: KVCache,
        first: int,
        last: int,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """Layers [first, last) over x [1, n, d], written from position `start` on; see `Decoder.run_layers`.

        `rope`: cosines and sines [n, D] of the positions; `mask` [n, start + n] is added to the scores, None: causal.
        """
        library, c, (cos, sin) = kernels(), self.config, rope
        assert library is not None
        n = x.shape[1]
        assert start + n <= cache.max_len, f"cache of {cache.max_len} positions written up to {start + n}"
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        mask = None if mask is None else mask.contiguous()
        y = torch.empty_like(x)
        data = cache.data
        asked = Pass(
            count=last - first, positions=n, hidden=c.hidden, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim,
            eps=c.norm_eps, threads=torch.get_num_threads(), x=x.data_ptr(), y=y.data_ptr(), cos=cos.data_ptr(),
            sin=sin.data_ptr(), cache=data[first].data_ptr() if first < last else 0, layer_stride=data.stride(0),
            room=cache.max_len, start=start, mask=_address(mask),
        )  # fmt: skip
        asked.layers = ctypes.cast(byref(self.pointers, first * ctypes.sizeof(LayerPointers)), POINTER(LayerPointers))
        needed = library.scratch_floats(byref(asked))
        if self.scratch.numel() < needed:
            self.scratch = torch.empty(2 * needed)
        asked.scratch = self.scratch.data_ptr()
        library.run_layers(byref(asked))
        return y


def _pointers(layer: Any) -> LayerPointers:
    norms = {name: _address(getattr(layer, name)) for name in ("input_norm", "q_norm", "k_norm", "post_norm")}
    return LayerPointers(**norms, **{name: matrix(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")})


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    return tensor.data_ptr()
