"""How products are run on this device: by our own kernels where there are some, else by torch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.kernels import native
from bench.engine.kernels.panels import Panels
from bench.engine.quantize import GRIDS
from bench.engine.weights import Joined

Layout = Literal["plain", "native"]


class Linear:
    """y = x W^T + b for x [..., n_in]. Inference only.

    plain: W as it is, torch's product. native: W in panels, our own kernels.
    """

    def __init__(
        self,
        weight: Tensor | Joined,
        bias: Tensor | None = None,
        *,
        layout: Layout = "plain",
        quantize: str = "none",
        paired: bool = False,
    ):
        """`quantize` (q4, q8) needs the native layout. `paired`: W is two matrices, such as an MLP's gate and up."""
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.layout = layout
        self.paired = paired
        self.product: native.Product | None = None
        self._stored: Tensor | Panels
        if layout == "native":
            self._stored = Panels.of(weight, GRIDS.get(quantize), paired=paired, vnni=native.rounds_inputs())
            self.product = native.Product(self._stored, bias)
        else:
            assert quantize == "none", f"{quantize} weights in the {layout} layout"
            self._stored = weight.contiguous() if isinstance(weight, Tensor) else weight.whole()

    @property
    def weight(self) -> Tensor:
        """W [n_out, n_in]; in the native layout a copy, of codes in float32."""
        return self._stored.plain() if isinstance(self._stored, Panels) else self._stored

    def rows(self, numbers: Tensor) -> Tensor:
        """Some rows of W, [len(numbers), n_in]; as `weight`, but without a copy of all."""
        return self._stored.rows(numbers) if isinstance(self._stored, Panels) else self._stored[numbers]

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self._stored.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x [..., n_in] -> [..., n_out]."""
        return F.linear(x, self.weight, self.bias) if self.product is None else self.product(x)

    def prepared(self, x: Tensor) -> Callable[[], Tensor]:
        """A call of the product with x that can be repeated, with as little around it as there can be."""
        return functools.partial(self, x) if self.product is None else self.product.prepared(x)

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + apply to x."""
        return residual + self(x) if self.product is None else self.product(x, residual)

    def by_torch(self) -> Linear:
        """The same product by torch, slower: W is put together anew for each."""
        other = copy.copy(self)
        other.product = None
        return other


def choose_layout(dtype: torch.dtype, device: torch.device) -> Layout:
    """The fastest layout that this machine has for `dtype`."""
    if device.type == "cpu" and dtype in native.DTYPES and native.kernels() is not None:
        return "native"
    return "plain"
