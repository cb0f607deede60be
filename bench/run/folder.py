"""The folder of a run: an earlier run in it is moved aside, and files that are not ours are never replaced."""

from __future__ import annotations

import os
from pathlib import Path

from typing_extensions import TypedDict

from bench.errors import UserError
from bench.figures.records import BATCHES_FILE, DERIVED, EXPORTED, RUN_FILE, TOKEN_TEXTS_FILE, TURNS_FILE
from bench.typed_json import FileName, MismatchError, read

_WRITTEN = (RUN_FILE, TURNS_FILE, BATCHES_FILE, TOKEN_TEXTS_FILE, *DERIVED, EXPORTED)


class _Identity(TypedDict):
    """What identifies the record of a run, of any version."""

    run_id: FileName
    schema: int


def earlier_run(folder: Path) -> str | None:
    """The id of our run in `folder`; None where there is nothing that a run would write.

    Raises:
        UserError: a file that a run would replace, and that is not ours.

    """
    there = [name for name in _WRITTEN if os.path.lexists(folder / name)]
    if not there:
        return None
    try:
        return read(_Identity, folder / RUN_FILE, lenient=True)["run_id"]
    except FileNotFoundError:
        foreign, reason = there[0], f"which is not of a run of ours: there is no {RUN_FILE}"
    except MismatchError as error:
        foreign, reason = RUN_FILE, f"which is not a run's record ({error})"
    raise UserError(f"a run would replace {folder / foreign}, {reason}: choose another folder with --out")


def set_aside(folder: Path) -> Path | None:
    """Move an earlier run into a folder of its own within `folder`; where it is now.

    Raises:
        UserError: as `earlier_run`, or it cannot be moved.

    """
    run_id = earlier_run(folder)
    if run_id is None:
        return None
    earlier = folder / run_id
    try:
        earlier.mkdir()
        for name in _WRITTEN:
            if os.path.lexists(folder / name):
                (folder / name).rename(earlier / name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot move the earlier run in {folder} to {earlier} ({reason}): choose another folder with --out"
        ) from error
    return earlier
