"""Static keys and values: allocated once, written at explicit positions, cut back by forgetting."""

from __future__ import annotations

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
        shape = (layers, batch, kv_heads, max_len, head_dim)
        # Empty, not zeros: pages that no answer reaches are then never touched.
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # [L, B, H_kv, S, D]
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.max_len = max_len

    def update(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, H_kv, n, D] at positions start..start+n and return all up to there, [B, H_kv, start+n, D]."""
        end = start + k.shape[2]
        assert end <= self.max_len, f"cache of {self.max_len} positions written up to {end}"
        self.keys[layer, :, :, start:end] = k
        self.values[layer, :, :, start:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes
