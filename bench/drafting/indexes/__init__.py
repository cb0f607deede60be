"""Text indexes for methods that draft from text. They hold token ids and know neither models nor torch.

Online indexes grow with an answer. Nothing follows the newest token yet, so a match is always an earlier occurrence,
which at least one token follows.
"""

from __future__ import annotations

from typing import NamedTuple

END = -1  # separates texts that are stored in a row. It is not a token, so no match crosses it.


class Match(NamedTuple):
    """An earlier occurrence of the newest tokens of a text."""

    length: int  # the number of tokens that match
    end: int  # the continuation is `tokens[end:]`, at least one token
    count: int | None = None  # type: ignore[assignment]  # of earlier occurrences; None: not known
