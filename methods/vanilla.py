"""Vanilla autoregressive decoding: one token a step. The baseline of every run."""

from __future__ import annotations

from bench.drafting.method import TextMethod
from bench.drafting.sequence import NO_DRAFT, Draft


class Vanilla(TextMethod):
    """Drafts nothing, so a step is one target pass over the newest token."""

    def propose_text(self, context: list[int], budget: int) -> Draft:
        """Nothing."""
        return NO_DRAFT
