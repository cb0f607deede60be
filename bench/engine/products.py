"""How products are run on this device: by our own kernels, on plain or on packed weights, and how wide.

Where our kernels are missing (see `native`), weights packed once into oneDNN's blocked layout are read up to twice as
fast by passes over one or a few positions, and a pass over four positions can cost *less* than one over one. Whatever
is chosen serves every method, vanilla included. The two operators are what Inductor itself emits for frozen weights,
but they are not public: they are tried once, and the plain product is used, and recorded, where they are missing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.kernels import native
from bench.engine.quantize import Q4
from bench.engine.timing import interleaved

# What oneDNN lays the weights out for. Other row counts remain correct; 16 was best or equal for all of 1..64.
_PACK_ROWS = 16
# A wider pass must be this much cheaper before it replaces a narrower one: timings of a few ms are noisy.
_WORTHWHILE = 0.95
MAX_PADDED_WIDTH = 8


Layout = Literal["plain", "packed", "native"]


class Linear:
    """y = x W^T + b for x [..., n_in], by the weights' layout. Inference only.

    plain: torch's product. packed: W in oneDNN's layout. native: narrow inputs by our own kernels (see `native`), which
    read W as it is, wide ones by torch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, layout: Layout = "plain", quantize: str = "none"):
        """`quantize` (q4, bfloat16) needs the native layout; then W is what is stored so, for wide inputs too."""
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.layout = layout
        self.weight = weight.contiguous()
        self.product: native.Product | None = None
        self.nbytes = weight.nbytes  # that a narrow pass reads
        if layout == "packed":
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        elif quantize != "none":
            assert layout == "native", f"{quantize} weights in the {layout} layout"
            stored = Q4.of(weight) if quantize == "q4" else weight.bfloat16()
            self.weight = stored.plain() if isinstance(stored, Q4) else stored.to(weight.dtype)
            self.product, self.nbytes = native.Product(stored, bias), stored.nbytes
        elif layout == "native":
            self.product = native.Product(self.weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x [..., n_in] -> [..., n_out]."""
        if self.layout == "packed":
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        if self.product is not None and self._is_narrow(x):
            return self.product(x)
        return F.linear(x, self.weight, self.bias)

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + apply to x; but for plain, in one operation."""
        if self.layout == "packed":
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
            return out
        if self.product is not None and self._is_narrow(x):
            return self.product(x, residual)
        return residual + F.linear(x, self.weight, self.bias)

    def by_torch(self) -> Linear:
        """The same product without our own kernels."""
        other = copy.copy(self)
        other.product = None
        return other

    def _is_narrow(self, x: Tensor) -> bool:
        return x.numel() <= native.MOST_POSITIONS * self.in_features


def choose_layout(dtype: torch.dtype, device: torch.device) -> Layout:
    """The fastest layout that this machine has for `dtype`."""
    if device.type == "cpu" and dtype in native.DTYPES and native.kernels() is not None:
        return "native"
    return "packed" if can_pack(dtype, device) else "plain"


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this build of torch and this processor can pack weights of `dtype`, found by trying."""
    if device.type != "cpu":
        return False
    weight = torch.eye(32, dtype=dtype)
    try:
        packed = Linear(weight, layout="packed")
        out, doubled = packed(weight[:3]), packed.plus(weight[:3], weight[:3])
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.equal(out, weight[:3]) and torch.equal(doubled, 2 * weight[:3])


def measure_widths(linears: Sequence[Linear], dtype: torch.dtype, repeats: int = 7) -> dict[int, int]:
    """The cheapest width at which to run a pass over n = 1..MAX_PADDED_WIDTH positions, by trying on `linears`.

    `linears` should be the matrices of several whole layers, more than the caches hold, as a real pass reads them.
    Returns n -> width >= n; the surplus rows are padding.
    """
    widths = range(1, MAX_PADDED_WIDTH + 1)
    inputs = {(w, n): torch.randn(w, n).to(dtype) for w in widths for n in {lin.in_features for lin in linears}}

    def run(width: int) -> Callable[[], None]:
        def call() -> None:
            for linear in linears:
                linear(inputs[width, linear.in_features])

        return call

    times = interleaved([run(width) for width in widths], repeats, torch.device("cpu"))
    cost_s = {width: min(own) for width, own in zip(widths, times, strict=True)}
    return {n: _cheapest(n, cost_s) for n in widths}


def _cheapest(n: int, cost_s: dict[int, float]) -> int:
    best = min((w for w in cost_s if w >= n), key=lambda w: cost_s[w])
    return best if cost_s[best] < _WORTHWHILE * cost_s[n] else n
