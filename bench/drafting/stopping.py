"""When a draft model that knows how sure it is should stop: by a threshold, or where one more draft costs more than it
is expected to bring. Both keep chains and beams of drafts, level by level. A rule is of one question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bench.drafting.costs import Costs
from bench.typed_json import Share

CALIBRATED_AT = tuple(i / 20 for i in range(21))  # confidences
_PRIOR_STEPS = 8  # vanilla steps, of a token each, that the gain rule takes a question to begin with


@dataclass(frozen=True)
class Calibration:
    """What a draft's confidence is worth, measured on held-out answers, at CALIBRATED_AT: the chance that it is the
    target's choice, and, if it is, that the next draft is too."""

    accepted: tuple[Share, ...]
    following: tuple[Share, ...]

    def __post_init__(self) -> None:
        if any(len(curve) != len(CALIBRATED_AT) for curve in (self.accepted, self.following)):
            raise ValueError(f"calibration must give {len(CALIBRATED_AT)} values a curve")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may be drafted, and how sure the draft model is of it."""

    parent: int  # the draft that it follows
    token: int
    confidence: float
    drawn: Tensor | None = None  # the distribution [V] that it was drawn from, if it was


class ThresholdRule:
    """The paper's second early exit: the first draft below the threshold is kept, and the last one.

    Of a beam, the most probable paths are kept, and the newest draft of the best one decides.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.confidence = 1.0
        self.reached = [1.0]  # by row: the product of confidences on its path

    def goes_on(self) -> bool:
        """Whether to make another level of drafts."""
        return self.confidence >= self.threshold

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """The candidates worth verifying, at most `most`, best first."""
        scored = [(self.reached[c.parent + 1] * c.confidence, c) for c in candidates]
        scored.sort(key=lambda pair: -pair[0])
        kept = [c for _, c in scored[:most]]
        self.reached += [reached for reached, _ in scored[:most]]
        self.confidence = kept[0].confidence
        return kept

    def end(self, accepted: int) -> None:
        """The step's drafts were verified."""


class GainRule:
    """Drafts as long as time spent on one more draft is expected to earn more than a step without it would.

    A draft's gain is the chance that it and all before it are accepted (calibrated confidences); its cost comes from
    the device's table; both are compared at the rate, tokens per vanilla step, that the question has seen so far.
    """

    def __init__(self, calibration: Calibration, costs: Costs):
        self.calibration, self.costs = calibration, costs
        self.tokens = self.time = float(_PRIOR_STEPS)  # of this question: the rate starts as vanilla's
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.levels = 0  # of drafts made
        self.passes = 1  # of the first layers
        self.reached = [1.0]  # by row: the chance that all drafts up to it are accepted
        self.hope = 1.0  # of what the next level may add: before it is made, what the one before lets expect

    def goes_on(self) -> bool:
        """Whether to make another level of drafts."""
        return self.hope > self._rate * (self.costs.draft[0] + self.costs.shallow + self._to_verify(len(self.reached)))

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """The candidates worth verifying, at most `most`, best first."""
        self.levels += 1
        accepted, following = self.calibration.accepted, self.calibration.following
        scored = [(self.reached[c.parent + 1] * _interpolate(c.confidence, accepted), c) for c in candidates]
        scored.sort(key=lambda pair: -pair[0])
        kept: list[Candidate] = []
        self.hope, own_pass = 0.0, self.costs.shallow  # which the level's first draft has to earn
        rows = len(self.reached)
        for reached, candidate in scored[:most]:
            if reached <= self._rate * (own_pass + self._to_verify(rows + len(kept))):
                break
            kept.append(candidate)
            self.reached.append(reached)
            self.hope += reached * _interpolate(candidate.confidence, following)
            own_pass = 0.0
        self.passes += bool(kept)
        return kept

    def end(self, accepted: int) -> None:
        """The step's drafts were verified."""
        c = self.costs
        self.tokens += accepted + 1
        self.time += c.shallow * self.passes + c.draft[0] * self.levels + c.verifying(len(self.reached))

    @property
    def _rate(self) -> float:
        return self.tokens / self.time

    def _to_verify(self, rows: int) -> float:
        """What one more row adds to a verification of so many."""
        return self.costs.verifying(rows + 1) - self.costs.verifying(rows)


def _interpolate(confidence: float, curve: Sequence[float]) -> float:
    """A calibrated curve between its points."""
    return float(np.interp(confidence, CALIBRATED_AT, curve))
