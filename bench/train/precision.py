"""The number format of the products in training: bfloat16 where the processor multiplies it several times as fast."""

from __future__ import annotations

import torch

from bench.engine.decoder import Decoder
from bench.models.checkpoints import Checkpoint
from bench.models.loading import load_decoder


def chosen(asked: str, device: torch.device) -> torch.dtype:
    """Return the format that a setting stands for on a device."""
    if asked == "auto":
        return torch.bfloat16 if _is_faster(device) else torch.float32
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def reader(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, max_len: int) -> Decoder:
    """Return a decoder that reads and writes conversations: in float32 as runs do, else by torch.

    Raises:
        UserError: as `load_decoder`.

    """
    return load_decoder(checkpoint, device, dtype, max_len=max_len, layout=None if dtype == torch.float32 else "plain")


def _is_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def products(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return a context in which products round their inputs to `dtype`; weights and sums stay in float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
