"""The files of conversations that a model wrote, as they come with the project: one folder per model."""

from __future__ import annotations

import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bench
from bench.errors import UserError
from bench.models.checkpoints import Checkpoint
from bench.models.gguf_file import model_of

FOLDER = Path(bench.__file__).parent / "train" / "data"
_COLUMNS = ("tokens", "chosen", "lengths", "kinds", "templates")  # see the folder's README

Columns = dict[str, NDArray[Any]]


def folder_of(model: str, root: Path | None = None) -> Path:
    """Return the folder of a model's files; `root`: of all models'."""
    return (root or FOLDER) / model_of(model).replace("/", "--")


def files_of(model: str, root: Path | None = None) -> list[Path]:
    """Return a model's files, in the order in which they were added."""
    return sorted(path for path in folder_of(model, root).glob("*.npz") if path.stem.isdecimal())


def read(path: Path, checkpoint: Checkpoint) -> Columns | None:
    """Return a file's columns; None if they are of other weights.

    Raises:
        UserError: the file is damaged.

    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["weights"]) != checkpoint.sha256:
                return None
            columns = {name: stored[name] for name in _COLUMNS}
        count, total = len(columns["lengths"]), int(columns["lengths"].sum())
        if [len(column) for column in columns.values()] != [total, total, count, count, count]:
            raise ValueError("its columns differ in length")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, LZMAError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or remove it") from error
    return columns
