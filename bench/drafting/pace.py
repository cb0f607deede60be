"""What a question teaches: how often drafts are right, and what they may cost at its pace.

For draft models with confidences see `bench.drafting.stopping`. Needs no torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from bench.config import setting
from bench.drafting.knobs import COSTS, Costs
from bench.drafting.method import GainMethod
from bench.drafting.tree import ROOT

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder

_PRIOR_STEPS = 8  # vanilla steps of one token each, with which a question's rate starts
LEAST = 0.005  # the chance below which a draft is never worth its cost

Place = TypeVar("Place")  # where a draft may follow; what it is, only the method knows
# place -> of each token that may follow there: its rank, the token, and the place after it
Following = Callable[[Place], Iterable[tuple[int, int, Place]]]


class Chances:
    """How often drafts of each rank are right: counted in a question, starting from a prior."""

    def __init__(self, prior: Many[float], tries: float = 16.0):
        """`tries`: the drafts of each rank that the prior counts as."""
        self.right = [chance * tries for chance in prior]
        self.offered = [tries] * len(prior)

    def __getitem__(self, rank: int) -> float:
        return self.right[rank] / self.offered[rank]

    def learn(self, ranks: Iterable[int], right: int | None) -> None:
        """Count drafts of these ranks, of which one was right, or none."""
        for rank in ranks:
            self.offered[rank] += 1
        if right is not None:
            self.right[right] += 1

    def follow(self, place: Place, following: Following[Place], text: Iterable[int]) -> None:
        """Count drafts along a text, as far as it was foreseen."""
        for token in text:
            options = list(following(place))
            found = next((option for option in options if option[1] == token), None)
            self.learn((rank for rank, _, _ in options), None if found is None else found[0])
            if found is None:
                return
            place = found[2]


class Grown(NamedTuple):
    """A tree of drafts, the most probable ones first."""

    tokens: list[int]
    parents: list[int]
    chances: list[float]  # of each draft, that it is accepted: never larger than the one before


def grow(
    place: Place, following: Following[Place], chances: Chances, most: int, depth: int, least: float = LEAST
) -> Grown:
    """Return the tree of the `most` most probable drafts from a place on, at most `depth` in a row.

    Drafts with a chance below `least` are left out.
    """
    grown = Grown([], [], [])
    # The chance, negated; a number that tells equals apart; parent, token, place and depth.
    heap: list[tuple[float, int, int, int, Place, int]] = [(-1.0, 0, ROOT, ROOT, place, 0)]
    pushed = 0
    while heap and len(grown.tokens) < most:
        minus, _, parent, token, at, level = heapq.heappop(heap)
        node = len(grown.tokens) if level else ROOT
        if level:
            grown.tokens.append(token)
            grown.parents.append(parent)
            grown.chances.append(-minus)
        for rank, child, after in following(at) if level < depth else ():
            if (chance := -minus * chances[rank]) >= least:
                pushed += 1
                heapq.heappush(heap, (-chance, pushed, node, child, after, level + 1))
    return grown


class Pace:
    """The tokens per vanilla step of a question so far, against which drafts are weighed.

    Drafts may lose `lost` vanilla steps to begin with, `share` of a step per token, and what earlier drafts have saved.
    So useless drafts cost a question of n tokens at most `lost + share * n` vanilla steps, whatever they promise.
    """

    def __init__(self, costs: Costs, lost: float = 0.5, share: float = 0.02):
        self.costs, self.share = costs, share
        self.tokens = self.time = float(_PRIOR_STEPS)
        self.allowance = lost

    @property
    def rate(self) -> float:
        """Tokens per vanilla step; at least vanilla's own."""
        return max(1.0, self.tokens / self.time)

    def worth(self, chances: Many[float], scouts: int = 0) -> int:
        """Return how many of the drafts to verify, taken in order, in a pass that has so many scouts.

        `chances`: of each draft, that it is accepted.
        """
        best = gain = 0.0
        count = 0
        for n, chance in enumerate(chances, 1):
            cost = self.verifying(n, scouts)
            if cost > self.allowance:
                break
            gain += chance
            if gain - self.rate * cost > best:
                best, count = gain - self.rate * cost, n
        return count

    def verifying(self, drafts: int, others: int = 0) -> float:
        """Return what drafts add to the cost of verifying the newest token and so many others."""
        return self.costs.verifying(1 + others + drafts) - self.costs.verifying(1 + others)

    def pay(self, spent: float) -> None:
        """Count the cost of a draft model's call, before it is known what to verify; not again when the step ends."""
        self.time += spent
        self.allowance -= spent

    def end(self, spent: float, emitted: int) -> None:
        """End a step of `emitted` tokens. `spent`: the cost of its drafts, in vanilla steps."""
        self.tokens += emitted
        self.time += 1 + spent
        self.allowance += emitted - 1 - spent + self.share * emitted


class Trust:
    """How far a question bears out what its drafts promise: a belief about the factor by which they promise too much.

    The belief starts by trusting the promises and is updated by Bayes' rule, so a run of wrong drafts that were all but
    certain says more than one of doubtful drafts. It fades towards its start, as text changes.
    """

    _FACTORS = (1.0, 0.5, 0.25, 0.05)
    _START = (0.8, 0.1, 0.05, 0.05)
    _FADING = 0.02  # by draft
    _SURE = 0.98  # no draft is more certain, nor less than 1 - _SURE

    def __init__(self) -> None:
        self._belief = self._START

    @property
    def factor(self) -> float:
        """What promised chances are multiplied by, at most 1."""
        now, start = (sum(map(mul, self._FACTORS, belief)) for belief in (self._belief, self._START))
        return min(1.0, now / start)

    def learn(self, chance: float, right: bool) -> None:
        """Learn from a draft that promised to be right with some chance."""
        chance = min(max(chance, 1 - self._SURE), self._SURE)
        likely = [factor * chance if right else 1 - factor * chance for factor in self._FACTORS]
        total = sum(map(mul, self._belief, likely))
        self._belief = tuple(
            (1 - self._FADING) * belief * one / total + self._FADING * start
            for belief, one, start in zip(self._belief, likely, self._START, strict=True)
        )


@dataclass(frozen=True)
class PacedConfig:
    """The knobs that methods with a pace share."""

    stops: ClassVar[tuple[str, ...]] = ("gain", "never")
    stop: str = setting(
        "gain",
        "gain: only drafts that are expected to gain more than they cost on this device; never: all, as published",
    )
    costs: str = setting("", f"for stop=gain: {COSTS}")

    def __post_init__(self) -> None:
        if self.stop not in self.stops:
            raise ValueError(f"stop={self.stop} must be {' or '.join(self.stops)}")
        if self.costs:
            Costs.parse(self.costs)


class PacedMethod(GainMethod):
    """A method that weighs its drafts by a question's pace, unless it makes all that its paper does."""

    Config: type = PacedConfig

    def __init__(self, target: Decoder, config: Any):
        super().__init__(target, config)
        if config.stop == "gain":
            _ = self.costs  # measured now, before anything is timed

    def new_pace(self, **options: float) -> Pace | None:
        """Return the pace of a new question; None: all drafts are made."""
        return Pace(self.costs, **options) if self.config.stop == "gain" else None
