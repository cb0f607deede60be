"""What methods with trained weights share: where these lie, how they are read, and the cut LM head."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.drafting.costs import Costs
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.files import sha256
from bench.models import checkpoints

CONFIG_FILE = "config.json"
WEIGHTS_ROOT = Path(__file__).parents[2] / "methods" / "weights"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def check_knobs(draft_vocab: int, drafts: str, costs: str) -> None:
    """What is asked of the knobs that these methods share.

    Raises:
        ValueError: outside their range.

    """
    if draft_vocab < -1:
        raise ValueError(f"draft_vocab={draft_vocab} must be at least -1")
    if drafts not in ("", "sampled", "top"):
        raise ValueError(f"drafts={drafts} must be sampled or top")
    if costs:
        Costs.parse(costs)


def find_folder(method: str, asked: str, model: str, files: Sequence[str]) -> Path:
    """The folder of a method's weights: the packaged ones ("" or "paper"), a folder, or a Hugging Face id.

    Raises:
        UserError: there are none.

    """
    if asked in ("", "paper"):
        return packaged(method, model, asked)
    folder = Path(asked).expanduser()
    if not folder.exists() and _HUB_ID.fullmatch(asked):
        return checkpoints.fetch_folder(asked, [CONFIG_FILE, *files])
    return folder


def packaged(method: str, model: str, form: str = "") -> Path:
    """The folder of the weights that come with the project for `model`; `form`: as for `default_folder`.

    Raises:
        UserError: there are none.

    """
    folder = default_folder(method, model, form)
    if not any(folder.glob("*.safetensors")):
        train = f"python run_bench.py train {method}{f' --architecture {form}' if form else ''} --model {model}"
        which = " built as published" if form else ""
        raise UserError(
            f"no weights{which} of {method} come with the project for model {model!r}: train them ({train}) or name "
            f"their folder ({method}:weights=FOLDER)"
        )
    return folder


def default_folder(method: str, model: str, form: str = "") -> Path:
    """Where a method's weights for `model` are kept; `form`: as `bench.config.TrainConfig.form` says."""
    return WEIGHTS_ROOT / model / (f"{method}-{form}" if form else method)


def read_config(folder: Path, what: str, build: Callable[[dict[str, Any]], Any]) -> Any:
    """What `build` makes of the folder's config.json.

    Raises:
        UserError: it is missing or malformed.

    """
    try:
        return build(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no {what}: {CONFIG_FILE} is missing or malformed ({error})") from error


def digest(folder: Path, files: Sequence[str]) -> str:
    """The sha256 of the weights in a folder: records tell them from others of the same name."""
    return sha256(next(folder / name for name in files if (folder / name).is_file()))


def read_tensors(folder: Path, what: str, files: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the first of `files` (safetensors or pickled) that the folder has.

    Raises:
        UserError: it has none of them, or it cannot be read.

    """
    found = next((folder / name for name in files if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} is no {what}: it has neither {' nor '.join(files)}")
    try:
        if found.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(found))
        return dict(torch.load(found, map_location="cpu", weights_only=True))
    except Exception as error:  # safetensors, pickle and torch each have their own
        raise UserError(f"the weights of the {what} in {folder} cannot be read: {error}") from error


def fill(module: nn.Module, stored: dict[str, Tensor], names: Mapping[str, str], folder: Path, what: str) -> None:
    """Put `stored` tensors, called as `names` says of the module's own parameters, into it, as float32.

    Raises:
        UserError: one is missing or of another shape.

    """
    for ours, parameter in module.named_parameters():
        name = names[ours]
        found = stored.get(name)
        if not isinstance(found, Tensor) or found.shape != parameter.shape:
            has = f"has shape {tuple(found.shape)}" if isinstance(found, Tensor) else "is missing"
            raise UserError(
                f"the {what} in {folder} does not fit its {CONFIG_FILE}: {name} {has}, "
                f"expected {tuple(parameter.shape)}"
            )
        parameter.data = found.float()


def check_hidden(size: int, target: Decoder, folder: Path, what: str) -> None:
    """Refuse weights that were made for another model's states."""
    if size != target.config.hidden:
        raise UserError(
            f"the {what} in {folder} is for another model: its hidden size is {size}, "
            f"but {target.name}'s is {target.config.hidden}"
        )


def draft_ids(size: int, ranking: Tensor | None, target: Decoder, folder: Path) -> Tensor | None:
    """Ids of the `size` most frequent tokens, rising, or None for the whole vocabulary.

    Raises:
        UserError: more than were ranked.

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
