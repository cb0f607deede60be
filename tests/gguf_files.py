"""Tiny GGUF files, written by llama.cpp's own package `gguf` from models and tokenizers of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from tests.byte_tokenizer import CHAT_TEMPLATE

Stored = dict[str, tuple[NDArray[Any], Kind | None]]  # tensors in GGUF's names; a kind for raw blocks
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def vocabulary(size: int) -> dict[str, Any]:
    """Settings of a byte-level tokenizer with one merge, three special tokens (ids 256 to 258) and unused ones."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL, "th"]
    unused = [f"[PAD{i}]" for i in range(len(tokens), size)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *unused],
        "tokenizer.ggml.token_type": [*[NORMAL] * 256, *[CONTROL] * 3, NORMAL, *[UNUSED] * len(unused)],
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.padding_token_id": 256,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a model and of `vocabulary`."""
    arch = arch_of(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    return {f"{arch}.{key}": value for key, value in values.items()} | vocabulary(config.vocab_size)


def arch_of(config: Any) -> str:
    """llama.cpp's name of the architecture."""
    return {"mistral": "llama"}.get(config.model_type, config.model_type)


def tensors_of(hf: Any) -> Stored:
    """A model's tensors in llama.cpp's names and order of rows, in float32."""
    config, arch = hf.config, arch_of(hf.config)
    names = gguf.get_tensor_name_map(
        {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers
    )
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    stored: Stored = {}
    for name, weight in hf.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and (count := heads.get(name.split(".")[-2])):
            # llama.cpp turns neighbours, transformers the two halves of a head
            weight = weight.view(count, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        stored[names.get_name(name, (".weight", ".bias"))] = weight.contiguous().numpy(), None
    return stored


def write(
    path: Path,
    hf: Any,
    settings: dict[str, Any] | None = None,
    change: Callable[[Stored], Stored] = lambda stored: stored,
) -> Path:
    """Write a model; `settings` replace its own, and None leaves one out."""
    values = settings_of(hf.config) | {"general.architecture": arch_of(hf.config)} | (settings or {})
    return write_parts(path, values, change(tensors_of(hf)))


def write_parts(path: Path, settings: dict[str, Any], tensors: Stored) -> Path:
    """Write settings and tensors."""
    writer = gguf.GGUFWriter(str(path), settings["general.architecture"])
    for key, value in settings.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None and key != "general.architecture":
            kinds = {
                bool: GGUFValueType.BOOL,
                int: GGUFValueType.UINT32,
                float: GGUFValueType.FLOAT32,
                str: GGUFValueType.STRING,
            }
            writer.add_key_value(key, value, kinds[type(value)])
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(kind: Kind, seed: int = 0) -> Callable[[Stored], Stored]:
    """A change for `write`: matrices in `kind`, by random blocks with small scales where gguf cannot quantise."""

    def blocks(values: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        try:
            return gguf.quantize(values, kind)
        except NotImplementedError:
            size, wide = gguf.GGML_QUANT_SIZES[kind]
            rows, columns = values.shape
            codes = rng.integers(0, 256, (rows, columns // size, wide), dtype=np.uint8)
            for at in SCALES[kind]:
                codes[:, :, at : at + 2] = (
                    rng.normal(0, 1e-3, (rows, columns // size, 1)).astype(np.float16).view(np.uint8)
                )
            return codes.reshape(rows, -1)

    def change(stored: Stored) -> Stored:
        rng = np.random.default_rng(seed)
        return {
            name: (blocks(values, rng), kind) if values.ndim == 2 else (values, raw)
            for name, (values, raw) in stored.items()
        }

    return change


# Where the blocks of kinds that gguf cannot quantise have their float16 scales.
SCALES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
    Kind.IQ3_S: (0,),
    Kind.IQ2_XS: (0,),
}
