"""Norm, rotary positions, attention and its masks, operation by operation, for any device.

Shapes: B sequences, n positions of this pass, S positions so far, H heads, H_kv heads of keys and values, G = H / H_kv,
D per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine import BLOCK

# Puts keys and values [B, n, 2 * H_kv, D] into a cache; returns all that attention looks at, [B, H_kv, S, D] each.
Write = Callable[[Tensor], tuple[Tensor, Tensor]]
Attention = Callable[[Tensor, Tensor], Tensor]  # q [B, n, H, D], new keys and values -> [B, n, H * D]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        if x.dtype == weight.dtype:
            return F.rms_norm(x, weight.shape, weight, eps)
        x = x.float()  # in training, products may be in fewer bits than weights: torch's own norm refuses to fuse these
    # The same in fewer operations: on a CPU torch's own is a chain of ten, and every layer has two norms.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (norm * norm / x.shape[-1] + eps).rsqrt() * weight


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, n, heads, D] by its positions' angles, cos and sin [(B,) n, heads, D] as `fused_rope` makes them."""
    # Swapping the halves is one operation where negating and joining them would be four.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotation(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The tables for `apply_rope` from the usual cosines and sines [positions, D]: the first half of sin negated."""
    low, high = sin.chunk(2, dim=-1)
    return cos, torch.cat((-low, high), dim=-1)


def fused_rope(cos: Tensor, sin: Tensor, turned: int, kept: int) -> tuple[Tensor, Tensor]:
    """Tables [.., n, D] per position -> tables [.., n, turned + kept, D] for all heads of a fused product.

    Queries and keys are rotated; values, the last `kept` heads, are not. Computed once per pass, this saves slicing and
    joining in every layer.
    """
    *rows, head_dim = cos.shape
    return (
        torch.cat((cos[..., None, :].expand(*rows, turned, head_dim), cos.new_ones(*rows, kept, head_dim)), dim=-2),
        torch.cat((sin[..., None, :].expand(*rows, turned, head_dim), sin.new_zeros(*rows, kept, head_dim)), dim=-2),
    )


def rope_table(hf_config: Any, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The tables for `apply_rope`, [length, D] each, with transformers' own scalings."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(hf_config)
    cos, sin = rotary(torch.empty(1, dtype=torch.float32), torch.arange(length)[None])
    cos, sin = rotation(cos[0], sin[0])
    return cos.to(device=device, dtype=dtype), sin.to(device=device, dtype=dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q [B, n, H, D] over k, v [B, H_kv, S, D] -> [B, n, H * D].

    `mask` [(B, 1,) G * n, S] is added to the scores (see `additive`; a boolean mask works too). None: every query
    attends to all keys (n = 1), or causally if n = S. But for the latter, the G query heads that share a key head are
    folded into its query positions, so that keys and values are read once and never repeated in memory.
    """
    batch, n, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    if mask is None and n > 1:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True, enable_gqa=heads != kv_heads)
    else:
        folded = q.transpose(1, 2).reshape(batch, kv_heads, -1, head_dim)  # [B, H_kv, G * n, D]
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).view(batch, heads, n, head_dim)
    return out.transpose(1, 2).reshape(batch, n, heads * head_dim)


def attend_to(write: Write, mask: Tensor | None, q: Tensor, kv: Tensor) -> Tensor:
    """Attention over what `write` gives once new keys and values are in the cache."""
    keys, values = write(kv)
    return attend(q, keys, values, mask)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is True, -inf elsewhere: computed once per pass, where attention would do it in every layer."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def block_mask(group: int, max_len: int, device: torch.device) -> Tensor:
    """[G, BLOCK, max_len + BLOCK]: row i attends to columns c <= max_len + i; a slice is the mask at any start."""
    rows = torch.arange(BLOCK, device=device)[:, None] + max_len
    return (torch.arange(max_len + BLOCK, device=device) <= rows).expand(group, -1, -1)
