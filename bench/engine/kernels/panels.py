"""How the kernels store a matrix: in panels of 16 rows, see panels.h and integers.h."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.quantize import GROUP, Q4, Q8

PANEL = 16


@dataclass(frozen=True)
class Panels:
    """A matrix [n, k], stored for the kernels."""

    shape: tuple[int, int]
    paired: bool  # two matrices of n / 2 rows each, whose panels take turns
    grid: type[Q4] | type[Q8] | None  # None: the weights themselves
    weights: Tensor
    scales: Tensor | None = None

    @classmethod
    def of(cls, matrix: Tensor | Q4 | Q8, *, paired: bool = False) -> Panels:
        """Store float32 or bfloat16 weights, or codes."""
        if isinstance(matrix, Tensor):
            return cls(_shape(matrix), paired, None, _by_panels(matrix, paired).transpose(1, 2).contiguous())
        codes, scales = _by_panels(matrix.codes, paired), _by_panels(matrix.scales, paired)
        if isinstance(matrix, Q8):
            packed = codes.unflatten(2, (-1, GROUP // 4, 4)).permute(0, 2, 3, 1, 4)
            return cls(_shape(matrix.codes), paired, Q8, packed.contiguous(), scales.transpose(1, 2).contiguous())
        low, high = codes.unflatten(2, (-1, GROUP // 8, 2, 4)).unbind(4)
        packed = (low | high << 4).permute(0, 2, 3, 1, 4)
        both = torch.stack((scales, _by_panels(matrix.least, paired)), dim=1).permute(0, 3, 1, 2)
        return cls(_shape(matrix.codes), paired, Q4, packed.contiguous(), both.contiguous())

    def plain(self) -> Tensor:
        """The weights [n, k]; of codes in float32."""
        if self.grid is None:
            return self._rows(self.weights.transpose(1, 2))
        assert self.scales is not None
        codes = self.weights.permute(0, 3, 1, 2, 4)
        if self.grid is Q8:
            return Q8(self._rows(codes.flatten(2)), self._rows(self.scales.transpose(1, 2))).plain()
        codes = torch.stack((codes & 15, codes >> 4), dim=4).flatten(2)
        scales, least = self.scales.permute(2, 0, 3, 1)
        return Q4(self._rows(codes), self._rows(scales), self._rows(least)).plain()

    @property
    def nbytes(self) -> int:
        """Bytes that a pass reads."""
        return self.weights.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def _rows(self, panels: Tensor) -> Tensor:
        """Undo `_by_panels`."""
        halves = 1 + self.paired
        separate = panels.unflatten(0, (-1, halves)).transpose(0, 1).flatten(1, 2)
        return separate[:, : self.shape[0] // halves].flatten(0, 1)


def _by_panels(values: Tensor, paired: bool) -> Tensor:
    """[n, ..] -> [panels, PANEL, ..], each half padded with rows of zeros."""
    halves = values.unflatten(0, (1 + paired, -1))
    padded = F.pad(halves, (0, 0, 0, -halves.shape[1] % PANEL))
    return padded.unflatten(1, (-1, PANEL)).transpose(0, 1).flatten(0, 1)


def _shape(values: Tensor) -> tuple[int, int]:
    rows, columns = values.shape
    return rows, columns
