"""Indexes of text for methods that draft from it. They know token ids only: no model, no torch.

An online index grows token by token with an answer. Its newest token is followed by nothing yet, so a match is always
an earlier occurrence that at least one token follows.
"""

from __future__ import annotations

from typing import NamedTuple

END = -1  # separates texts that are stored one after the other. It is no token: no match crosses it.


class Match(NamedTuple):
    """An earlier occurrence of the newest tokens of a text."""

    length: int  # the number of tokens that match
    end: int  # its continuation is `tokens[end:]`: at least one token
    count: int | None = None  # type: ignore[assignment]  # of earlier occurrences; None: not known
