"""The JSON files of a checkpoint, decoded by type and within bounds before any library reads them. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Required, TypeVar

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from bench.errors import UserError
from bench.typed_json import FileName, MismatchError, decode

T = TypeVar("T")
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Factor = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


TokenIds = Annotated[list[TokenId], BeforeValidator(_as_list)]


class Rope(TypedDict, total=False):
    """How positions turn queries and keys."""

    rope_type: str
    type: str
    rope_theta: Factor
    factor: Factor
    low_freq_factor: Factor
    high_freq_factor: Factor
    original_max_position_embeddings: Size


class Quantization(TypedDict, total=False):
    """How the weights are stored, if not as floats."""

    quant_method: str
    load_in_8bit: bool
    load_in_4bit: bool
    weight_block_size: Annotated[list[Size], Field(min_length=2, max_length=2)] | None


class ModelConfig(TypedDict, total=False):
    """What the engine depends on in config.json; transformers has defaults for what is left out."""

    model_type: Required[str]
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None
    head_dim: Size | None
    max_position_embeddings: Size
    rms_norm_eps: Epsilon
    hidden_act: str
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    use_sliding_window: bool
    sliding_window: Size | None
    layer_types: list[str] | None
    rope_theta: Factor
    rope_scaling: Rope | None
    rope_parameters: Rope | None
    eos_token_id: TokenIds
    quantization_config: Quantization | None
    compression_config: Quantization | None


class GenerationConfig(TypedDict, total=False):
    """What counts in generation_config.json: all else is the run's to say."""

    eos_token_id: TokenIds


class ShardIndex(TypedDict):
    """Which file of the folder holds which weight."""

    weight_map: dict[str, FileName]


def read(kind: type[T], path: Path) -> T:
    """Decode a file; fields that `kind` does not have are left to transformers.

    Raises:
        UserError: it cannot be read, is not JSON, or a field has another type or is out of bounds.

    """
    try:
        return decode(kind, path.read_bytes(), lenient=True)
    except (OSError, MismatchError) as error:
        wrong = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else f"is malformed ({error})"
        raise UserError(f"{path} {wrong}: correct it, or fetch the model again") from error


def check(folder: Path) -> None:
    """Check the folder's config.json.

    Raises:
        UserError: as `read`, or the weights are quantised in a way that the engine cannot undo.

    """
    config = read(ModelConfig, folder / "config.json")
    for quantised in (config.get("quantization_config"), config.get("compression_config")):
        if quantised is not None and (scheme := _scheme(quantised)) != "fp8":
            raise UserError(
                f"the weights in {folder} are quantised ({scheme}), and only fp8 can be read: take the checkpoint that "
                "they were made from (to measure a quantised model here: --quantize q4)"
            )


def _scheme(quantised: Quantization) -> str:
    by_flag = quantised.get("load_in_8bit") or quantised.get("load_in_4bit")
    return quantised.get("quant_method") or ("bitsandbytes" if by_flag else "an unnamed scheme")


def end_tokens(folder: Path, default: int | list[int] | None, vocab: int) -> list[int]:
    """Ids of the tokens that end an answer: those of generation_config.json, or `default` if there is no such file.

    Raises:
        UserError: as `read`, or an id is beyond the vocabulary.

    """
    path = folder / "generation_config.json"
    if path.is_file():
        ids = read(GenerationConfig, path).get("eos_token_id", [])
    else:
        path, ids = folder / "config.json", _as_list(default)
    if beyond := [i for i in ids if i >= vocab]:
        raise UserError(
            f"{path} names {beyond[0]} as eos_token_id, but the model's vocabulary has {vocab} tokens (0 to "
            f"{vocab - 1}): correct it"
        )
    return ids
