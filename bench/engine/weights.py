"""What a decoder is made of: its dimensions from a configuration, and its weights from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.engine.attention import rope_table
from bench.engine.kernels.panels import BLOCK_NUMBERS
from bench.engine.mapped import MappedFiles
from bench.errors import UserError
from bench.files import first_line

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FP8 = torch.float8_e4m3fn
# RoPE variants whose table does not depend on the length of the text at hand.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_SILU = ("silu", "swish")  # two names of one function
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUT = ("self_attn.o_proj",)
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# Buffers that older versions of transformers stored beside the weights; it ignores them, too.
_NO_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$")
_ONE_SOURCE = "fetch config.json and weights again, both from one source"


@dataclass(frozen=True)
class DecoderConfig:
    """The dimensions of a Llama-family decoder."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    context: int  # positions that the model was made for
    windowed: bool  # the context is one sliding window
    tied: bool  # the LM head is the embedding
    qk_norm: bool
    biased: tuple[str, ...]  # projections that have a bias
    fp8_block: tuple[int, int] | None  # rows and columns that share a scale, if matrices are stored as fp8

    @classmethod
    def from_hf(cls, config: Any) -> DecoderConfig:
        """Read a transformers configuration.

        Raises:
            UserError: not a decoder of the Llama family, a feature that the engine lacks, or sizes that do not fit.

        """
        kind = config.model_type
        if kind not in SUPPORTED:
            raise UserError(f"model type {kind!r} is not supported; supported: {', '.join(SUPPORTED)}")
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope not in STATIC_ROPE:
            raise UserError(f"RoPE scaling {rope!r} is not supported; supported: {', '.join(STATIC_ROPE)}")
        if config.hidden_act not in _SILU:
            raise UserError(f"activation {config.hidden_act!r} is not supported; supported: {', '.join(_SILU)}")
        context = config.max_position_embeddings
        window = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True):
            window = None
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        if heads % kv_heads:
            raise UserError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}")
        _check_rope(config, head_dim)
        return cls(
            model_type=kind,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=config.vocab_size,
            norm_eps=config.rms_norm_eps,
            # Within one window, sliding attention is full attention; beyond it the engine does not go.
            context=min(context, window or context),
            windowed=window is not None and window < context,
            tied=config.tie_word_embeddings,
            qk_norm=kind == "qwen3",
            biased=_biased(config),
            fp8_block=_fp8_block(config),
        )

    @property
    def limit(self) -> str:
        """What bounds a prompt with its answer, for messages."""
        return f"the {'sliding window' if self.windowed else 'context'} of {self.context} tokens"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, by its name in transformers without the prefix `model.`; the LM head is last."""
        d, q, kv, f = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        sizes_of = (q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)
        matrices = dict(zip((*_ATTENTION, *_OUT, *_MLP), sizes_of, strict=True))
        layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
        layer |= {f"{name}.bias": matrices[name][:1] for name in self.biased}
        layer |= {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        if self.qk_norm:
            layer |= {f"self_attn.{name}_norm.weight": (self.head_dim,) for name in "qk"}
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab, d)}
        shapes |= {f"layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        return shapes | {"norm.weight": (d,)} | ({} if self.tied else {"lm_head.weight": (self.vocab, d)})


def _biased(config: Any) -> tuple[str, ...]:
    """The projections that have a bias in transformers' model."""
    if config.model_type == "qwen2":
        return _ATTENTION
    attention = (*_ATTENTION, *_OUT) if getattr(config, "attention_bias", False) else ()
    return attention + (_MLP if getattr(config, "mlp_bias", False) else ())


def _fp8_block(config: Any) -> tuple[int, int] | None:
    quantization = getattr(config, "quantization_config", None)
    if not quantization:
        return None
    rows, columns = quantization.get("weight_block_size", (128, 128)) or (2**31, 2**31)  # null: one scale a matrix
    return rows, columns


def _check_rope(config: Any, head_dim: int) -> None:
    """Refuse RoPE settings that make no table, or one that does not turn whole heads."""
    try:
        cosines, _ = rope_table(config, 2, torch.float32, torch.device("cpu"))
    except Exception as error:  # transformers raises nearly every type here
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"the RoPE settings {config.rope_parameters} cannot be used ({reason}): {_ONE_SOURCE}"
        ) from error
    if cosines.shape[-1] != head_dim or not cosines.isfinite().all():
        raise UserError(
            f"the RoPE settings {config.rope_parameters} do not fit heads of {head_dim} dimensions: only RoPE over "
            "whole heads of an even size is supported"
        )


def agreed(named: dict[str, Tensor], config: DecoderConfig) -> DecoderConfig:
    """Hold tensors against their configuration before any is copied; the configuration with `tied` as it is stored.

    A model that is tied by its configuration may store the embedding, the LM head (then it is the embedding, too), or
    both; where both are stored and differ, each is used, as in transformers.

    Raises:
        UserError: a weight is missing, of another shape or type, or nothing would read it.

    """
    if config.tied and "lm_head.weight" in named:
        head = named["lm_head.weight"]
        if _is_same(named.setdefault("embed_tokens.weight", head), head):
            del named["lm_head.weight"]
        else:
            config = replace(config, tied=False)
    shapes = config.shapes()
    missing = [_stored(name) for name in shapes if name not in named]
    if missing:
        raise UserError(
            f"the checkpoint has no weight {_listed(missing)}: it is incomplete or of another architecture; "
            f"{_ONE_SOURCE}"
        )
    for name, shape in shapes.items():
        _check(name, named, shape, config.fp8_block)
    scales = {f"{name}_scale_inv" for name in shapes if named[name].dtype == _FP8}
    unread = [_stored(name) for name in named.keys() - shapes.keys() - scales if not _NO_WEIGHTS.search(name)]
    if unread:
        raise UserError(
            f"the checkpoint holds {_listed(sorted(unread))}, which a {config.model_type} of this config.json does not "
            f"have: {_ONE_SOURCE}"
        )
    return config


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and a.dtype in _FLOATS and torch.equal(a, b))


def _check(name: str, named: dict[str, Tensor], shape: tuple[int, ...], block: tuple[int, int] | None) -> None:
    tensor, scale = named[name], named.get(f"{name}_scale_inv")
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"weight {_stored(name)!r} has shape {tuple(tensor.shape)}, but the model's config.json asks for {shape}: "
            f"the checkpoint and its configuration do not belong together; {_ONE_SOURCE}"
        )
    if tensor.dtype in _FLOATS:
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype != _FP8 or block is None:
        raise UserError(
            f"weight {_stored(name)!r} is stored as {dtype}, codes that config.json does not explain: use a checkpoint "
            "in float32, bfloat16 or float16"
        )
    # As transformers cuts blocks, which is right only where they divide the matrix.
    fits = scale is not None and scale.dtype in _FLOATS and len(shape) == 2
    if fits and scale is not None and scale.numel() != 1:
        fits = scale.dim() == 2 and all(
            count * size == whole or (count == 1 and whole <= size)
            for count, size, whole in zip(scale.shape, block, shape, strict=True)
        )
    if not fits:
        given = "none" if scale is None else f"{tuple(scale.shape)} in {str(scale.dtype).removeprefix('torch.')}"
        raise UserError(
            f"weight {_stored(name)!r} {shape} is stored as {dtype}, and its scales ({given}) do not fit "
            f"blocks of {block}: use a checkpoint in float32, bfloat16 or float16"
        )


def _stored(name: str) -> str:
    """A weight's name as transformers stores it."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def _listed(names: Sequence[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def sizes(named: dict[str, Tensor], config: DecoderConfig, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of a layer's weights, the number of layers, and bytes of all other weights."""
    inside = sum(tensor.numel() for name, tensor in named.items() if name.startswith("layers."))
    outside = sum(tensor.numel() for tensor in named.values()) - inside
    return -(-inside // config.layers) * dtype.itemsize, config.layers, outside * dtype.itemsize


class Taker:
    """Takes weights by name, each once, on the device and in the dtype of the run; `agreed` has checked their form.

    What was taken is let go, so that a model need not fit into memory twice: neither whole nor a matrix of it.
    """

    def __init__(
        self, named: dict[str, Tensor], dtype: torch.dtype, device: torch.device, files: MappedFiles | None = None
    ):
        """`files`: those that the weights may be mapped from."""
        self.named, self.dtype, self.device, self.files = named, dtype, device, files

    def rows(self, name: str) -> int:
        """Rows of a weight that has not been taken yet."""
        return self.named[name].shape[0]

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Take a weight of this shape.

        Raises:
            UserError: it holds NaN or infinite values, or values that the dtype cannot hold.

        """
        return self.joined([(name, shape)]).whole()

    def joined(self, parts: Sequence[tuple[str, tuple[int, ...]]]) -> Joined:
        """Take weights of these shapes, one below the other."""
        tensors = {}
        for name, shape in parts:
            tensor, scale = self.named.pop(name), self.named.pop(f"{name}_scale_inv", None)
            assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)}, not {shape}"
            tensors[name] = tensor if scale is None else _dequantized(tensor, scale)
        return Joined(tensors, self.dtype, self.device, self.files)

    def bias(self, parts: Collection[tuple[str, int]]) -> Tensor | None:
        """The biases of a fused product, or None if the model has none."""
        if not any(name in self.named for name, _ in parts):
            return None
        return torch.cat([self(name, (size,)) for name, size in parts])


class Joined:
    """Weights one below the other, [n, ..], converted to a device and dtype as their rows are asked for.

    The rows of a weight in a file should be asked for once: afterwards, they are read from the file again.
    """

    def __init__(
        self, tensors: dict[str, Tensor], dtype: torch.dtype, device: torch.device, files: MappedFiles | None = None
    ):
        self.tensors, self.dtype, self.device, self.files = tensors, dtype, device, files
        first, *others = tensors.values()
        self.shape = torch.Size((first.shape[0] + sum(other.shape[0] for other in others), *first.shape[1:]))

    def __getitem__(self, rows: slice) -> Tensor:
        """Copy rows [start, stop).

        Raises:
            UserError: they hold NaN or infinite values, or values that the dtype cannot hold.

        """
        pieces, begin = [], 0
        for name, tensor in self.tensors.items():
            first, end = max(rows.start - begin, 0), min(rows.stop - begin, tensor.shape[0])
            if first < end:
                pieces.append(self._converted(name, tensor[first:end]))
            begin += tensor.shape[0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def whole(self) -> Tensor:
        """All rows."""
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        rows = max(1, BLOCK_NUMBERS * made.shape[0] // max(1, made.numel()))
        for first in range(0, made.shape[0], rows):
            made[first : first + rows] = self[first : first + rows]
        return made

    def _converted(self, name: str, tensor: Tensor) -> Tensor:
        # A copy even where nothing has to change: a file's own pages are small ones, and read more slowly.
        taken = tensor.to(device=self.device, dtype=self.dtype, copy=True)
        if not _is_finite(taken):
            if _is_finite(tensor):
                dtype = str(self.dtype).removeprefix("torch.")
                raise UserError(f"weight {_stored(name)!r} is too large for {dtype}: take --dtype float32 or bfloat16")
            raise UserError(f"weight {_stored(name)!r} holds NaN or infinite values: fetch the checkpoint again")
        if self.files is not None:
            self.files.release(tensor)
        return taken


def _dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """Codes [n, k] times the scales [n / rows, k / columns] (or one) of their blocks, in float32."""
    n, k = codes.shape
    rows, columns = scales.shape if scales.dim() == 2 else (1, 1)
    blocks = codes.float().view(rows, n // rows, columns, k // columns)
    return (blocks * scales.float().view(rows, 1, columns, 1)).view(n, k)


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, without a copy: the extremes are NaN if any value is."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())
