"""Prompt lookup decoding (Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding): drafts from the text itself.

The tokens that followed the first earlier occurrence of the newest n-gram are the draft. Needs no training. By default
only as many are drafted as are worth verifying; `pld:paper` drafts ten, as Spec-Bench's copy does (arXiv 2401.07851).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.config import setting
from bench.drafting.indexes.ngrams import NGrams
from bench.drafting.lookup import Lookup, LookupConfig, matching
from bench.drafting.worth import Found
from bench.engine import MAX_DRAFTS

_LONGEST = 64


@dataclass(frozen=True)
class PLDConfig(LookupConfig):
    """The knobs of prompt lookup."""

    ngram: int = setting(3, "longest n-gram to look for; shorter ones follow, down to 1")
    follow: int = setting(1, "tokens that must follow an occurrence; in Spec-Bench's copy 10")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(ngram=(1, _LONGEST), follow=(1, MAX_DRAFTS))


class PLD(Lookup):
    """Drafts what followed the first occurrence of the newest n-gram in the text."""

    Config = PLDConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"ngram": 3, "tokens": 10, "follow": 10, "least": 1, "stop": "never"}
    }

    def index(self, context: list[int]) -> NGrams:
        """Return the text's n-grams."""
        return NGrams(self.config.ngram, context)

    def find(self, index: NGrams, most: int, depth: int) -> list[Found]:
        """Return what followed the longest n-gram that enough tokens follow, where it occurred first."""
        match = index.first(following=self.config.follow)
        if match is None:
            return []
        text, end = index.tokens, match.end
        return [Found(matching(text, end, self.least), text[end : end + min(most, depth)])]
