"""What limits a forward pass: its products alone, the arithmetic peak of the device, and the share of both limits.

The roofline model: Williams, Waterman & Patterson, Communications of the ACM 52(4), 2009, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.engine.decoder import Decoder
from bench.engine.products import Linear
from bench.engine.timing import least_s
from bench.figures.engine_record import Shares

# Rows and columns of the matrices whose product gives the peak: they stay in the processor's caches.
_SIZE = {"cpu": 1024, "cuda": 8192}


def operations(target: Decoder) -> int:
    """Multiplications and additions of a token in the products; attention, which grows with the context, apart."""
    return 2 * sum(matrix.out_features * matrix.in_features for matrix in target.products)


def products(target: Decoder, n: int) -> Callable[[], object]:
    """A call of all products of a pass over n tokens, by the kernels of passes and with all else prepared."""
    inputs: dict[tuple[int, torch.device], Tensor] = {}
    calls = []
    homes = [*(home for home in target.homes for _ in range(4)), target.device]
    for matrix, home in zip(target.products, homes, strict=True):
        key = matrix.in_features, home
        if key not in inputs:
            inputs[key] = torch.randn(n, matrix.in_features, device=home).to(target.dtype)
        calls.append(matrix.prepared(inputs[key]))

    def run() -> None:
        for call in calls:
            call()

    return run


def arithmetic(target: Decoder, repeats: int) -> dict[str, float]:
    """Operations (1e9) per second of large products in the precision of `target`, by what multiplies.

    The greatest is taken as the peak. Quantised: products of whole numbers, by our kernels and by torch.
    """
    size, dtype = _SIZE[target.device.type], target.dtype
    x, weight = (torch.randn(size, size, device=target.device).to(dtype) for _ in range(2))
    kind = str(dtype).removeprefix("torch.")
    calls: dict[str, Callable[[], object]] = {}
    if target.quantize == "none":
        calls[f"torch, {kind}"] = lambda: x @ weight
    elif hasattr(torch, "_int_mm"):  # torch has no public product of eight-bit integers
        codes = [torch.randint(-127, 128, (size, size), dtype=torch.int8) for _ in range(2)]
        calls["torch, int8"] = lambda: torch._int_mm(*codes)
    if target.layout == "native":
        for grid in ("none",) if target.quantize == "none" else (target.quantize, "q8"):
            name = kind if grid == "none" else grid
            calls[f"our kernels, {name}"] = Linear(weight, layout="native", quantize=grid).prepared(x)
    seconds = least_s(list(calls.values()), repeats, target.device)
    return {name: 2 * size**3 / s / 1e9 for name, s in zip(calls, seconds, strict=True)}


def shares(found: Mapping[str, Any], kind: str) -> dict[str, Shares]:
    """What share of both limits the `passes` or the `products` reach, by tokens."""
    peak, read = max(found["arithmetic"].values()), found["memory"]["read_gb_s"]
    weight_gb, per_token = found["vanilla"]["weight_bytes"] / 1e9, found["operations"]
    return {
        n: {
            "bandwidth": weight_gb / (ms / 1e3) / read,
            "arithmetic": per_token * int(n) / 1e9 / (ms / 1e3) / peak,
        }
        for n, ms in found[kind].items()
    }
