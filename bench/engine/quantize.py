"""Weights of four and eight bits on the grids of GGUF's Q4_1 and Q8_0: groups of 32 that share a float16 scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32


@dataclass(frozen=True)
class Q4:
    """A matrix [n, k] as Q4_1: weight = scale * code + least."""

    codes: Tensor  # uint8 [n, k], 0..15
    scales: Tensor  # float16 [n, k / GROUP]
    least: Tensor  # float16 [n, k / GROUP]

    @classmethod
    def of(cls, weight: Tensor) -> Q4:
        """The nearest codes on a grid that spans each group; k must be a multiple of GROUP."""
        groups = _groups(weight)
        least, most = groups.aminmax(dim=-1)
        scales = ((most - least) / 15).half()
        least = least.half()
        steps = (groups - least[..., None].float()) / scales[..., None].float()
        codes = steps.nan_to_num(0, 15, 0).round().clamp(0, 15)  # a group of equal weights has no steps
        return cls(codes.to(torch.uint8).flatten(1), scales, least)

    def plain(self) -> Tensor:
        """The weights, float32 [n, k]."""
        return torch.addcmul(
            self.least[..., None].float(), self.scales[..., None].float(), _groups(self.codes)
        ).flatten(1)


@dataclass(frozen=True)
class Q8:
    """A matrix [n, k] as Q8_0: weight = scale * code."""

    codes: Tensor  # int8 [n, k], -127..127
    scales: Tensor  # float16 [n, k / GROUP]

    @classmethod
    def of(cls, weight: Tensor) -> Q8:
        """The nearest codes on a grid that spans each group; k must be a multiple of GROUP."""
        groups = _groups(weight)
        scales = (groups.abs().amax(dim=-1) / 127).half()
        codes = (groups / scales[..., None].float()).nan_to_num(0, 127, -127).round().clamp(-127, 127)
        return cls(codes.to(torch.int8).flatten(1), scales)

    def plain(self) -> Tensor:
        """The weights, float32 [n, k]."""
        return (self.scales[..., None].float() * _groups(self.codes)).flatten(1)


GRIDS: dict[str, type[Q4] | type[Q8]] = {"q4": Q4, "q8": Q8}


def _groups(values: Tensor) -> Tensor:
    """[n, k] -> float32 [n, k / GROUP, GROUP]."""
    return values.float().unflatten(1, (-1, GROUP))
