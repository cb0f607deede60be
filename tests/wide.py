"""A tiny model wide enough for drafts in eight bits, which need groups of 32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig

from bench.engine.decoder import Decoder

D = 64


def wide_config() -> LlamaConfig:
    """Four layers of D."""
    return LlamaConfig(
        vocab_size=272, hidden_size=D, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip


@torch.no_grad()
def make_faint(model: Any) -> None:
    """Scale all layers but the first down: the states after it then often suffice to guess the next token."""
    for layer in model.model.layers[1:]:
        layer.self_attn.o_proj.weight.mul_(0.15)
        layer.mlp.down_proj.weight.mul_(0.15)


def target_of(model: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    """Our decoder of a model."""
    weights = ((name, tensor.to(dtype)) for name, tensor in model.state_dict().items())
    return Decoder.from_weights(model.config, weights, dtype=dtype, max_len=256, name="tiny", **options)
