"""The conversations that come with the project: one folder of packed files per model, to which `collect` adds."""

from __future__ import annotations

import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

import numpy as np
import torch

from bench.errors import UserError
from bench.files import replacing, writing
from bench.models.checkpoints import Checkpoint
from bench.train.conversations import NONE, Conversations

FOLDER = Path(__file__).parent / "data"


def load(checkpoint: Checkpoint, folder: Path | None = None) -> Conversations:
    """Return the conversations of exactly this model, if there are any.

    Raises:
        UserError: a file is damaged.

    """
    return Conversations.joined([NONE, *(_read(path, checkpoint) for path in _files(checkpoint, folder))])


def add(made: Conversations, checkpoint: Checkpoint, folder: Path | None = None) -> Path:
    """Write conversations to a new file next to the others; token ids take two bytes where possible.

    Raises:
        UserError: it cannot be written.

    """
    number = 1 + max((int(path.stem) for path in _files(checkpoint, folder)), default=0)
    path = _folder(checkpoint, folder) / f"{number:04d}.npz"
    columns = {name: column.numpy() for name, column in vars(made).items()}
    if made.tokens.max() < 2**16:
        columns["tokens"] = columns["tokens"].astype(np.uint16)
    # An .npz, but with LZMA, which finds the repetitions between prompts of one grammar.
    with writing(path.parent), replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as file:
        for name, array in {"weights": np.array(checkpoint.sha256), **columns}.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return path


def _folder(checkpoint: Checkpoint, folder: Path | None) -> Path:
    return (folder or FOLDER) / checkpoint.name.replace("/", "--")


def _files(checkpoint: Checkpoint, folder: Path | None) -> list[Path]:
    return sorted(path for path in _folder(checkpoint, folder).glob("*.npz") if path.stem.isdecimal())


def _read(path: Path, checkpoint: Checkpoint) -> Conversations:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["weights"]) != checkpoint.sha256:
                return NONE
            columns = {name: torch.from_numpy(stored[name]) for name in Conversations.__dataclass_fields__}
        made = Conversations(**columns | {"tokens": columns["tokens"].int()})
        if not made.fits():
            raise ValueError("its columns differ in length")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, LZMAError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or remove it") from error
    return made
