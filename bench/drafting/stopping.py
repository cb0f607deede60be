"""When to stop drafting, for draft models with confidences: below a threshold, or where one more draft costs more than
its expected gain. Both rules keep chains and beams of drafts, level by level. `TreeRule` decides about whole trees.

A rule belongs to one question. What a draft is expected to gain comes from held-out answers (`Calibrated`) or from the
question alone (`Counted`). Either way the question corrects it, and `Pace` bounds what useless drafts cost. Needs no
torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bench.drafting.knobs import Costs
from bench.drafting.pace import Chances, Pace, Trust
from bench.drafting.tree import ROOT, tree_of
from bench.typed_json import Share

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATED_AT = tuple(i / 20 for i in range(21))  # confidences
_CALL = 0  # in place of a rank: any call of the draft model, whatever its confidence
_FIFTHS = 5  # ranks 1 to 5: a confidence in the first fifth, the second, ..
_BY_CONFIDENCE = (0.5, 0.1, 0.3, 0.5, 0.7, 0.9)  # the chance of each rank to begin with
_TRIES = 4.0  # drafts of each rank that this counts as
_PROMISES = 8.0  # drafts that the calibration counts as, among the question's
_RETRY = 16  # steps without a call after which there is one
_FADING = 0.8  # by how much a call counts less than the next one
_SHARE = 0.01  # see `Pace`
_TRUSTED = 1.5  # vanilla steps that drafts may lose to begin with, where held-out answers speak for them
_UNKNOWN = 0.75  # where nothing does


@dataclass(frozen=True)
class Calibration:
    """Calibrated confidences, measured on held-out answers at CALIBRATED_AT: the chance that a draft is the target's
    choice, and, if it is, that the next draft is too."""

    accepted: tuple[Share, ...]
    following: tuple[Share, ...]

    def __post_init__(self) -> None:
        if any(len(curve) != len(CALIBRATED_AT) for curve in (self.accepted, self.following)):
            raise ValueError(f"calibration must have {len(CALIBRATED_AT)} values per curve")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may be drafted, and the draft model's confidence."""

    parent: int  # the draft that it follows
    token: int
    confidence: float
    drawn: Tensor | None = None  # the distribution [V] that it was drawn from; None: it is deterministic


class ThresholdRule:
    """The second early exit of arXiv 2404.18911: drafting stops after the first draft below the threshold.

    That draft is kept. Of a beam, the most probable paths are kept, and the newest draft of the best one decides.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.confidence = 1.0
        self.reached = [1.0]  # by row: the product of confidences on its path

    def goes_on(self) -> bool:
        """Return whether to make another level of drafts."""
        return self.confidence >= self.threshold

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """Return the candidates worth verifying, at most `most`, best first."""
        scored = [(self.reached[c.parent + 1] * c.confidence, c) for c in candidates]
        scored.sort(key=lambda pair: -pair[0])
        kept = [c for _, c in scored[:most]]
        self.reached += [reached for reached, _ in scored[:most]]
        self.confidence = kept[0].confidence
        return kept

    def end(self, emitted: Sequence[int]) -> None:
        """End a step, with the tokens that it emitted."""


class HeuristicRule:
    """The schedule of Spec-Bench and of transformers' assisted generation (heuristic_transient): a question starts with
    five drafts, and there are two more after a full match, else one less.
    """

    def __init__(self) -> None:
        self.length = 5
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.made = 0

    def goes_on(self) -> bool:
        """Return whether to make another draft."""
        return self.made < self.length

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """Return the most probable candidate."""
        self.made += 1
        return [max(candidates, key=lambda candidate: candidate.confidence)]

    def end(self, emitted: Sequence[int]) -> None:
        """End a step, with the tokens that it emitted: after a full match, one more than were drafted."""
        self.length = self.length + 2 if len(emitted) > self.made else max(1, self.length - 1)


class Estimate(Protocol):
    """What a confidence is worth in a question."""

    lost: float  # see `Pace`

    @property
    def first(self) -> float:
        """The chance that the first draft of a step is right, before it is made."""

    def accepted(self, confidence: float) -> float:
        """Return the chance that a draft is right, if the drafts before it are."""

    def following(self, confidence: float) -> float:
        """Return the chance that the draft after a right one is right."""

    def learn(self, offered: Sequence[float], right: float | None) -> None:
        """Learn from the confidences of all candidates for a token, and of the one that was right."""


class Calibrated:
    """Confidences as calibrated, corrected by the question."""

    lost = _TRUSTED

    def __init__(self, calibration: Calibration):
        self.calibration, self.trust = calibration, Trust()
        # What the question's drafts promised, and their number: as if after a certain token to begin with.
        self.promised, self.drafts = _PROMISES * _interpolate(1.0, calibration.following), _PROMISES

    @property
    def first(self) -> float:
        """The mean of the question so far."""
        return self.trust.factor * self.promised / self.drafts

    def accepted(self, confidence: float) -> float:
        """See `Estimate`."""
        return self.trust.factor * _interpolate(confidence, self.calibration.accepted)

    def following(self, confidence: float) -> float:
        """See `Estimate`."""
        return self.trust.factor * _interpolate(confidence, self.calibration.following)

    def learn(self, offered: Sequence[float], right: float | None) -> None:
        """See `Estimate`."""
        promised = sum(_interpolate(confidence, self.calibration.accepted) for confidence in offered)
        self.promised += promised
        self.drafts += 1
        self.trust.learn(promised, right is not None)


class Counted:
    """Without a calibration: how often drafts of a confidence were right in the question."""

    lost = _UNKNOWN

    def __init__(self, expected: float | None) -> None:
        prior = _BY_CONFIDENCE if expected is None else [expected] * len(_BY_CONFIDENCE)
        self.chances = Chances(prior, _TRIES)

    @property
    def first(self) -> float:
        """As any call."""
        return self.chances[_CALL]

    def accepted(self, confidence: float) -> float:
        """See `Estimate`."""
        return self.chances[_rank(confidence)]

    def following(self, confidence: float) -> float:
        """As any call."""
        return self.chances[_CALL]

    def learn(self, offered: Sequence[float], right: float | None) -> None:
        """See `Estimate`."""
        self.chances.learn([_CALL], None if right is None else _CALL)
        self.chances.learn(map(_rank, offered), None if right is None else _rank(right))


class _Offered(NamedTuple):
    """A candidate of the current step."""

    parent: int
    token: int
    confidence: float
    row: int | None  # its number among the drafts; None: it was dropped


class GainRule:
    """Drafts as long as one more draft is expected to yield more tokens per time than a step without it.

    A draft's gain is the chance that it and all drafts before it are accepted. Its cost is that of the device. The two
    are compared at the question's rate so far. Where drafting does not pay, it is tried again at times.
    """

    def __init__(self, calibration: Calibration | None, costs: Costs, expected: float | None = None):
        """`expected`: without a calibration, the chance of drafts to begin with; None: by their confidence."""
        self.estimate: Estimate = Calibrated(calibration) if calibration else Counted(expected)
        self.pace = Pace(costs, self.estimate.lost, _SHARE)
        self.idle = 0  # steps since the last call
        self.spent = 0.0  # since the last step that ended: one that another method drafted for does not
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.offered: list[_Offered] = []
        self.reached = [1.0]  # by row: the chance that all drafts up to it are accepted
        self.hope = self.estimate.first  # the tokens that the next level is expected to add

    def goes_on(self) -> bool:
        """Return whether to make another level of drafts."""
        call = self.pace.costs.draft[0] + self.pace.costs.shallow + self.pace.verifying(1, len(self.reached) - 1)
        due = self.idle >= _RETRY and not self.offered
        return self._affords(call) and (due or self.hope > self.pace.rate * call)

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """Return the candidates worth verifying, at most `most`, best first."""
        self.spent += self.pace.costs.draft[0]
        scored = [(self.reached[c.parent + 1] * self.estimate.accepted(c.confidence), c) for c in candidates]
        scored.sort(key=lambda pair: -pair[0])
        kept: list[Candidate] = []
        self.hope, own_pass = 0.0, self.pace.costs.shallow  # which the level's first draft has to be worth
        first = len(self.reached) - 1
        for reached, candidate in scored[:most]:
            cost = own_pass + self.pace.verifying(1, first + len(kept))
            if reached <= self.pace.rate * cost or not self._affords(cost):
                break
            kept.append(candidate)
            self.reached.append(reached)
            self.hope += reached * self.estimate.following(candidate.confidence)
            self.spent += cost
            own_pass = 0.0
        for i, (_, c) in enumerate(scored):
            self.offered.append(_Offered(c.parent, c.token, c.confidence, first + i if i < len(kept) else None))
        return kept

    def end(self, emitted: Sequence[int]) -> None:
        """End a step, with the tokens that it emitted. They also tell whether what was dropped was right."""
        node: int | None = ROOT
        for token in emitted:
            options = [option for option in self.offered if option.parent == node]
            right = next((option for option in options if option.token == token), None)
            if options:
                self.estimate.learn([o.confidence for o in options], None if right is None else right.confidence)
            if right is None or right.row is None:
                break
            node = right.row
        self.idle = 0 if self.offered else self.idle + 1
        self.pace.end(self.spent, len(emitted))
        self.spent = 0.0

    def _affords(self, cost: float) -> bool:
        return self.spent + cost <= self.pace.allowance


class TreeRule:
    """Decides before each step whether a static tree of drafts is worth its cost.

    Where it is not, by what the question has shown so far, it is tried again at times.
    """

    def __init__(self, shares: Sequence[float], parents: Sequence[int], drafting: float, costs: Costs):
        """`shares`: how often all drafts up to each one are right on held-out answers; `drafting`: the draft's cost."""
        self.pace = Pace(costs, _TRUSTED, _SHARE)
        self.shares, self.tree, self.drafting = shares, tree_of(list(parents)), drafting
        self.trust = Trust()
        self.idle = 0  # steps since the last draft

    def pays(self, drafts: int) -> bool:
        """Return whether to verify the first `drafts` drafts of the tree."""
        depths = self.tree.depths[1 : drafts + 1]
        gain = sum(s * self.trust.factor**depth for s, depth in zip(self.shares, depths, strict=False))
        cost = self._cost(drafts)
        return cost <= self.pace.allowance and (gain > self.pace.rate * cost or self.idle >= _RETRY)

    def end(self, drafts: int, accepted: Sequence[int]) -> None:
        """End a step that verified so many drafts (0: none) and accepted some, by number from the root down."""
        reached = 1.0
        for node, following in zip((ROOT, *accepted), (*accepted, None), strict=True):
            chance = sum(self.shares[child] for child in self.tree.children.get(node, ()) if child < drafts)
            if chance and reached:
                self.trust.learn(chance / reached, following is not None)
            reached = 0.0 if following is None else self.shares[following]
        self.idle = 0 if drafts else self.idle + 1
        self.pace.end(self._cost(drafts), len(accepted) + 1)

    def _cost(self, drafts: int) -> float:
        return self.drafting + self.pace.verifying(drafts) if drafts else 0.0


class BlockRule:
    """Decides whether to draft where one call makes a whole block of drafts, and how many of these to verify.

    As with `Counted`, what a confidence is worth is learned from the question. Calls go on as long as the recent
    ones have gained more than they cost; where they have not, one is tried at times.
    """

    def __init__(self, costs: Costs):
        self.pace = Pace(costs, _UNKNOWN, _SHARE)
        self.chances = Chances(_BY_CONFIDENCE, _TRIES)
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

    def keep(self, tokens: Sequence[int], confidences: Sequence[float]) -> int:
        """Return how many of a block's drafts to verify."""
        ranks = [_rank(confidence) for confidence in confidences]
        self.made = list(zip(tokens, ranks, strict=True))
        self.pace.pay(self.pace.costs.draft[0])
        count = self.pace.worth(list(itertools.accumulate((self.chances[rank] for rank in ranks), mul)))
        self.spent = self.pace.verifying(count)
        return count

    def end(self, emitted: Sequence[int]) -> None:
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


def _rank(confidence: float) -> int:
    return 1 + min(int(confidence * _FIFTHS), _FIFTHS - 1)


def _interpolate(confidence: float, curve: Sequence[float]) -> float:
    """Interpolate a calibrated curve."""
    last = len(CALIBRATED_AT) - 1
    below = min(int(confidence * last), last - 1)
    return curve[below] + (confidence * last - below) * (curve[below + 1] - curve[below])
