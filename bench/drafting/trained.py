"""What methods with trained weights share: how they are read, and the cut LM head."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.drafting.knobs import CONFIG_FILE
from bench.drafting.knobs import default_folder as default_folder
from bench.drafting.knobs import find_folder as find_folder
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.files import sha256


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
