"""Vanilla autoregressive decoding: one token a step. The baseline of every run."""

from __future__ import annotations

from bench.drafting.method import Draft, SpeculativeMethod


class Vanilla(SpeculativeMethod):
    """Drafts nothing, so a step is one target pass over the newest token."""

    def propose(self, room: int) -> Draft:
        """Nothing."""
        return Draft([])
