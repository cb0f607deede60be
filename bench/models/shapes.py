"""Published architectures with random weights: forward-pass costs without a download. Acceptance is meaningless."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError, did_you_mean
from bench.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig

_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# From each model's config.json on the hub: lmsys/vicuna-7b-v1.3, lmsys/vicuna-13b-v1.3, meta-llama/Llama-3.1-8B and
# HuggingFaceTB/SmolLM2-135M-Instruct.
SHAPES: dict[str, dict[str, Any]] = {
    "vicuna-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
    "vicuna-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _LLAMA_3_ROPE,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class RandomCheckpoint(Checkpoint):
    """A shape in place of a model; there is no such folder."""


def check_shape(name: str) -> None:
    """Raise UserError if there is no shape of that name."""
    if name not in SHAPES:
        raise UserError(f"unknown shape {name!r}{did_you_mean(name, SHAPES)}; available: {', '.join(SHAPES)}")


def checkpoint_of(shape: str) -> RandomCheckpoint:
    """Return a stand-in for a checkpoint of this shape."""
    return RandomCheckpoint(shape, Path(shape), "", None)


def config_of(shape: str) -> PretrainedConfig:
    """Return the transformers configuration of a shape in `SHAPES`."""
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[shape], bos_token_id=None, eos_token_id=None, pad_token_id=None)


def random_weights(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) pairs in transformers' naming, each created on the device when it is needed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)
    for name, like in model.named_parameters():  # a tied head is not among them
        made = torch.empty(like.shape, dtype=dtype, device=device)
        # About as large as trained weights: states neither vanish nor overflow from layer to layer.
        yield name, made.fill_(1.0) if like.dim() == 1 else made.normal_(0.0, 0.02, generator=generator)


def hf_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return transformers' model with the weights of `random_weights`."""
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in random_weights(config, dtype, device):
            own[name].copy_(weight)
    return model
