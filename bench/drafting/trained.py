"""What methods with trained weights share: how the weights are read, checked and written, and the cut LM head."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from bench.drafting.knobs import CONFIG_FILE
from bench.drafting.knobs import find_folder as find_folder
from bench.drafting.stopping import Calibration
from bench.engine import MAX_DRAFTS
from bench.engine.decoder import Decoder
from bench.engine.products import Linear
from bench.engine.quantize import GROUP
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from bench.files import save_tensors, sha256
from bench.models import weight_files
from bench.typed_json import Share, decode

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)
Size = Annotated[int, Field(ge=1, le=2**20)]  # of states, vocabularies, feed-forward blocks
Count = Annotated[int, Field(ge=0, le=2**20)]
RANKING = "token_ranking"  # the tensor of token ids by falling frequency
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WHOLE = (*_INTEGERS, torch.bool)
_LISTED = 4  # names in an error message


class Knobs(TypedDict, total=False):
    """Defaults of the knobs of `bench.drafting.level_knobs`, stored with weights."""

    gamma: Annotated[int, Field(ge=1, le=MAX_DRAFTS)]
    beam: Annotated[int, Field(ge=1, le=MAX_DRAFTS)]
    stop: Literal["gain", "threshold"]
    threshold: Share


@dataclass(frozen=True)
class Stored:
    """What comes with a draft model besides its weights: token ids by falling frequency, calibration, default knobs."""

    ranking: Tensor | None = None
    calibration: Calibration | None = None
    knobs: dict[str, Any] = field(default_factory=dict)


def read_config(folder: Path, what: str, kind: type[T], *, lenient: bool = False) -> T:
    """Decode the folder's config.json as a `kind`. `lenient`: fields that `kind` does not have are ignored.

    Raises:
        UserError: the file is missing or malformed, or has a field of another type, out of bounds or unknown.

    """
    try:
        return decode(kind, (folder / CONFIG_FILE).read_bytes(), lenient=lenient)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{folder} is no {what}: {CONFIG_FILE}: {reason}; download or train it again") from error


def digest(folder: Path, files: Sequence[str]) -> str:
    """Return the sha256 of the weights in a folder, by which records tell them from others of the same name."""
    found = [folder / name for name in files if (folder / name).is_file()][:1] or weight_files.find(folder)
    return sha256(found[0]) if len(found) == 1 else hashlib.sha256("".join(map(sha256, found)).encode()).hexdigest()


def read_tensors(folder: Path, what: str, files: Sequence[str]) -> dict[str, Tensor]:
    """Read the tensors of the first of `files` (safetensors or pickled) that the folder has. All are finite numbers.

    Raises:
        UserError: the folder has none of the files, the file cannot be read, or holds anything but plain tensors.

    """
    path = next((folder / name for name in files if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} is no {what}: it has neither {' nor '.join(files)}")
    again = "download or train them again"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored = load_file(path)
        else:
            stored = weight_files.unpickled(path)
    except Exception as error:  # safetensors, pickle and torch each have their own; none of their advice is passed on
        reason = (isinstance(error, OSError) and error.strerror) or "it is damaged, or holds more than tensors"
        raise UserError(
            f"the weights of the {what} in {folder} cannot be read: {path.name}: {reason}; {again}"
        ) from error
    if not isinstance(stored, dict):
        kind = type(stored).__name__
        raise UserError(f"the weights of the {what} in {folder} cannot be read: {path.name} is a {kind}; {again}")
    for name, value in stored.items():
        if fault := _fault(name, value):
            raise UserError(f"the weights of the {what} in {folder} cannot be used: {name} {fault}; {again}")
    return dict(stored)


def read_shards(folder: Path, what: str) -> dict[str, Tensor]:
    """Read the tensors of all weight files of a folder; otherwise as `read_tensors`."""
    stored: dict[str, Tensor] = {}
    for path in weight_files.find(folder):
        stored |= read_tensors(folder, what, [path.name])
    return stored


def _fault(name: object, value: object) -> str:
    """Return what makes a stored value unusable as a named tensor; "" if nothing does."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, and not a named tensor"
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in (*_FLOATS, *_WHOLE):
        return f"is a tensor of {value.dtype} ({value.layout}, {value.device.type}), which cannot be used as weights"
    # In float32, in which weights are used at most.
    return "" if value.dtype in _WHOLE or bool(value.float().isfinite().all()) else "has NaN or infinite values"


def filled(
    make: Callable[[], Module],
    stored: Mapping[str, Tensor],
    names: Mapping[str, str] | None,
    target: Decoder,
    folder: Path,
    what: str,
    others: Collection[str] = (),
) -> Module:
    """Return the module that `make` makes with `stored` tensors, for inference on the device of `target`, in its dtype.

    `names`: what the module's own parameters are called in the file; None: the same. `others`: tensors that are not
    weights of the module.

    Raises:
        UserError: a tensor is missing, unknown, or has another shape or no floating-point numbers.

    """
    with torch.device("meta"):
        module = make()
    theirs = {ours: ours if names is None else names[ours] for ours, _ in module.named_parameters()}
    check_shapes(stored, {theirs[ours]: tuple(p.shape) for ours, p in module.named_parameters()}, folder, what, others)
    module.load_state_dict({ours: stored[name].float() for ours, name in theirs.items()}, assign=True)
    return module.to(target.device, target.dtype).requires_grad_(False)


def round_to_half(module: nn.Module) -> None:
    """Round the weights of a module to what `save` writes, in place."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.half())


def save(path: Path, module: nn.Module, names: Mapping[str, str], config: Any, stored: Stored) -> None:
    """Write a draft model: its weights, in half precision, to `path`, and beside them its dimensions (a dataclass) and
    what is stored with it.

    `names`: as for `filled`.
    """
    tensors = {names[ours]: tensor.detach().cpu().half() for ours, tensor in module.named_parameters()}
    if stored.ranking is not None:
        tensors[RANKING] = stored.ranking.to(torch.int32)
    save_tensors(tensors, path)
    value = asdict(config)
    if stored.calibration is not None:
        value["calibration"] = asdict(stored.calibration)
    if stored.knobs:
        value["knobs"] = stored.knobs
    path.with_name(CONFIG_FILE).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def check_shapes(
    stored: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
    what: str,
    others: Collection[str] = (),
) -> None:
    """Check that `stored` has the weights that `shapes` lists, and nothing else but `others`.

    Raises:
        UserError: a tensor is missing, unknown, or has another shape or no floating-point numbers.

    """
    unfit = f"the {what} in {folder} does not fit its {CONFIG_FILE}"
    for name, shape in shapes.items():
        found = stored.get(name)
        has = "is missing" if found is None else f"has shape {tuple(found.shape)}" if found.shape != shape else ""
        if found is not None and found.dtype not in _FLOATS:
            has = f"has {found.dtype} instead of floating-point numbers"
        if has:
            raise UserError(f"{unfit}: {name} {has}, expected {shape}")
    if unknown := sorted(stored.keys() - shapes.keys() - set(others)):
        raise UserError(f"{unfit}: it also has {', '.join(unknown[:_LISTED])}{', ...' if unknown[_LISTED:] else ''}")


class Dimensioned(Protocol):
    """A target, or the model that it is to be made of: what weights are checked against before any are read."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def config(self) -> DecoderConfig:
        """Its dimensions."""


def remedy(target: Dimensioned) -> str:
    """What to do about weights that do not fit."""
    return f"name weights that were made for {target.name}"


def check_model(hidden: int, draft_vocab: int, target: Dimensioned, folder: Path, what: str) -> None:
    """Refuse weights that were trained for another model."""
    unfit, c = f"the {what} in {folder} is for another model", target.config
    if hidden != c.hidden:
        raise UserError(f"{unfit}: its hidden size is {hidden}, but {target.name}'s is {c.hidden}; {remedy(target)}")
    if draft_vocab > c.vocab:
        made = f"its draft_vocab is {draft_vocab}"
        raise UserError(f"{unfit}: {made}, but {target.name} has {c.vocab} tokens; {remedy(target)}")


def token_ranking(stored: Mapping[str, Tensor], target: Decoder, folder: Path) -> Tensor | None:
    """Return the ranking of tokens that is stored with weights, if one is: ids [n] by falling frequency.

    Raises:
        UserError: it has anything but distinct ids of the target's vocabulary.

    """
    found = stored.get(RANKING)
    if found is None:
        return None
    vocab, ids = target.config.vocab, found.flatten().tolist()
    bad = next((i for i in ids if not 0 <= i < vocab), None) if found.dtype in _INTEGERS else found.dtype
    if bad is not None or found.dim() != 1 or len(set(ids)) < len(ids):
        reason = "one list of distinct ids" if bad is None else f"token ids below {vocab}, not {bad}"
        raise UserError(f"{RANKING} in {folder} must be {reason}: download or train the weights again")
    return found


def draft_quantize(asked: str, target: Decoder) -> str:
    """Return how the draft model's matrices are stored, `asked` (q8 or plain) where `target`'s kernels allow."""
    possible = target.layout == "native" and target.config.hidden % GROUP == 0
    return "q8" if asked == "q8" and possible else "none"


def draft_head(target: Decoder, ids: Tensor | None, quantize: str) -> Linear:
    """Return the target's LM head for the tokens `ids`; None: whole, and then it is the target's own."""
    return target.head if ids is None else target.cut_head(ids, quantize)


def draft_ids(size: int, ranking: Tensor | None, target: Decoder, folder: Path) -> Tensor | None:
    """Return the ids of the `size` most frequent tokens, rising, or None for the whole vocabulary.

    Raises:
        UserError: fewer were ranked.

    """
    if size == 0 or size >= target.config.vocab:
        return None
    if ranking is None or len(ranking) < size:
        known = 0 if ranking is None else len(ranking)
        raise UserError(
            f"draft_vocab={size} is more than the {known} tokens ranked by frequency in {folder}: "
            f"take draft_vocab=0 (the whole vocabulary){f' or at most {known}' if known else ''}"
        )
    return ranking[:size].long().sort().values.to(target.device)


def own_head(
    head: nn.Linear, made: Tensor | None, ids: Tensor | None, target: Decoder, folder: Path, quantize: str
) -> Linear:
    """Return a draft model's own LM head for the tokens `ids`; other rows are dropped for good.

    `made`: the tokens that it was trained for, as `ids` rising; None: all.

    Raises:
        UserError: it was not trained for all of these tokens.

    """
    if made is not None and (ids is None or len(ids) > len(made)):
        asked = target.config.vocab if ids is None else len(ids)
        raise UserError(
            f"draft_vocab={asked} is more than the {len(made)} tokens that the own LM head in {folder} was trained "
            f"for: take draft_vocab={len(made)} or less"
        )
    if ids is not None:
        rows = ids if made is None else torch.searchsorted(made, ids)
        head.weight = nn.Parameter(head.weight[rows], requires_grad=False)
    return Linear(head.weight.detach(), layout=target.layout, quantize=quantize)
