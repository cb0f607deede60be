"""Prompt lookup decoding (Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding): drafts from the text itself.

The tokens that followed the first earlier occurrence of the newest n-gram are the draft. Needs no training. By default
only as many are drafted as are worth verifying; `pld:paper` drafts ten, as Spec-Bench's copy does (arXiv 2401.07851).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from bench.config import setting
from bench.drafting.lookup import Lookup, LookupConfig
from bench.drafting.worth import LENGTHS, NOTHING, Found
from bench.engine import MAX_DRAFTS


@dataclass(frozen=True)
class PLDConfig(LookupConfig):
    """The knobs of prompt lookup."""

    ngram: int = setting(3, "longest n-gram to look for; shorter ones follow, down to 1")
    follow: int = setting(1, "tokens that must follow an occurrence; those of Spec-Bench's copy: 10")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.ngram <= 64:
            raise ValueError(f"ngram={self.ngram} must be in 1..64")
        if not 1 <= self.follow <= MAX_DRAFTS:
            raise ValueError(f"follow={self.follow} must be in 1..{MAX_DRAFTS}")


@dataclass
class FirstEnds:
    """Where each n-gram of a text ended first: the number of tokens up to there."""

    ngram: int
    text: list[int] = field(default_factory=list)
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)

    def extend(self, tokens: list[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self.text.append(token)
            end = len(self.text)
            for n in range(1, min(self.ngram, end) + 1):
                self.ends.setdefault(tuple(self.text[end - n :]), end)


class PLD(Lookup):
    """Drafts what followed the first occurrence of the newest n-gram in the text."""

    Config = PLDConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"ngram": 3, "tokens": 10, "follow": 10, "least": 1, "stop": "never"}
    }

    def index(self, context: list[int]) -> FirstEnds:
        """Return where n-grams ended first."""
        made = FirstEnds(self.config.ngram)
        made.extend(context)
        return made

    def extend(self, index: FirstEnds, tokens: list[int]) -> None:
        """Append tokens to the text."""
        index.extend(tokens)

    def find(self, index: FirstEnds, most: int, depth: int) -> Found:
        """Return what followed the longest n-gram that enough tokens follow, where it occurred first."""
        text = index.text
        for n in range(min(self.config.ngram, len(text) - 1), 0, -1):
            end = index.ends[tuple(text[-n:])]
            if end + self.config.follow <= len(text):
                return Found(_matching(text, end, n), text[end : end + min(most, depth)])
        return NOTHING


def _matching(text: list[int], end: int, length: int) -> int:
    """Return how many tokens before `end` equal the newest ones, of which `length` do; counted as far as it matters."""
    while length < min(end, LENGTHS[-1]) and text[end - 1 - length] == text[-1 - length]:
        length += 1
    return length
