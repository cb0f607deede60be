"""When to stop drafting, for draft models with confidences: below a threshold, or where one more draft costs more than
its expected gain. Both rules keep chains and beams of drafts, level by level. A rule belongs to one question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bench.drafting.knobs import Costs
from bench.typed_json import Share

CALIBRATED_AT = tuple(i / 20 for i in range(21))  # confidences
_PRIOR_STEPS = 8  # vanilla steps of one token each, with which the gain rule starts a question


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

    def end(self, accepted: int) -> None:
        """End a step, with the number of accepted drafts."""


class GainRule:
    """Drafts as long as one more draft is expected to yield more tokens per time than a step without it.

    A draft's gain is the chance that it and all drafts before it are accepted (calibrated confidences). Its cost is
    that of the device. The two are compared at the question's rate so far, in tokens per vanilla step.
    """

    def __init__(self, calibration: Calibration, costs: Costs):
        self.calibration, self.costs = calibration, costs
        self.tokens = self.time = float(_PRIOR_STEPS)  # of this question: the rate starts at vanilla's
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.levels = 0  # levels of drafts made
        self.passes = 1  # passes of the first layers
        self.reached = [1.0]  # by row: the chance that all drafts up to it are accepted
        self.hope = 1.0  # the tokens that the next level is expected to add, judged by the level before it

    def goes_on(self) -> bool:
        """Return whether to make another level of drafts."""
        return self.hope > self._rate * (self.costs.draft[0] + self.costs.shallow + self._to_verify(len(self.reached)))

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """Return the candidates worth verifying, at most `most`, best first."""
        self.levels += 1
        accepted, following = self.calibration.accepted, self.calibration.following
        scored = [(self.reached[c.parent + 1] * _interpolate(c.confidence, accepted), c) for c in candidates]
        scored.sort(key=lambda pair: -pair[0])
        kept: list[Candidate] = []
        self.hope, own_pass = 0.0, self.costs.shallow  # which the level's first draft has to be worth
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
        """End a step, with the number of accepted drafts."""
        c = self.costs
        self.tokens += accepted + 1
        self.time += c.shallow * self.passes + c.draft[0] * self.levels + c.verifying(len(self.reached))

    @property
    def _rate(self) -> float:
        return self.tokens / self.time

    def _to_verify(self, rows: int) -> float:
        """Return what one more row adds to a verification of `rows`."""
        return self.costs.verifying(rows + 1) - self.costs.verifying(rows)


def _interpolate(confidence: float, curve: Sequence[float]) -> float:
    """Interpolate a calibrated curve."""
    return float(np.interp(confidence, CALIBRATED_AT, curve))
