"""How the kernels store a matrix: in panels of 16 rows, see panels.h and integers.h."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.quantize import GROUP, Q4, Q8

PANEL = 16
BLOCK_NUMBERS = 1 << 20  # of a matrix that are converted at a time: they stay in the processor's cache


class Matrix(Protocol):
    """Weights [n, k], by blocks of rows."""

    @property
    def shape(self) -> torch.Size:
        """n and k."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Rows [start, stop)."""


@dataclass(frozen=True)
class Panels:
    """A matrix [n, k], stored for the kernels."""

    shape: tuple[int, int]
    paired: bool  # two matrices of n / 2 rows each, whose panels take turns
    grid: type[Q4] | type[Q8] | None  # None: the weights themselves
    vnni: bool  # the layout for products of two inputs at a time: the weights of two neighbours lie side by side
    weights: Tensor
    scales: Tensor | None = None

    @classmethod
    def of(
        cls, matrix: Matrix, grid: type[Q4] | type[Q8] | None = None, *, paired: bool = False, vnni: bool = False
    ) -> Panels:
        """Store float32 or bfloat16 weights, or their codes on a grid. `vnni`: so are bfloat16 weights.

        This is done a block of rows at a time, so that memory holds no second copy of the matrix.
        """
        halves, (outputs, inputs) = 1 + paired, matrix.shape
        rows = outputs // halves
        vnni = vnni and grid is None and matrix[0:1].dtype == torch.bfloat16
        panels, block = -(-rows // PANEL), max(1, BLOCK_NUMBERS // (PANEL * inputs))
        made: list[Tensor] = []
        for half, first in itertools.product(range(halves), range(0, panels, block)):
            begin = half * rows
            taken = matrix[begin + first * PANEL : begin + min((first + block) * PANEL, rows)]
            for i, piece in enumerate(_packed(taken, grid, vnni=vnni)):
                if i == len(made):
                    made.append(piece.new_empty((halves * panels, *piece.shape[1:])))
                made[i][half::halves][first : first + block] = piece
        return cls((outputs, inputs), paired, grid, vnni, *made)

    def plain(self) -> Tensor:
        """The weights [n, k]; of codes in float32."""
        made = torch.empty(self.shape, dtype=torch.float32 if self.grid else self.weights.dtype)
        halves, (outputs, inputs) = 1 + self.paired, self.shape
        rows, block = outputs // halves, max(1, BLOCK_NUMBERS // (PANEL * inputs))
        for half, first in itertools.product(range(halves), range(0, len(self.weights) // halves, block)):
            panels = slice(half + halves * first, half + halves * (first + block), halves)
            scales = None if self.scales is None else self.scales[panels].movedim(-1, 1).flatten(0, 1)
            found = self._decoded(self.weights[panels].movedim(self._row, 1).flatten(0, 1), scales)
            to = made[half * rows : (half + 1) * rows][first * PANEL : (first + block) * PANEL]
            to.copy_(found[: len(to)])
        return made

    def rows(self, numbers: Tensor) -> Tensor:
        """Some rows of the weights, [len(numbers), k]; of codes in float32."""
        halves = 1 + self.paired
        half, number = numbers // (self.shape[0] // halves), numbers % (self.shape[0] // halves)
        panels, within = number // PANEL * halves + half, number % PANEL
        scales = None if self.scales is None else self.scales.movedim(-1, 1)[panels, within]
        return self._decoded(self.weights.movedim(self._row, 1)[panels, within], scales)

    @property
    def _row(self) -> int:
        """The dimension of a panel's rows."""
        return 2 if self.grid is None else 3

    def _decoded(self, weights: Tensor, scales: Tensor | None) -> Tensor:
        """Rows [m, ..] as they are in panels -> [m, k]."""
        if self.grid is None:
            return weights.flatten(1)[:, : self.shape[1]]
        assert scales is not None
        if self.grid is Q8:
            return Q8(weights.flatten(1), scales).plain()
        return Q4(torch.stack((weights & 15, weights >> 4), dim=3).flatten(1), *scales.unbind(-1)).plain()

    @property
    def nbytes(self) -> int:
        """Bytes that a pass reads."""
        return self.weights.nbytes + (0 if self.scales is None else self.scales.nbytes)


def _packed(rows: Tensor, grid: type[Q4] | type[Q8] | None, *, vnni: bool) -> list[Tensor]:
    """Rows in panels, the last one padded with zeros: weights [panels, k, PANEL], or codes and scales.

    `vnni`: weights [panels, k / 2, PANEL, 2], an odd k padded with zeros.
    """
    if vnni:
        return [_by_panels(F.pad(rows, (0, rows.shape[1] % 2))).unflatten(2, (-1, 2)).transpose(1, 2)]
    if grid is None:
        return [_by_panels(rows).transpose(1, 2)]
    coded = grid.of(rows)
    codes, scales = _by_panels(coded.codes), _by_panels(coded.scales)
    if isinstance(coded, Q8):
        return [codes.unflatten(2, (-1, GROUP // 4, 4)).permute(0, 2, 3, 1, 4), scales.transpose(1, 2)]
    low, high = codes.unflatten(2, (-1, GROUP // 8, 2, 4)).unbind(4)
    both = torch.stack((scales, _by_panels(coded.least)), dim=1)
    return [(low | high << 4).permute(0, 2, 3, 1, 4), both.permute(0, 3, 1, 2)]


def _by_panels(values: Tensor) -> Tensor:
    """[n, ..] -> [panels, PANEL, ..]."""
    if short := -len(values) % PANEL:
        values = F.pad(values, (0, 0, 0, short))
    return values.unflatten(0, (-1, PANEL))
