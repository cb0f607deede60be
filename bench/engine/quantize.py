"""Q4_1, a GGUF format: groups of 32 weights, each a four-bit code times the group's scale, plus its least value.

Scale and least value are float32 here, in files float16: six bits a weight instead of five. Weights that come from a
Q4_1 file lie on such a grid already: taken apart again they are the same but for the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32
_MOST = 15  # the largest code


@dataclass(frozen=True)
class Q4:
    """A quantised matrix [n, k]: weight = scale * code + least."""

    codes: Tensor  # uint8 [n, k / 2]: per group 16 bytes, the low halves its first 16 codes, the high halves the rest
    scales: Tensor  # float32 [n, k / GROUP]
    least: Tensor  # float32 [n, k / GROUP]

    @classmethod
    def of(cls, weight: Tensor) -> Q4:
        """The nearest grid that spans each group; k must be a multiple of GROUP."""
        n, k = weight.shape
        groups = weight.float().view(n, k // GROUP, GROUP)
        least, most = groups.aminmax(dim=-1)
        scales = (most - least) / _MOST
        steps = (groups - least[..., None]) / scales[..., None]
        codes = steps.nan_to_num().round().clamp(0, _MOST).to(torch.uint8)  # a group of equal weights has no steps
        low, high = codes.chunk(2, dim=-1)
        return cls((low | high << 4).flatten(1).contiguous(), scales.contiguous(), least.contiguous())

    def plain(self) -> Tensor:
        """The weights, float32 [n, k]."""
        n, groups = self.scales.shape
        packed = self.codes.view(n, groups, GROUP // 2)
        codes = torch.cat((packed & 15, packed >> 4), dim=-1)
        return torch.addcmul(self.least[..., None], self.scales[..., None], codes.float()).flatten(1)

    @property
    def nbytes(self) -> int:
        """Bytes that a pass reads."""
        return self.codes.nbytes + self.scales.nbytes + self.least.nbytes
