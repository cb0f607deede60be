"""The kernels of layers.cpp: built once for this machine, loaded, and called with tensors. CPU only.

Needs a C++ compiler (c++, g++, clang++ or $CXX) when it is first used; where there is none, `kernels` is None and
passes are run operation by operation.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.attention import additive
from bench.engine.kernels import build
from bench.engine.kernels.panels import Panels
from bench.engine.quantize import Q4, Q8

if TYPE_CHECKING:
    from bench.engine.cache import KVCache
    from bench.engine.places import Places, Span

MOST_ROWS = 512  # of a pass; a prefill goes through all layers in parts, so that its scratch memory stays small
NARROW = 64  # rows of a sequence; of more, attention may sum in another order. As MANY in panels.h
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

    _fields_ = (
        ("cache", c_void_p),
        *((name, c_int64) for name in ("start", "width", "first")),
        ("mask", c_void_p),
    )


class Pass(Structure):
    """As in pass.h."""

    _fields_ = (
        ("layers", POINTER(LayerPointers)),
        ("text", POINTER(Text)),
        ("text_of", c_void_p),
        *((name, c_int64) for name in ("count", "texts", "rows", "hidden", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        ("threads", c_int32),
        *((name, c_void_p) for name in ("x", "y", "cos", "sin")),
        *((name, c_int64) for name in ("layer_stride", "values", "room", "kind")),
        ("scratch", c_void_p),
    )


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library, built if need be; None where it cannot be, for a reason that `why_not` tells.

    Raises UserError where it cannot be built with the flags of $ROOBENCH_KERNEL_FLAGS.
    """
    build.processor_flags()
    reasons, refused = [], False
    for compiler in build.compilers():
        try:
            library = build.load(compiler)
        except (build.CannotBuildError, OSError) as error:
            reasons.append(f"{Path(compiler).name}: {error}")
            refused |= isinstance(error, build.CannotBuildError)  # else the flags are not to blame: a full disk, ..
            continue
        library.scratch_floats.restype = library.product_floats.restype = library.draft_floats.restype = c_int64
        library.run_layers.restype = library.multiply_add.restype = library.run_draft.restype = None
        return library
    if refused and os.environ.get(build.PROCESSOR):
        raise build.unusable("; ".join(reasons))
    _reason[:] = ["; ".join(reasons) or "there is no C++ compiler here (g++ or clang++)"]
    return None


def rounds_inputs() -> bool:
    """Return whether products with bfloat16 weights round their inputs to bfloat16, as this processor's do."""
    library = kernels()
    return library is not None and bool(library.rounds_inputs())


def is_built() -> bool:
    """Whether `kernels` need not compile anything, which takes some seconds."""
    compilers = build.compilers()
    with contextlib.suppress(OSError):
        return not compilers or build.is_safe(build.path_of(compilers[0]))
    return True


def why_not() -> str:
    """Why there are no kernels here; empty where there are."""
    return "" if kernels() is not None else _reason[0]


_reason: list[str] = []


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
        return self.prepared(x, added)().to(x.dtype)

    def prepared(self, x: Tensor, added: Tensor | None = None) -> Callable[[], Tensor]:
        """The kernels' call alone, which may be repeated; it returns the same float32 tensor each time."""
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
        arguments = (
            byref(self.matrix), c_void_p(given.data_ptr()), c_void_p(_address(added)), c_void_p(out.data_ptr()),
            rows, threads, c_void_p(_address(scratch)),
        )  # fmt: skip

        def call(*_kept: object) -> Tensor:
            library.multiply_add(*arguments)
            return out

        return functools.partial(call, self, given, added, scratch)  # the arguments point into them


@dataclass(frozen=True)
class Dimensions:
    """What a pass has to know of a decoder."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float


@dataclass(frozen=True)
class Rows:
    """The rows of a pass, sequence by sequence: where they are, and all that depends on it."""

    spans: Sequence[Span]  # of each sequence
    widths: Sequence[int]
    rope: tuple[Tensor, Tensor]  # cosines and sines [rows, D] of the positions
    masks: Sequence[Tensor | None]  # of each sequence [w, its rows up to the last], added to the scores; None: causal

    @classmethod
    def of(cls, places: Sequence[Places], cos: Tensor, sin: Tensor) -> Rows:
        """`cos`, `sin`: tables [positions, D] as for `apply_rope`."""
        spans = [span for one in places for span in one.spans]
        widths = [one.width for one in places for _ in one.spans]
        if len(spans) == 1 and spans[0].depths is None:
            at: slice | Tensor = slice(spans[0].first, spans[0].first + widths[0])
        else:
            at = torch.cat([one.positions(cos.device).flatten() for one in places])
        masks = [None if one.seen is None else F.pad(additive(one.seen, torch.float32), (one.base, 0)) for one in spans]
        return cls(spans, widths, (cos[at], sin[at]), masks)


class Layers:
    """A decoder's layers for the kernels."""

    def __init__(self, dimensions: Dimensions, layers: Sequence[Any]):
        """`layers`: as the decoder has them, their products `native`; `gate_up` None: attention alone."""
        self.dimensions = dimensions
        self.kept: list[Any] = []  # what the pointers point to
        self.pointers = (LayerPointers * len(layers))(*(self._pointers(layer) for layer in layers))
        self.scratch = torch.empty(0)

    def _pointers(self, layer: Any) -> LayerPointers:
        norms: dict[str, int | None] = {}
        for name in ("input_norm", "q_norm", "k_norm", "post_norm"):
            weight = getattr(layer, name)
            self.kept.append(None if weight is None else weight.float().contiguous())
            norms[name] = _address(self.kept[-1])
        products = {
            name: linear.product
            for name in ("qkv", "out", "gate_up", "down")
            if (linear := getattr(layer, name)) is not None
        }
        self.kept += products.values()
        return LayerPointers(**norms, **{name: product.matrix for name, product in products.items()})

    def run(self, x: Tensor, rows: Rows, caches: Sequence[KVCache], layers: tuple[int, int]) -> Tensor:
        """Layers [first, last) over x [.., d], whose rows are those of `rows`; `caches`: of each sequence."""
        library = kernels()
        assert library is not None
        asked = self.asked(x, rows, caches, layers)
        library.run_layers(byref(asked.call))
        return asked.out.to(x.dtype)

    def run_in_parts(
        self, x: Tensor, places: Places, tables: tuple[Tensor, Tensor], cache: KVCache, layers: tuple[int, int]
    ) -> Tensor:
        """Layers [first, last) over x [B, w, d] at its places; see `Decoder.run_layers`.

        `tables`: cosines and sines [positions, D] as for `apply_rope`.
        """
        states, done = [], 0
        for part in places.in_parts(max(1, MOST_ROWS // places.batch)):
            rows = Rows.of([part], *tables)
            states.append(self.run(x[:, done : done + part.width], rows, [cache] * places.batch, layers))
            done += part.width
        return states[0] if len(states) == 1 else torch.cat(states, dim=1)

    def asked(self, x: Tensor | None, rows: Rows, caches: Sequence[KVCache], layers: tuple[int, int]) -> Asked:
        """What the kernels are given for a pass; x None: `out`, [1, rows, d], is filled in before it begins."""
        library, c, (first, last) = kernels(), self.dimensions, layers
        assert library is not None
        count = sum(rows.widths)
        assert max(rows.widths) <= NARROW or len(set(rows.widths)) == 1, f"{rows.widths} rows of sequences in one pass"
        assert all(table.shape == (count, c.head_dim) for table in rows.rope), (
            f"rotations {tuple(rows.rope[0].shape)} for {count} positions"
        )
        cos, sin = (table.float().contiguous() for table in rows.rope)
        given = None if x is None else x.float().contiguous()
        out = torch.empty((1, count, c.hidden) if given is None else given.shape)
        data = caches[0].data
        texts, text_of, at = (Text * len(rows.spans))(), (c_int64 * count)(), 0
        for number, (text, span, width, mask) in enumerate(
            zip(texts, rows.spans, rows.widths, rows.masks, strict=True)
        ):
            cache, end = caches[number], span.first + width
            assert end <= cache.max_len, f"cache of {cache.max_len} positions written up to {end}"
            alike = (cache.data.stride(), cache.data.dtype) == (data.stride(), data.dtype)
            assert alike, "the caches of a pass have different shapes"
            assert mask is None or mask.shape == (width, end), f"a mask {tuple(mask.shape)} at {span}"
            text.cache = cache.data[first, 0, span.slot].data_ptr() if first < last else None
            text.start, text.width, text.first, text.mask = span.first, width, at, _address(mask)
            text_of[at : at + width] = [number] * width
            at += width
        call = Pass(
            text=texts, text_of=ctypes.addressof(text_of), count=last - first, texts=len(texts), rows=count,
            hidden=c.hidden, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, eps=c.norm_eps,
            threads=torch.get_num_threads(), x=_address(given), y=out.data_ptr(), cos=cos.data_ptr(),
            sin=sin.data_ptr(), layer_stride=data.stride(0), values=data.stride(1), room=caches[0].max_len,
            kind=_KINDS[data.dtype],
        )  # fmt: skip
        call.layers = ctypes.cast(byref(self.pointers, first * ctypes.sizeof(LayerPointers)), POINTER(LayerPointers))
        needed = library.scratch_floats(byref(call))
        if self.scratch.numel() < needed:
            self.scratch = torch.empty(2 * needed)
        call.scratch = self.scratch.data_ptr()
        return Asked(call, out, (given, cos, sin, texts, text_of, rows.masks))


@dataclass(frozen=True)
class Asked:
    """A pass to be run."""

    call: Pass
    out: Tensor  # [.., d] float32
    kept: Any  # what the call points to


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
