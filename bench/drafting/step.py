"""One step of decoding, as a method reports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Step:
    """One target verification pass, as a method reports it."""

    emitted: list[int]  # token ids that the step adds to the answer, the target's own (the bonus) last; >= 1
    drafted: int = 0  # draft tokens proposed
    accepted: int = 0  # draft tokens kept
    depth: int = 0  # drafts on the longest path of the step's tree; a chain's: as drafted
    calls: int = 0  # runs of the draft model
    rejected: list[int] = field(default_factory=list)  # drafts that lost to the bonus; none where EOS cut it off
    accepted_confidence: list[float] = field(default_factory=list)  # of each accepted draft; empty: unknown
    rejected_confidence: list[float] = field(default_factory=list)  # of each in `rejected`; empty: unknown
    draft_s: float = 0.0  # drafting
    verify_s: float = 0.0  # the target's pass and the choice of tokens; the rest of the step is bookkeeping
    # When drafting began, when verification began and when it ended; `decode` turns them into the two times once the
    # device has come to rest, so that no step waits for its own clock.
    marks: tuple[Any, ...] = field(default=(), compare=False, repr=False)
