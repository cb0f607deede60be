"""Conversations that come with the project for a tiny model, in the place where methods look for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.models import conversation_files
from bench.models.checkpoints import Checkpoint


def write_conversations(root: Path, checkpoint: Checkpoint, rows: Sequence[list[int]], prompts: Sequence[int]) -> Path:
    """Write a file of conversations, of which the first so many tokens of each row are the prompt."""
    path = conversation_files.folder_of(checkpoint.name, root) / "0001.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = [[place >= prompt for place in range(len(row))] for row, prompt in zip(rows, prompts, strict=True)]
    np.savez(
        path,
        weights=np.array(checkpoint.sha256),
        tokens=np.concatenate(rows).astype(np.int32),
        chosen=np.concatenate(chosen),
        lengths=np.array([len(row) for row in rows], np.int32),
        kinds=np.zeros(len(rows), np.int8),
        templates=np.zeros(len(rows), np.int32),
    )
    return path
