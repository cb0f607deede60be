"""One pass over the rows of several sequences, each with its own number of rows, position and cache.

Products see the rows of all sequences at once: their weights are read once for all. Attention is each sequence's own.
Where kernels run, a row's result has the same bits as in a pass of its sequence alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.engine.attention import attend
from bench.engine.cache import KVCache
from bench.engine.kernels import native
from bench.engine.places import Places

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder

MOST_ROWS = 256  # of a pass by kernels: wider ones gain nothing


@dataclass(frozen=True)
class Part:
    """The rows of one sequence."""

    places: Places  # of one sequence
    cache: KVCache

    @property
    def width(self) -> int:
        """The number of rows."""
        return self.places.width


def for_batch(target: Decoder, sequences: int) -> Decoder:
    """The same decoder for methods that decode so many sequences at once: costs are then measured for these."""
    other = copy.copy(target)
    other.sequences = sequences
    return other


def joined(states: Sequence[Tensor]) -> Tensor:
    """[1, n, d] each, one after another."""
    return states[0] if len(states) == 1 else torch.cat(list(states), dim=1)


def run_joined(target: Decoder, x: Tensor, parts: Sequence[Part], first: int = 0, last: int | None = None) -> Tensor:
    """Layers [first, last) over x [1, n, d], the rows of all parts one after another."""
    last = target.config.layers if last is None else last
    if len(parts) == 1:
        return target.run_layers(x, parts[0].places, parts[0].cache, first, last)
    pieces = list(x.split([part.width for part in parts], dim=1))
    for group in _groups(target, parts):
        of, rows = [parts[i] for i in group], torch.cat([pieces[i] for i in group], dim=1)
        if len(of) == 1:
            done = target.run_layers(rows, of[0].places, of[0].cache, first, last)
        elif target.native_layers is not None:
            places = native.Rows.of([part.places for part in of], target.cos, target.sin)
            done = target.native_layers.run(rows, places, [part.cache for part in of], (first, last))
        else:
            done = _by_operations(target, rows, of, first, last)
        if len(group) == len(parts):
            return done
        for i, piece in zip(group, done.split([part.width for part in of], dim=1), strict=True):
            pieces[i] = piece
    return torch.cat(pieces, dim=1)


def _groups(target: Decoder, parts: Sequence[Part]) -> Iterator[list[int]]:
    """Parts that run together, by number. Of kernels, a wide one runs alone, as it does in a batch of one."""
    group: list[int] = []
    rows = 0
    for i, part in enumerate(parts):
        if target.native_layers is not None and part.width > native.NARROW:
            yield [i]
            continue
        if target.native_layers is not None and rows + part.width > MOST_ROWS:
            yield group
            group, rows = [], 0
        group.append(i)
        rows += part.width
    if group:
        yield group


def _by_operations(target: Decoder, x: Tensor, parts: Sequence[Part], first: int, last: int) -> Tensor:
    """The same operation by operation, for any device."""
    tables = [target.rope_and_mask(part.places) for part in parts]
    rope = [torch.cat([_rows(table[side]) for table, _ in tables]) for side in (0, 1)]
    masks = [mask for _, mask in tables]
    widths, home = [part.width for part in parts], x.device

    def attention(q: Tensor, kv: Tensor) -> Tensor:
        attended = [
            attend(some, *part.cache.update(layer, part.places, new), mask)
            for some, new, part, mask in zip(q.split(widths, 1), kv.split(widths, 1), parts, masks, strict=True)
        ]
        return torch.cat(attended, dim=1)

    for layer in range(first, last):
        if home != target.homes[layer]:
            home = target.homes[layer]
            x, rope = x.to(home), [table.to(home) for table in rope]
            masks = [None if mask is None else mask.to(home) for mask in masks]
        x = target.run_layer(target.layers[layer], x, (rope[0], rope[1]), attention)
    return x.to(target.device)


def _rows(table: Tensor) -> Tensor:
    """Tables [(1,) n, heads, D] -> [n, heads, D]."""
    return table.flatten(0, -3)
