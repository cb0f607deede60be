"""Static keys and values: allocated once, written at explicit positions, cut back by forgetting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Keys and values of `layers` layers for `batch` sequences in lock-step.

    The cache holds no length: every pass names the position where it starts, writes there, and reads everything
    before. Cutting back to n positions therefore means that the next pass starts at n; rows beyond are stale, never
    read, and overwritten in time.
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
    ):
        # Empty, not zeros: pages that no answer reaches are then never touched. Keys and values lie together, so that
        # one copy writes both.
        shape = (layers, 2, batch, kv_heads, max_len, head_dim)
        self.data = torch.empty(shape, dtype=dtype, device=device)
        self.max_len = max_len
        self._layers = list(self.data)  # [2, B, H_kv, S, D] each

    @property
    def keys(self) -> Tensor:
        """[L, B, H_kv, S, D]."""
        return self.data[:, 0]

    @property
    def values(self) -> Tensor:
        """[L, B, H_kv, S, D]."""
        return self.data[:, 1]

    def update(self, layer: int, start: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, n, 2 * H_kv, D] at positions start..start+n.

        Returns all keys and all values up to there, [B, H_kv, start + n, D] each.
        """
        batch, n, heads, head_dim = kv.shape
        assert start + n <= self.max_len, f"cache of {self.max_len} positions written up to {start + n}"
        store = self._layers[layer]
        store.narrow(3, start, n).copy_(kv.view(batch, n, 2, heads // 2, head_dim).permute(2, 0, 3, 1, 4))
        keys, values = store.narrow(3, 0, start + n).unbind(0)
        return keys, values

    def keep_path(self, start: int, path: Sequence[int]) -> None:
        """Of a tree written from position `start` on, the root's row first, keep the drafts of `path`.

        Their rows move together behind the root's; drafts are numbered from 0.
        """
        if list(path) != list(range(len(path))):
            rows = torch.tensor([start + 1 + draft for draft in path], device=self.data.device)
            self.data[..., start + 1 : start + 1 + len(path), :] = self.data[..., rows, :]

    def keep(self, sequences: Sequence[int], length: int) -> None:
        """Go on with some of the sequences, given in rising order; of each, the first `length` positions."""
        for new, old in enumerate(sequences):
            assert old >= new, "sequences must be given in rising order"
            if old != new:
                self.data[:, :, new, :, :length] = self.data[:, :, old, :, :length]
        self.data = self.data[:, :, : len(sequences)]
        self._layers = list(self.data)
