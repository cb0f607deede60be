"""N-gram drafting as serving engines have it: what followed the longest suffix of the text that occurred before.

vLLM's `ngram` looks for a suffix of `least` to `most` tokens and takes its first occurrence; llama.cpp's `ngram-simple`
takes the last one. Needs no training. By default only as many tokens are drafted as are worth verifying; the presets
`vllm` and `llama-cpp` have those engines' lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.config import setting
from bench.drafting.indexes.ngrams import NGrams
from bench.drafting.lookup import Lookup, LookupConfig, matching
from bench.drafting.worth import Found

_LONGEST = 64


@dataclass(frozen=True)
class NgramConfig(LookupConfig):
    """The knobs of n-gram drafting."""

    most: int = setting(16, "longest suffix to look for; the longest that occurred is taken")
    occurrence: str = setting("last", "which of several: last, as llama.cpp; or first, as vLLM")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(most=(1, _LONGEST), occurrence=("first", "last"))
        if self.least > self.most:
            raise ValueError(f"least={self.least} is more than most={self.most}")


# vLLM: prompt_lookup_min and prompt_lookup_max are 5 unless given, and its docs' num_speculative_tokens is 5.
_VLLM = {"least": 5, "most": 5, "tokens": 5, "occurrence": "first", "stop": "never"}


class Ngram(Lookup):
    """Drafts what followed the longest suffix that occurred before."""

    Config = NgramConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _VLLM,
        "vllm": _VLLM,
        "llama-cpp": {"least": 12, "most": 12, "tokens": 48, "occurrence": "last", "stop": "never"},
    }

    def index(self, context: list[int]) -> NGrams:
        """Return the text's n-grams."""
        return NGrams(self.config.most, context)

    def find(self, index: NGrams, most: int, depth: int) -> list[Found]:
        """Return what followed the longest suffix."""
        least = min(self.least, self.config.most)
        match = index.first(least) if self.config.occurrence == "first" else index.last(least)
        if match is None:
            return []
        text, end = index.tokens, match.end
        return [Found(matching(text, end, self.least), text[end : end + min(most, depth)])]
