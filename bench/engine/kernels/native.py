"""The kernels of layers.cpp: built once for this machine, loaded, and called with tensors. CPU only.

Needs a C++ compiler (c++, g++, clang++ or $CXX) when it is first used; where there is none, `kernels` is None and
passes are run operation by operation.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
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

from bench.engine.kernels.panels import Panels
from bench.engine.quantize import Q4, Q8
from bench.files import cache_root

if TYPE_CHECKING:
    from bench.engine.cache import KVCache
    from bench.engine.places import Places
    from bench.engine.weights import DecoderConfig

SOURCE = Path(__file__).with_name("layers.cpp")
MOST_ROWS = 64  # of a pass; of wider ones attention, too, is torch's work
# No contraction: where two operations are to be one, the source says so.
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC")
_FOLDER = "kernels"  # in the cache
DTYPES = (torch.float32, torch.bfloat16)  # of models that the kernels can run
_KINDS = {torch.float32: 0, torch.bfloat16: 1, Q4: 2, Q8: 3}  # as in panels.h


class Matrix(Structure):
    """As in panels.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("panels", "scales", "bias")),
        *((name, c_int64) for name in ("outputs", "inputs", "kind", "paired")),
    )


class LayerPointers(Structure):
    """As `Layer` in pass.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "q_norm", "k_norm", "post_norm")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
    )


class Text(Structure):
    """As in pass.h."""

    _fields_ = (("slot", c_int64), ("start", c_int64), ("mask", c_void_p))


class Pass(Structure):
    """As in pass.h."""

    _fields_ = (
        ("layers", POINTER(LayerPointers)),
        ("text", POINTER(Text)),
        *((name, c_int64) for name in ("count", "texts", "width", "hidden", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        ("threads", c_int32),
        *((name, c_void_p) for name in ("x", "y", "cos", "sin", "cache")),
        *((name, c_int64) for name in ("layer_stride", "values", "room", "kind")),
        ("scratch", c_void_p),
    )


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library, built if need be; None where it cannot be, for a reason that `why_not` tells."""
    reasons = []
    for compiler in _compilers():
        try:
            library = _load(compiler)
        except (_CannotBuildError, OSError) as error:
            reasons.append(f"{Path(compiler).name}: {error}")
            continue
        library.scratch_floats.restype = library.product_floats.restype = c_int64
        library.run_layers.restype = library.multiply_add.restype = None
        return library
    _reason[:] = ["; ".join(reasons) or "there is no C++ compiler here (g++ or clang++)"]
    return None


def rounds_inputs() -> bool:
    """Return whether products with bfloat16 weights round their inputs to bfloat16, as this processor's do."""
    library = kernels()
    return library is not None and bool(library.rounds_inputs())


def is_built() -> bool:
    """Whether `kernels` need not compile anything, which takes some seconds."""
    compilers = _compilers()
    with contextlib.suppress(OSError):
        return not compilers or _is_safe(_path(compilers[0]))
    return True


def why_not() -> str:
    """Why there are no kernels here; empty where there are."""
    return "" if kernels() is not None else _reason[0]


_reason: list[str] = []
_OTHERS_WRITE = 0o022  # bits of a mode


class _CannotBuildError(Exception):
    """A compiler that cannot do it."""


def _compilers() -> list[str]:
    """Those that are there, to be tried in turn."""
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return list(dict.fromkeys(filter(None, map(shutil.which, names))))


def _path(compiler: str) -> Path:
    """What a compiler makes of the source for this machine: a file in the cache."""
    machine = [_cpu(), *platform.libc_ver(), *_openmp(compiler)]
    sources = [file.read_text(encoding="utf-8") for file in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    told = "\n".join([*sources, *_FLAGS, compiler, *machine])
    return cache_root() / _FOLDER / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"


def _load(compiler: str) -> ctypes.CDLL:
    path = _path(compiler)
    if _is_safe(path):
        with contextlib.suppress(OSError):  # built for another system: rebuilt
            return ctypes.CDLL(str(path))
    _build(compiler, path)
    return ctypes.CDLL(str(path))


def _is_safe(path: Path) -> bool:
    """Return whether the file is there, and only this user or root can have put it there: loading it runs it."""
    return path.exists() and _is_private(path) and _is_private(path.parent)


def _is_private(path: Path) -> bool:
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & _OTHERS_WRITE


def _build(compiler: str, path: Path) -> None:
    """Compile to a temporary name, then rename: two processes may do it at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.stat().st_uid == os.geteuid():
            _forbid_others(path.parent)
        if not _is_private(path.parent):
            remedy = "set ROOBENCH_CACHE to a folder of your own"
            raise _CannotBuildError(f"other users can write to {path.parent}: {remedy}")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as partial:
            made, compiled = Path(partial) / "kernels.so", Path(partial) / "kernels.o"
            steps = (
                [compiler, *_FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(compiled)],
                [compiler, "-shared", str(compiled), "-o", str(made), *_openmp(compiler)],
            )
            for step in steps:
                done = subprocess.run(step, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
                    raise _CannotBuildError(f"it cannot build {SOURCE.name} ({said})")
            _forbid_others(made)
            made.replace(path)
    except OSError as error:
        raise _CannotBuildError(f"nothing can be built in {path.parent} ({error.strerror or error})") from error


def _forbid_others(path: Path) -> None:
    """Let nobody else write there; what the umask forbids stays forbidden."""
    path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)


def _openmp(compiler: str) -> list[str]:
    """How to link: with the very OpenMP library that torch has loaded, whose threads are then shared.

    With another copy, either's idle threads would keep a core busy while the other's work. A compiler's calls need a
    library of its own family: GCC's have libgomp, LLVM's libomp or libiomp5.
    """
    if sys.platform != "linux":
        return ["-fopenmp"]
    family = ("libomp", "libiomp5") if "clang" in Path(compiler).resolve().name else ("libgomp",)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = dict.fromkeys(fields[5] for line in maps if len(fields := line.split(maxsplit=5)) == 6)
    found = [path for path in files if re.split(r"[-.]", Path(path).name)[0] in family]
    found.sort(key=lambda path: "/torch" not in path)  # torch's own, in torch/lib or torch.libs, before others' copies
    return found[:1] or ["-fopenmp"]


def _cpu() -> str:
    """What the processor can do, as far as the system tells: a cache may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"


class Product:
    """x -> x W^T + b (+ what is added): a matrix for the kernels, with what it is made of."""

    def __init__(self, stored: Panels, bias: Tensor | None):
        """`bias` [n_out]."""
        self.stored = stored
        self.bias = None if bias is None else bias.float().contiguous()
        self.outputs, self.inputs = stored.shape
        self.matrix = Matrix(
            stored.weights.data_ptr(), _address(stored.scales), _address(self.bias), self.outputs, self.inputs,
            _KINDS[stored.grid or stored.weights.dtype], stored.paired,
        )  # fmt: skip

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """x [.., n_in], `added` [.., n_out] -> [.., n_out], in x's dtype."""
        library = kernels()
        assert library is not None
        assert x.shape[-1] == self.inputs, f"{self.inputs} inputs, but given {tuple(x.shape)}"
        given = x.float().contiguous()
        out = given.new_empty((*x.shape[:-1], self.outputs))
        assert added is None or added.shape == out.shape, f"{tuple(out.shape)}, but to be added to {tuple(added.shape)}"
        added = None if added is None else added.float().contiguous()
        rows, threads = c_int64(x.numel() // self.inputs), c_int32(torch.get_num_threads())
        scratch = None
        if self.stored.weights.dtype != torch.float32:
            scratch = torch.empty(library.product_floats(byref(self.matrix), rows, threads))
        library.multiply_add(
            byref(self.matrix), c_void_p(given.data_ptr()), c_void_p(_address(added)), c_void_p(out.data_ptr()),
            rows, threads, c_void_p(_address(scratch)),
        )  # fmt: skip
        return out.to(x.dtype)


class Layers:
    """A decoder's layers for the kernels."""

    def __init__(self, config: DecoderConfig, layers: Sequence[Any]):
        """`layers`: as the decoder has them, their products `native`."""
        self.config = config
        self.kept: list[Any] = []  # what the pointers point to
        self.pointers = (LayerPointers * len(layers))(*(self._pointers(layer) for layer in layers))
        self.scratch = torch.empty(0)

    def _pointers(self, layer: Any) -> LayerPointers:
        norms: dict[str, int | None] = {}
        for name in ("input_norm", "q_norm", "k_norm", "post_norm"):
            weight = getattr(layer, name)
            self.kept.append(None if weight is None else weight.float().contiguous())
            norms[name] = _address(self.kept[-1])
        products = {name: getattr(layer, name).product for name in ("qkv", "out", "gate_up", "down")}
        self.kept += products.values()
        return LayerPointers(**norms, **{name: product.matrix for name, product in products.items()})

    def run(
        self,
        x: Tensor,
        places: Places,
        cache: KVCache,
        layers: tuple[int, int],
        rope: tuple[Tensor, Tensor],
        masks: Sequence[Tensor | None],
    ) -> Tensor:
        """Layers [first, last) over x [B, w, d] at its places; see `Decoder.run_layers`.

        `rope`: cosines and sines [B * w, D] of the positions; `masks`: of each sequence [w, its rows up to the last],
        added to the scores; None: causal.
        """
        library, c, (first, last) = kernels(), self.config, layers
        assert library is not None
        assert places.end <= cache.max_len, f"cache of {cache.max_len} positions written up to {places.end}"
        rows, width = places.batch * places.width, places.width
        assert all(table.shape == (rows, c.head_dim) for table in rope), (
            f"rotations {tuple(rope[0].shape)} for {rows} positions"
        )
        given, cos, sin = (tensor.float().contiguous() for tensor in (x, *rope))
        masks = [None if mask is None else mask.float().contiguous() for mask in masks]
        out = torch.empty_like(given)
        data = cache.data
        texts = (Text * places.batch)()
        for text, span, mask in zip(texts, places.spans, masks, strict=True):
            assert mask is None or mask.shape == (width, span.first + width), f"a mask {tuple(mask.shape)} at {span}"
            text.slot, text.start, text.mask = span.slot * data.stride(2), span.first, _address(mask)
        asked = Pass(
            text=texts, count=last - first, texts=places.batch, width=width, hidden=c.hidden, heads=c.heads,
            kv_heads=c.kv_heads, head_dim=c.head_dim, eps=c.norm_eps, threads=torch.get_num_threads(),
            x=given.data_ptr(), y=out.data_ptr(), cos=cos.data_ptr(), sin=sin.data_ptr(),
            cache=data[first].data_ptr() if first < last else 0, layer_stride=data.stride(0), values=data.stride(1),
            room=cache.max_len, kind=_KINDS[data.dtype],
        )  # fmt: skip
        asked.layers = ctypes.cast(byref(self.pointers, first * ctypes.sizeof(LayerPointers)), POINTER(LayerPointers))
        needed = library.scratch_floats(byref(asked))
        if self.scratch.numel() < needed:
            self.scratch = torch.empty(2 * needed)
        asked.scratch = self.scratch.data_ptr()
        library.run_layers(byref(asked))
        return out.to(x.dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
