"""Which drafts are worth verifying, where no training calibrated them: a question teaches how often they are right.

For trained draft models see `bench.drafting.stopping`. Needs no torch.
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from bench.config import setting
from bench.drafting.knobs import COSTS, Costs
from bench.drafting.method import SpeculativeMethod
from bench.drafting.tree import ROOT

if TYPE_CHECKING:
    from bench.drafting.stopping import Candidate
    from bench.engine.decoder import Decoder

_PRIOR_STEPS = 8  # vanilla steps of one token each, with which a question's rate starts
LEAST = 0.005  # the chance below which a draft is never worth its cost
_CALL = 0  # in place of a rank: any call of the draft model, whatever its confidence
_FIFTHS = 5  # ranks 1 to 5: a confidence in the first fifth, the second, ..
_BY_CONFIDENCE = (0.5, 0.1, 0.3, 0.5, 0.7, 0.9)
_RETRY = 16  # steps without a call after which there is one
_FADING = 0.8  # by how much a call counts less than the next one

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


class ConfidenceRule:
    """Stops a chain of drafts where one more costs more than it gains, like `stopping.GainRule` without calibration.

    What a confidence is worth is learned from the question. Where drafting does not pay, it is tried again at times.
    """

    def __init__(self, costs: Costs):
        self.pace = Pace(costs, lost=0.75, share=0.01)
        self.chances = Chances(_BY_CONFIDENCE, tries=4.0)
        self.idle = _RETRY  # steps since the last call
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.called: list[tuple[int, int]] = []  # the token of each call, and its confidence as a rank
        self.kept = 0  # drafts
        self.spent = 0.0
        self.reached = 1.0  # the chance that all drafts are accepted

    def goes_on(self) -> bool:
        """Return whether to call the draft model."""
        call = self.pace.costs.draft[0] + self._verification()
        due = self.idle >= _RETRY and not self.called
        worth = self.reached * self.chances[_CALL] > self.pace.rate * call
        return self.spent + call <= self.pace.allowance and (worth or due)

    def keep(self, candidates: Many[Candidate], most: int) -> list[Candidate]:
        """Return the candidate if it is worth verifying; of a chain there is one."""
        (candidate,) = candidates
        rank = 1 + min(int(candidate.confidence * _FIFTHS), _FIFTHS - 1)
        self.called.append((candidate.token, rank))
        self.idle = 0
        self.spent += self.pace.costs.draft[0]
        self.reached *= self.chances[rank]
        if self.reached <= self.pace.rate * (cost := self._verification()):
            return []
        self.kept += 1
        self.spent += cost
        return [candidate]

    def end(self, emitted: Many[int]) -> None:
        """End a step, with the tokens that it emitted. They also tell whether what was dropped was right."""
        for (token, rank), wanted in zip(self.called, emitted, strict=False):
            for one in (_CALL, rank):
                self.chances.learn([one], one if token == wanted else None)
            if token != wanted:
                break
        self.idle += not self.called
        self.pace.end(self.spent, len(emitted))

    def _verification(self) -> float:
        """Return what one more draft adds to the first layers and the verification."""
        return self.pace.costs.shallow + self.pace.verifying(1, self.kept)


class BlockRule:
    """Decides whether to draft where one call makes a whole block of drafts, and how many of these to verify.

    As with `ConfidenceRule`, what a confidence is worth is learned from the question. Calls go on as long as the recent
    ones have gained more than they cost; where they have not, one is tried at times.
    """

    def __init__(self, costs: Costs):
        self.pace = Pace(costs, lost=0.75, share=0.01)
        self.chances = Chances(_BY_CONFIDENCE, tries=4.0)
        self.gained = 1.0  # tokens that recent calls gained over their cost, the newest ones counted most
        self.idle = _RETRY  # steps since the last call
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.made: list[tuple[int, int]] = []  # the token of each draft, and its confidence as a rank
        self.spent = 0.0

    def goes_on(self) -> bool:
        """Return whether to call the draft model."""
        least = self.pace.costs.draft[0] + self.pace.verifying(1)
        return least <= self.pace.allowance and (self.gained > 0 or self.idle >= _RETRY)

    def keep(self, tokens: Many[int], confidences: Many[float]) -> int:
        """Return how many of a block's drafts to verify."""
        ranks = [1 + min(int(confidence * _FIFTHS), _FIFTHS - 1) for confidence in confidences]
        self.made = list(zip(tokens, ranks, strict=True))
        self.pace.pay(self.pace.costs.draft[0])
        count = self.pace.worth(list(itertools.accumulate((self.chances[rank] for rank in ranks), operator.mul)))
        self.spent = self.pace.verifying(count)
        return count

    def end(self, emitted: Many[int]) -> None:
        """End a step, with the tokens that it emitted. They also tell of the first draft not verified."""
        for (token, rank), wanted in zip(self.made, emitted, strict=False):
            self.chances.learn([rank], rank if token == wanted else None)
            if token != wanted:
                break
        self.idle += 1
        if self.made:
            cost = self.pace.costs.draft[0] + self.spent
            self.gained, self.idle = _FADING * self.gained + len(emitted) - 1 - self.pace.rate * cost, 0
        self.pace.end(self.spent, len(emitted))


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


class PacedMethod(SpeculativeMethod):
    """A method that weighs its drafts by a question's pace, unless it makes all that its paper does."""

    Config: type = PacedConfig

    def __init__(self, target: Decoder, config: Any):
        super().__init__(target, config)
        if config.costs:
            self.costs = Costs.parse(config.costs)
        elif config.stop == "gain":
            _ = self.costs  # measured now, before anything is timed

    def new_pace(self, **options: float) -> Pace | None:
        """Return the pace of a new question; None: all drafts are made."""
        return Pace(self.costs, **options) if self.config.stop == "gain" else None

    @property
    def measured(self) -> dict[str, Any]:
        """The costs that stop=gain uses."""
        return {"costs": str(self.costs)} if self.config.stop == "gain" and not self.config.costs else {}
