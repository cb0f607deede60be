"""What methods share that draft a chain, a token at a time, until a rule stops it. Their knobs include gamma."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

from bench.drafting.pace import PacedMethod
from bench.drafting.sequence import Draft
from bench.drafting.stopping import Candidate


class ChainMethod(PacedMethod):
    """A method that drafts a chain of at most gamma tokens."""

    @property
    def widest(self) -> int:
        """A chain of gamma drafts."""
        return 1 + self.config.gamma

    def probing(self, windows: int) -> tuple[Any, int]:
        """Return a chain that never stops early."""
        return replace(self.config, gamma=windows, stop="threshold", threshold=0.0, costs=""), windows


def draft_of(kept: Many[Candidate], **more: Any) -> Draft:
    """Return the chain of the candidates that were kept; `more`: its other fields."""
    drawn = [candidate.drawn for candidate in kept if candidate.drawn is not None] or None
    said = None if drawn else [candidate.confidence for candidate in kept]  # not those of drawn drafts
    return Draft([candidate.token for candidate in kept], drawn=drawn, confidences=said, **more)
