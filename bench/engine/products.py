"""How products are run on this device: by our own kernels where they are (see `kernels.native`), else by torch."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.kernels import native
from bench.engine.quantize import Q4

Layout = Literal["plain", "native"]


class Linear:
    """y = x W^T + b for x [..., n_in], by the weights' layout. Inference only.

    plain: torch's product. native: narrow inputs by our own kernels, which read W as it is, wide ones by torch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, layout: Layout = "plain", quantize: str = "none"):
        """`quantize` (q4, bfloat16) needs the native layout; then W is what is stored so, for wide inputs too."""
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.layout = layout
        self.weight = weight.contiguous()
        self.product: native.Product | None = None
        self.nbytes = weight.nbytes  # that a narrow pass reads
        if quantize != "none":
            assert layout == "native", f"{quantize} weights in the {layout} layout"
            stored = Q4.of(weight) if quantize == "q4" else weight.bfloat16()
            self.weight = stored.plain() if isinstance(stored, Q4) else stored.to(weight.dtype)
            self.product, self.nbytes = native.Product(stored, bias), stored.nbytes
        elif layout == "native":
            self.product = native.Product(self.weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x [..., n_in] -> [..., n_out]."""
        if self.product is not None and self._is_narrow(x):
            return self.product(x)
        return F.linear(x, self.weight, self.bias)

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + apply to x; but for plain, in one operation."""
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
    return "plain"
