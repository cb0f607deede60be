"""The conversations that come with the project: one folder of packed files per model, to which `collect` adds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from bench.files import replacing, writing
from bench.models import conversation_files
from bench.models.checkpoints import Checkpoint
from bench.train.conversations import NONE, Conversations


def load(checkpoint: Checkpoint, folder: Path | None = None) -> Conversations:
    """Return the conversations of exactly this model, if there are any.

    Raises:
        UserError: a file is damaged.

    """
    files = conversation_files.files_of(checkpoint.name, folder)
    return Conversations.joined([NONE, *(_read(path, checkpoint) for path in files)])


def add(made: Conversations, checkpoint: Checkpoint, folder: Path | None = None) -> Path:
    """Write conversations to a new file next to the others; token ids take two bytes where possible.

    Raises:
        UserError: it cannot be written.

    """
    files = conversation_files.files_of(checkpoint.name, folder)
    number = 1 + max((int(path.stem) for path in files), default=0)
    path = conversation_files.folder_of(checkpoint.name, folder) / f"{number:04d}.npz"
    columns = {name: column.numpy() for name, column in vars(made).items()}
    if made.tokens.max() < 2**16:
        columns["tokens"] = columns["tokens"].astype(np.uint16)
    # An .npz, but with LZMA, which finds the repetitions between prompts of one grammar.
    with writing(path.parent), replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as file:
        for name, array in {"weights": np.array(checkpoint.sha256), **columns}.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return path


def _read(path: Path, checkpoint: Checkpoint) -> Conversations:
    if (stored := conversation_files.read(path, checkpoint)) is None:
        return NONE
    columns = {name: torch.from_numpy(column) for name, column in stored.items()}
    return Conversations(**columns | {"tokens": columns["tokens"].int()})
