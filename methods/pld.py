"""Prompt lookup decoding (Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding): drafts from the text itself.

The tokens that followed the first earlier occurrence of the newest n-gram are the draft. Needs no training. Defaults
are those of Spec-Bench's copy (arXiv 2401.07851).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.config import setting
from bench.drafting.method import TextMethod
from bench.drafting.sequence import NO_DRAFT, Draft
from bench.engine import MAX_DRAFTS

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder


@dataclass(frozen=True)
class PLDConfig:
    """The knobs of prompt lookup."""

    ngram: int = setting(3, "longest n-gram to look for; shorter ones follow, down to 1")
    tokens: int = setting(10, "most drafts in a row; a match needs as many tokens after it")
    length: str = setting(
        "all", "all; or cost: the number of drafts with the most tokens per time here if all are accepted"
    )

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise ValueError(f"ngram={self.ngram} must be at least 1")
        if not 1 <= self.tokens <= MAX_DRAFTS:
            raise ValueError(f"tokens={self.tokens} must be in 1..{MAX_DRAFTS}")
        if self.length not in ("all", "cost"):
            raise ValueError(f"length={self.length} must be all or cost")


class PLD(TextMethod):
    """Drafts what followed the first occurrence of the newest n-gram in the text."""

    Config = PLDConfig

    def __init__(self, target: Decoder, config: Any):
        super().__init__(target, config)
        self.most = config.tokens
        if config.length == "cost":
            self.most = max(range(config.tokens + 1), key=lambda n: (1 + n) / self.costs.verifying(1 + n))

    def propose_text(self, context: list[int], budget: int) -> Draft:
        """Draft after the longest match; of several, after the first one that enough tokens follow."""
        most, tokens = min(self.most, budget), self.config.tokens
        for n in range(min(self.config.ngram, len(context) - 1), 0, -1):
            newest = context[-n:]
            for end in range(n, len(context) - tokens + 1):
                if context[end - 1] == newest[-1] and context[end - n : end] == newest:
                    return Draft(context[end : end + most])
        return NO_DRAFT
