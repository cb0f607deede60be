"""Vanilla autoregressive decoding: one token per forward pass. The baseline of every run."""

from __future__ import annotations

from bench.drafting.method import TextMethod
from bench.drafting.sequence import NO_DRAFT, Draft


class Vanilla(TextMethod):
    """Drafts nothing, so that a step is one forward pass of the target over the newest token."""

    def propose_text(self, context: list[int], budget: int) -> Draft:
        """Draft nothing."""
        return NO_DRAFT
