"""Turns that a summary names: those that failed, that are not vanilla's, or that were disturbed. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.typed_json import Count, Finite, Share


@dataclass(slots=True)
class Where:
    """A turn: its place in the run. Turns and rounds count from 0."""

    question_id: Count
    task: str
    method: str
    turn: Count
    round: Count
    at: Finite | None = field(default=None, kw_only=True)  # the value of the run's axis


@dataclass(slots=True)
class Failure(Where):
    """A turn that failed."""

    error: str


@dataclass(slots=True)
class Divergence(Where):
    """A turn whose answer is not vanilla's; see `records.Audit`."""

    verdict: str
    position: Count | None
    token: Count | None
    vanilla_token: Count | None
    gap: Finite | None
    tolerance: Finite | None


@dataclass(slots=True)
class BusyTurn(Where):
    """A turn that was decoded while other programs used much of the processors."""

    others_share: Share


@dataclass(slots=True)
class BusyTurns:
    """How many turns were, of those that recorded it; those with the highest shares first."""

    turns: Count
    of: Count
    by_task: dict[str, Count]
    worst: list[BusyTurn]


@dataclass(slots=True)
class WithAndWithout:
    """A decode speedup with and without one turn; None: nothing is left without it."""

    speedup: Finite
    without: Finite | None


@dataclass(slots=True)
class Outlier(Where):
    """A stalled turn that by itself changes decode speedups in its task. It is not left out."""

    decode_s: Finite
    usual_s: Finite  # for as many tokens, by the method's median
    others_share: Share | None  # of the processors, used by other programs; None: not recorded
    speedups: dict[str, WithAndWithout]  # in its task, by method
