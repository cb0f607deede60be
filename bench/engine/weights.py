"""What a decoder is made of: its dimensions out of a configuration, and its weights out of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.errors import UserError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
# RoPE variants whose table does not depend on the length of the text at hand.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class DecoderConfig:
    """The dimensions of a Llama-family decoder."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    context: int  # positions that the model was made for
    tied: bool  # the LM head is the embedding
    qk_norm: bool

    @classmethod
    def from_hf(cls, config: Any) -> DecoderConfig:
        """Read a transformers configuration.

        Raises:
            UserError: not a decoder of the Llama family, or a feature of one that the engine does not have.

        """
        kind = config.model_type
        if kind not in SUPPORTED:
            raise UserError(f"model type {kind!r} is not supported; supported: {', '.join(SUPPORTED)}")
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope not in _STATIC_ROPE:
            raise UserError(f"RoPE scaling {rope!r} is not supported; supported: {', '.join(_STATIC_ROPE)}")
        if config.hidden_act != "silu":
            raise UserError(f"activation {config.hidden_act!r} is not supported; supported: silu")
        context = config.max_position_embeddings
        window = getattr(config, "sliding_window", None)
        if window and getattr(config, "use_sliding_window", True):
            # Within one window, sliding attention is full attention; beyond it the engine does not go.
            context = min(context, window)
        return cls(
            model_type=kind,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocab=config.vocab_size,
            norm_eps=config.rms_norm_eps,
            context=context,
            tied=config.tie_word_embeddings,
            qk_norm=kind == "qwen3",
        )


def sizes(named: dict[str, Tensor], config: DecoderConfig, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of a layer's weights, the number of layers, and bytes of all other weights."""
    inside = sum(tensor.numel() for name, tensor in named.items() if name.startswith("layers."))
    outside = sum(tensor.numel() for tensor in named.values()) - inside
    return -(-inside // config.layers) * dtype.itemsize, config.layers, outside * dtype.itemsize


class Taker:
    """Takes weights by name, each once, checked, on the device and in the dtype of the run.

    What was taken is let go, so that a model need not fit into memory twice.
    """

    def __init__(self, named: dict[str, Tensor], dtype: torch.dtype, device: torch.device):
        self.named, self.dtype, self.device = named, dtype, device

    def rows(self, name: str) -> int:
        """Rows of a weight that is still there."""
        return self._get(name).shape[0]

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Take a weight of this shape.

        Raises:
            UserError: it is missing, or of another shape.

        """
        tensor = self._get(name)
        del self.named[name]
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"weight {name!r} has shape {tuple(tensor.shape)}, but the model's config.json asks for {shape}: "
                "the checkpoint and its configuration do not belong together"
            )
        # A copy even where nothing has to change: a file's own pages are small ones, and read more slowly.
        return tensor.to(device=self.device, dtype=self.dtype, copy=True)

    def bias(self, parts: Sequence[tuple[str, int]]) -> Tensor | None:
        """The biases of a fused product, or None where the model has none."""
        if not any(name in self.named for name, _ in parts):
            return None
        return torch.cat([self(name, (size,)) for name, size in parts])

    def _get(self, name: str) -> Tensor:
        if name not in self.named:
            raise UserError(f"the checkpoint has no weight {name!r}: it is incomplete or of another architecture")
        return self.named[name]
