"""Static keys and values: allocated once, written at explicit positions, cut back by forgetting."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.engine.places import Places


class KVCache:
    """Keys and values of `layers` layers for `batch` sequences in lock-step.

    The cache holds no length: every pass names the position where it starts, writes there, and reads everything
    before. Cutting back to n positions therefore means that the next pass starts at n; rows beyond are stale, count
    for nothing, and are overwritten in time. (Captured passes look at them and mask them: they must be finite.)
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        max_len: int,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        homes: Sequence[torch.device] = (),
    ):
        """`homes`: the device of each layer; none: `device`."""
        self.max_len = max_len
        self.captured: dict[Hashable, dict[int, Any]] = {}  # passes that write here, by width: see `graphs`
        self._parts = []  # [layers, 2, B, H_kv, S, D]: neighbours on one device. One copy writes keys and values.
        for home, own in itertools.groupby(homes or [torch.device(device)] * layers):
            # On a CPU empty, not zeros: pages that no answer reaches are then never touched. Elsewhere, and where
            # sequences stand apart, passes look at rows that they mask, which must be finite.
            make = torch.empty if home.type == "cpu" and batch == 1 else torch.zeros
            shape = (len(list(own)), 2, batch, kv_heads, max_len, head_dim)
            self._parts.append(make(shape, dtype=dtype, device=home))
        self._layers = [layer for part in self._parts for layer in part]  # [2, B, H_kv, S, D] each

    @property
    def data(self) -> Tensor:
        """[L, 2, B, H_kv, S, D], where all layers are on one device."""
        (only,) = self._parts
        return only

    @property
    def keys(self) -> Tensor:
        """[L, B, H_kv, S, D]."""
        return self.data[:, 0]

    @property
    def values(self) -> Tensor:
        """[L, B, H_kv, S, D]."""
        return self.data[:, 1]

    @property
    def bytes_per_position(self) -> int:
        """What one position of one sequence takes."""
        return sum(part[:, :, :1, :, :1].numel() * part.element_size() for part in self._parts)

    def zero(self) -> None:
        """Clear all rows, which then lie in memory of their own."""
        for part in self._parts:
            part.zero_()

    def update(self, layer: int, places: Places, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, n, 2 * H_kv, D] at their places.

        Returns the keys and values of these sequences up to the last row written, [B, H_kv, end, D] each.
        """
        assert places.end <= self.max_len, f"cache of {self.max_len} positions written up to {places.end}"
        store, stored, span = self._layers[layer], _as_stored(kv), places.together
        if span is not None:
            store[:, : places.batch].narrow(3, span.first, places.width).copy_(stored)
            keys, values = store[:, : places.batch].narrow(3, 0, places.end).unbind(0)
            return keys, values
        for number, one in enumerate(places.spans):
            store[:, one.slot, :, one.first : one.first + places.width] = stored[:, number]
        keys, values = store[:, [one.slot for one in places.spans], :, : places.end].unbind(0)
        return keys, values

    def update_rows(self, layer: int, rows: Tensor, kv: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, n, 2 * H_kv, D] at the positions `rows` [n], a tensor, so that they may change.

        Returns the keys and values of the first `length` positions, [B, H_kv, length, D] each.
        """
        store = self._layers[layer]
        store.index_copy_(3, rows, _as_stored(kv))
        keys, values = store.narrow(3, 0, length).unbind(0)
        return keys, values

    def keep_path(self, start: int, path: Sequence[int]) -> None:
        """Of a tree written from position `start` on, the root's row first, keep the drafts of `path`.

        Their rows move together behind the root's; drafts are numbered from 0.
        """
        if list(path) != list(range(len(path))):
            rows = torch.tensor([start + 1 + draft for draft in path])
            for part in self._parts:
                part[..., start + 1 : start + 1 + len(path), :] = part[..., rows.to(part.device), :]

    def keep(self, sequences: Sequence[int], length: int) -> None:
        """Go on with some of the sequences, given in rising order; of each, the first `length` positions."""
        assert list(sequences) == sorted(sequences), "sequences must be given in rising order"
        for part in self._parts:
            for new, old in enumerate(sequences):
                if old != new:
                    part[:, :, new, :, :length] = part[:, :, old, :, :length]
        self._parts = [part[:, :, : len(sequences)] for part in self._parts]
        self._layers = [layer for part in self._parts for layer in part]


def _as_stored(kv: Tensor) -> Tensor:
    """Keys and values [B, n, 2 * H_kv, D] -> [2, B, H_kv, n, D]."""
    batch, n, heads, head_dim = kv.shape
    return kv.view(batch, n, 2, heads // 2, head_dim).permute(2, 0, 3, 1, 4)
