"""The one exception that a user is meant to see, and the guess that its sentence may offer."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Something a user can cause and mend: one sentence with the value, the reason and the remedy.

    Caught once, in `bench.cli`, which prints it without a traceback and exits with status 2.
    """


def told(error: BaseException) -> str:
    """An error of somebody's method in a line: its kind, what it says, and where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def did_you_mean(word: str, possible: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the nearest of `possible`; nothing where none is near."""
    close = difflib.get_close_matches(word, list(possible), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
