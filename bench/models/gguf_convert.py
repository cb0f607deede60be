"""A GGUF file in Hugging Face's layout: configuration, tokenizer, and weights that are written tensor by tensor.

The tensors' names are those of llama.cpp (gguf-py's tensor_mapping.py). Weights in floats stay as they are stored;
quantised ones become float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError
from bench.models.config_files import ModelConfig
from bench.models.gguf_file import Gguf, Tensor
from bench.models.gguf_tokenizer import end_tokens, tokenizer_of
from bench.models.quiet import quiet
from bench.progress import progress
from bench.typed_json import MismatchError, decode

if TYPE_CHECKING:
    from bench.engine.weights import DecoderConfig

SUPPORTED = ("llama", "qwen2", "qwen3")  # Mistral's files are called llama, too
_MODEL = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's scaling, as a factor per frequency
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_CHUNK_BYTES = 8_000_000  # of float32 at a time
_OTHER_BYTES = 50_000_000  # of tokenizer and configuration, at most
_OTHER_MODEL = "take a file of another model"


@dataclass(frozen=True)
class Plan:
    """A file that can be converted: its configuration for transformers, and which tensor becomes which weight."""

    gguf: Gguf
    config: dict[str, Any]  # with its model_type
    weights: dict[str, Tensor]  # by transformers' names
    tokenizer: Any
    rotated: int  # dimensions of a head whose rows of queries and keys are in llama.cpp's order; 0: in transformers'

    @property
    def needed_bytes(self) -> int:
        """What the converted model takes on the disk."""
        sizes = (int(np.prod(t.shape)) * np.dtype(_stored_as(t)[1]).itemsize for t in self.weights.values())
        return sum(sizes) + _OTHER_BYTES


def plan(gguf: Gguf) -> Plan:
    """Check that the engine can run a file's model, before anything is written.

    Raises:
        UserError: another architecture, a setting or a tensor that the engine does not have, a tensor that is missing
            or of another shape, or a quantisation that cannot be undone.

    """
    from transformers import AutoConfig

    from bench.engine.weights import DecoderConfig

    values = _config(gguf)
    try:
        with quiet():
            config = DecoderConfig.from_hf(AutoConfig.for_model(**values))
    except Exception as error:  # ours, and transformers' for sizes that do not belong together
        reason = (
            str(error)
            if isinstance(error, UserError)
            else f"its sizes do not fit ({str(error).splitlines()[-1].strip()})"
        )
        raise gguf.refused(reason, _OTHER_MODEL) from error
    weights = _assigned(gguf, config)
    for tensor in weights.values():
        _check_format(gguf, tensor)
    rotated = config.head_dim if values["model_type"] == "llama" else 0
    return Plan(gguf, values, weights, tokenizer_of(gguf), rotated)


def convert(planned: Plan, folder: Path) -> None:
    """Write a planned model into `folder`, with progress on standard error.

    Raises:
        UserError: the file changed meanwhile.

    """
    from transformers import AutoConfig, GenerationConfig

    tokenizer = planned.tokenizer
    values: dict[str, Any] = {
        f"{word}_token_id": getattr(tokenizer, f"{word}_token_id") for word in ("bos", "eos", "pad")
    }
    values["architectures"] = [f"{planned.config['model_type'].capitalize()}ForCausalLM"]
    with quiet():
        tokenizer.save_pretrained(folder)
        config = AutoConfig.for_model(**planned.config, **values)
        config.save_pretrained(folder)
        generation = GenerationConfig.from_model_config(config)
        generation.eos_token_id = end_tokens(planned.gguf) or None
        generation.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as out:
        _write_weights(planned, out)


def _config(gguf: Gguf) -> dict[str, Any]:
    """The arguments of transformers' configuration."""
    arch = gguf.get("general.architecture", str)
    if gguf.get("general.type", str, "model") != "model":
        raise gguf.refused(f"it holds a {gguf.get('general.type', str)}, and not a model", "give the model's own file")
    if arch not in SUPPORTED:
        listed = ", ".join(SUPPORTED)
        raise gguf.refused(f"its architecture is {arch!r}; supported: {listed}", _OTHER_MODEL)
    if gguf.get(f"{arch}.expert_count", int, 0):
        raise gguf.refused("it is a mixture of experts, and only dense models are supported", _OTHER_MODEL)

    def size(key: str, default: int | None = None) -> int:
        return gguf.get(f"{arch}.{key}", int, default)

    hidden, heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", hidden // max(1, heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if size(key, head_dim) != head_dim:
            reason = f"{arch}.{key} is {size(key)} for heads of {head_dim} dimensions, which is not supported"
            raise gguf.refused(reason, _OTHER_MODEL)
    if (embedding := gguf.tensors.get("token_embd.weight")) is None:
        raise gguf.refused("it has no tensor token_embd.weight, so it is not a whole model")
    values = {
        "model_type": arch,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": gguf.get(f"{arch}.attention.layer_norm_rms_epsilon", float),
        "rope_parameters": _rope(gguf, arch, head_dim),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    if arch != "qwen2" or head_dim * heads != hidden:
        values["head_dim"] = head_dim
    if arch == "llama":
        values["mlp_bias"] = "blk.0.ffn_down.bias" in gguf.tensors
    if arch != "qwen2":
        values["attention_bias"] = "blk.0.attn_output.bias" in gguf.tensors
    try:  # within the bounds of a config.json
        decode(ModelConfig, json.dumps(values).encode(), lenient=True)
    except MismatchError as error:
        raise gguf.refused(f"its settings, as transformers calls them, are out of bounds ({error})") from error
    return values


def _rope(gguf: Gguf, arch: str, head_dim: int) -> dict[str, Any]:
    theta, scaling = gguf.get(f"{arch}.rope.freq_base", float, 10000.0), f"{arch}.rope.scaling."
    kind = gguf.get(f"{scaling}type", str, "none")
    if _ROPE_FACTORS in gguf.tensors:
        return {"rope_type": "llama3", "rope_theta": theta} | _llama3(gguf, theta, head_dim)
    if kind == "none":
        linear = gguf.get(f"{arch}.rope.scale_linear", float, 1.0)  # of files from before `rope.scaling`
        kind, factor = ("linear", linear) if linear != 1.0 else ("default", 1.0)
    else:
        factor = gguf.get(f"{scaling}factor", float)
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if kind not in ("default", "linear", "yarn"):
        raise gguf.refused(f"its RoPE scaling is {kind!r}; supported: linear, yarn, Llama 3's", _OTHER_MODEL)
    if kind != "default":
        rope["factor"] = factor
    if kind == "yarn":
        rope["original_max_position_embeddings"] = gguf.get(f"{scaling}original_context_length", int)
        if others := sorted(key for key in gguf.settings if key.startswith((f"{scaling}yarn_", f"{scaling}attn_"))):
            raise gguf.refused(f"its YaRN has {', '.join(others)}, which is not supported", _OTHER_MODEL)
    return rope


def _llama3(gguf: Gguf, theta: float, head_dim: int) -> dict[str, float]:
    """The settings that give the file's factors, with the bounds that all Llama 3 models share.

    Raises:
        UserError: they do not give these factors.

    """
    tensor = gguf.tensors[_ROPE_FACTORS]
    with gguf.path.open("rb") as file:
        factors = np.concatenate([_floats(gguf, file, tensor, *chunk) for chunk in _chunks(tensor, 1)]).astype(float)
    low, high, context = _LLAMA3.values()
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    factor = round(float(factors.max(initial=0)), 4)
    if len(factors) == len(wavelengths) and factor >= 1:
        smooth = ((context / wavelengths - low) / (high - low)).clip(0, 1)
        if np.allclose(1 / factors, (1 - smooth) / factor + smooth, rtol=1e-4):
            return {"factor": factor, **_LLAMA3}
    raise gguf.refused(f"{_ROPE_FACTORS} does not hold the RoPE scaling of Llama 3, the only one known", _OTHER_MODEL)


def _assigned(gguf: Gguf, config: DecoderConfig) -> dict[str, Tensor]:
    """Which tensor becomes which weight, by transformers' names."""
    found = {}
    for name, shape in config.shapes().items():
        stored = _name_in_gguf(name)
        tensor = gguf.tensors.get(stored)
        if tensor is None:
            raise gguf.refused(f"it has no tensor {stored}, which a {config.model_type} needs")
        if tensor.shape != shape:
            raise gguf.refused(f"tensor {stored} has shape {tensor.shape}, but its settings ask for {shape}")
        found[name if name.startswith("lm_head.") else f"model.{name}"] = tensor
    known = {tensor.name for tensor in found.values()} | {_ROPE_FACTORS}
    if others := sorted(gguf.tensors.keys() - known):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        reason = f"it has tensor {others[0]}{more}, which a {config.model_type} of these settings does not have"
        raise gguf.refused(reason, _OTHER_MODEL)
    return found


def _name_in_gguf(name: str) -> str:
    base, kind = name.rsplit(".", 1)
    if not base.startswith("layers."):
        return f"{_MODEL[base]}.{kind}"
    _, number, part = base.split(".", 2)
    return f"blk.{number}.{_LAYER[part]}.{kind}"


def _check_format(gguf: Gguf, tensor: Tensor) -> None:
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.kind][1]), np.uint8), tensor.kind)
    except NotImplementedError:
        reason = f"tensor {tensor.name} is stored as {tensor.kind.name}, which cannot be read"
        raise gguf.refused(reason, "take a file in another format, such as Q8_0 or F16") from None


def _stored_as(tensor: Tensor) -> tuple[str, str]:
    """The format of the converted weight: safetensors' name of it, and numpy's of a type as wide."""
    return {"F16": ("F16", "<u2"), "BF16": ("BF16", "<u2")}.get(tensor.kind.name, ("F32", "<f4"))


def _write_weights(planned: Plan, out: BinaryIO) -> None:
    """Write a safetensors file, in the order and with the header that its own library writes."""
    order = sorted(planned.weights, key=lambda name: (-np.dtype(_stored_as(planned.weights[name])[1]).itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = planned.weights[name]
        dtype, as_wide = _stored_as(tensor)
        begin, end = end, end + int(np.prod(tensor.shape)) * np.dtype(as_wide).itemsize
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    with planned.gguf.path.open("rb") as file, progress(end, "converting") as shown:
        for name in order:
            for values in _values(planned, file, name):
                values.tofile(out)
                shown.add(values.nbytes)


def _values(planned: Plan, file: BinaryIO, name: str) -> Iterator[NDArray[Any]]:
    """The values of a weight, some rows at a time."""
    tensor, turned = planned.weights[name], planned.rotated if ".q_proj." in name or ".k_proj." in name else 0
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    for begin, rows in _chunks(tensor, turned or 1):
        if _stored_as(tensor)[0] == "F32":
            values: NDArray[Any] = _floats(planned.gguf, file, tensor, begin, rows)
        else:
            values = _raw(planned.gguf, file, tensor, begin, rows).view("<u2")
        if turned:  # llama.cpp turns neighbours, transformers the two halves of a head
            values = np.ascontiguousarray(values.reshape(-1, turned // 2, 2, columns).swapaxes(1, 2)).reshape(-1)
        yield values


def _chunks(tensor: Tensor, multiple: int) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of pieces of a tensor; a vector is one row, and one piece."""
    total, columns = (1, tensor.shape[0]) if len(tensor.shape) == 1 else tensor.shape
    step = max(1, _CHUNK_BYTES // 4 // columns // multiple) * multiple
    return ((begin, min(step, total - begin)) for begin in range(0, total, step))


def _raw(gguf: Gguf, file: BinaryIO, tensor: Tensor, begin: int, rows: int) -> NDArray[np.uint8]:
    row_bytes = tensor.nbytes // (tensor.shape[0] if len(tensor.shape) == 2 else 1)
    file.seek(tensor.begin + begin * row_bytes)
    found = np.fromfile(file, np.uint8, rows * row_bytes)
    if len(found) < rows * row_bytes:
        raise gguf.refused("it became shorter while it was read")
    return found.reshape(rows, row_bytes)


def _floats(gguf: Gguf, file: BinaryIO, tensor: Tensor, begin: int, rows: int) -> NDArray[np.float32]:
    """Rows of a tensor as flat float32."""
    from gguf import dequantize

    return dequantize(_raw(gguf, file, tensor, begin, rows), tensor.kind).reshape(-1)
