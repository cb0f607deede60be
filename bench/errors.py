"""The one exception that a user is meant to see, and the guess that its sentence may offer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something a user can cause and mend: one sentence with the value, the reason and the remedy.

    Caught once, in `bench.cli`, which prints it without a traceback and exits with status 2.
    """


def did_you_mean(word: str, possible: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the nearest of `possible`; nothing where none is near."""
    close = difflib.get_close_matches(word, list(possible), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
