"""A group-sequential test on paired log ratios, which decides whether the speed changed. Pure.

Each pair is one question answered by base and new back to back: the log of new's time per token over base's. We test
the tasks' unweighted mean of these logs. After each block of questions the method is called worse if the mean is
significantly above 0 *and* above the effect that matters, and fine if it is significantly below that effect;
otherwise the gate goes on.

Repeated looks would raise the rate of false alarms: each look gets its share by Lan and DeMets' spending function
of O'Brien and Fleming's type (Biometrika 70, 1983) as the budget is spent; shares are simply added
(Bonferroni), which is conservative. Means are trimmed within each task (Yuen, Biometrika 61, 1974), so that slow
moments of a shared machine, which hit single answers, do not decide; tasks are never traded against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from bench.figures.compare import DECODE, PREFILL
from bench.figures.rules import Rules

WORSE, FINE, UNDECIDED = "worse", "fine", "undecided"
TRIM = 0.2  # of a task's pairs on either side
LEAST = 3  # pairs of each task before the first look
_LEAST_LEVEL = 1e-12  # below it the quantile is beyond what can be computed, and beyond any data


@dataclass
class SequentialTest:
    """The decision on one time of one method.

    `alarm`: chance that unchanged code is ever called worse. `miss`: at each look, that of a change of just the
    effect's size to be called fine.
    """

    effect: float
    alarm: float
    miss: float = 0.005
    spent: float = 0.0  # share of the false alarms that earlier looks have used
    verdict: str = UNDECIDED
    change: float | None = None  # log of new over base at the last look, and its bounds there
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    looks: list[float] = field(default_factory=list)  # the budget used up at each

    def look(self, tasks: Sequence[Sequence[float]], used: float) -> str:
        """Decide on the tasks' log ratios so far, with `used` (0..1] of the budget spent. A decision is final."""
        known = [logs for logs in tasks if logs]
        if self.verdict != UNDECIDED or not known or min(map(len, known)) < LEAST:
            return self.verdict
        now = spending(self.alarm, used)
        level, self.spent = max(now - self.spent, 0.0), max(now, self.spent)
        self.looks.append(used)
        mean, error, freedom = mean_of_tasks(known)
        self.pairs, self.change = sum(map(len, known)), mean
        self.low = mean - _quantile(freedom, level) * error
        self.high = mean + _quantile(freedom, self.miss) * error
        if self.low > 0 and mean > math.log1p(self.effect):
            self.verdict = WORSE
        elif self.high < math.log1p(self.effect):
            self.verdict = FINE
        return self.verdict


def new_tests(methods: Iterable[str], rules: Rules, alarm: float) -> dict[tuple[str, str], SequentialTest]:
    """Tests by method and metric (decoding and prefill), which share the chance of a false alarm."""
    effects = {DECODE: rules.effect, PREFILL: rules.prefill_effect}
    keys = [(method, metric) for method in methods for metric in effects]
    return {key: SequentialTest(effects[key[1]], alarm / len(keys)) for key in keys}


def spending(alarm: float, used: float) -> float:
    """False alarms that may be spent once `used` of the budget is: 2 - 2 Phi(z / sqrt(used)), one-sided."""
    if used <= 0:
        return 0.0
    return float(2 * ndtr(ndtri(alarm / 2) / math.sqrt(min(used, 1.0))))


def mean_of_tasks(tasks: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Unweighted mean of the tasks' trimmed means, its standard error, and Welch's degrees of freedom."""
    means, errors, freedoms = zip(*map(trimmed, tasks), strict=True)
    variances = [(error / len(tasks)) ** 2 for error in errors]
    total = sum(variances)
    below = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    return sum(means) / len(tasks), math.sqrt(total), total**2 / below if below else float(sum(freedoms))


def trimmed(values: Sequence[float]) -> tuple[float, float, float]:
    """Trimmed mean, its standard error by the winsorised variance, and the degrees of freedom (Yuen)."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    cut = int(TRIM * n)
    kept = ordered[cut : n - cut]
    winsorised = np.clip(ordered, kept[0], kept[-1])
    error = math.sqrt(float(winsorised.var(ddof=1)) * (n - 1) / (len(kept) * (len(kept) - 1)))
    return float(kept.mean()), error, len(kept) - 1.0


def _quantile(freedom: float, level: float) -> float:
    """Student's t that is exceeded with probability `level`; infinite for 0."""
    return float(-stdtrit(freedom, level)) if level > _LEAST_LEVEL else math.inf
