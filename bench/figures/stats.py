"""How far a speedup can be trusted: 95% bootstrap intervals, clustered by question and stratified by task. Pure.

Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), sections 2.4 and 3.2; the correction for few
questions: Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 5.3. Three estimators:

- `ratio_of_sums`: the method's Σ tokens / Σ seconds over vanilla's; over several tasks their unweighted mean.
- `mean_rates`: Spec-Bench's (Xia et al., arXiv 2401.07851): the mean over questions of the method's tokens/s over
  vanilla's mean; questions of several tasks are pooled.
- `geometric`: geometric mean over questions of (tokens/s over vanilla's tokens/s); several tasks: unweighted mean.

Besides, `median_ratio` is robust: a few stalled turns do not move it.

All turns and rounds of a question are one cluster: they share its prompt and its length, so they are summed and drawn
together. Each task is resampled on its own, with as many questions as it has. An undefined figure is None.

In a run by several workers, workers are clusters, too: all questions of a worker share what its device does to a
speedup. To the variance of the questions we add what the means of workers vary beyond the questions that they had, as
in two-way clustering (Cameron, Gelbach & Miller, Robust Inference with Multiway Clustering, 2011), and never less than
nothing. This part has one degree of freedom less than there are workers: few workers that differ make wide intervals,
and workers that do not differ leave them as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from bench.figures.summary import Estimate

LEVEL = 0.95
RESAMPLES = 5000  # a bound then wanders by about 1% of the interval's width from seed to seed
SEED = 20240117
_LEAST_S = 1e-12  # below it a clock measured nothing, and rates would overflow
_ROUNDING = 1e-24  # a variance of logs below it is that of rounding
LEAST_QUESTIONS = 4  # that the interval of a task alone needs; of several tasks, two each
LEAST_FREEDOM = 1.5  # degrees of freedom: fewer are left where one task of two questions causes nearly all the variance
WIDEST = 5.0  # bounds further apart than this factor say nothing
ESTIMATORS = ("ratio_of_sums", "mean_rates", "geometric")
STATISTICS = {
    "interval": LEVEL,
    "resamples": RESAMPLES,
    "method": "bootstrap percentiles of the log speedup, stretched by sqrt(n / (n - 1)) t / z for few questions",
    "cluster": "question",
    "strata": "task",
}

Array = NDArray[np.float64]

# Columns of a task's table, of which every estimator needs no more than the sums over questions.
_TOKENS, _SECONDS, _TOKENS_VANILLA, _SECONDS_VANILLA, _RATE, _RATE_VANILLA, _LOG_RATIO, _LOG_RATIOS = range(8)


@dataclass(frozen=True)
class Split:
    """A task's sums, by question and worker."""

    sums: Array  # [n, 4], columns as for `estimates`
    questions: Sequence[int]  # [n]
    workers: Sequence[str]  # [n]


def estimates(
    tasks: Sequence[Array], resamples: int = RESAMPLES, by_worker: Sequence[Split] = ()
) -> dict[str, Estimate]:
    """Each estimator with its interval, for one task or over several.

    Args:
        tasks: per task [questions, 4]: tokens and seconds of the method, tokens and seconds of vanilla, each summed
            over the question's turns and rounds.
        resamples: draws of the questions; the same ones at every call, so that methods are compared on equal draws.
        by_worker: per task the same sums by question and worker, if there were several workers.

    A question without time on one side has no rate, one without tokens no ratio: the estimators that need it leave
    it out, on both sides. So are tasks of which an estimator says nothing. `low` and `high` are None where an interval
    would say nothing: a task alone has fewer than LEAST_QUESTIONS questions, or one of several fewer than two; nearly
    all the variance comes from one task of two (fewer than LEAST_FREEDOM degrees of freedom are left); or the bounds
    are more than a factor of WIDEST apart. Those that are shown hold the truth as often as with many questions: 12
    questions of six tasks in 96-98% of simulated runs, four of one task in 93-95%.

    """
    tables = [_table(np.asarray(task, dtype=np.float64).reshape(-1, 4)) for task in tasks]
    actual = [table.sum(axis=0) for table in tables]
    # scipy.stats.bootstrap knows neither strata nor weights. Since sums are all that is needed, a draw of questions is
    # a row of counts, and all draws of all estimators one matrix product.
    drawn = [_counts(len(table), stratum, resamples) @ table for stratum, table in enumerate(tables)]
    splits = [(_table(split.sums), split) for split in by_worker]
    return {name: _estimate(name, tables, actual, drawn, splits) for name in ESTIMATORS}


def median_ratio(tasks: Sequence[Array]) -> float | None:
    """The robust estimate: the median over the questions of all `tasks` of (tokens/s over vanilla's tokens/s)."""
    tables = [_table(np.asarray(task, dtype=np.float64).reshape(-1, 4)) for task in tasks]
    logs = [log for table in tables for log in table[table[:, _LOG_RATIOS] > 0, _LOG_RATIO]]
    return math.exp(np.median(logs)) if logs else None


def _table(sums: Array) -> Array:
    """A task's questions [n, 4] with what the estimators add up [n, 8]; zeros where a question has no say."""
    tokens, seconds, tokens_vanilla, seconds_vanilla = sums.T
    timed = (seconds > _LEAST_S) & (seconds_vanilla > _LEAST_S)
    spoke = timed & (tokens > 0) & (tokens_vanilla > 0)
    rate = np.divide(tokens, seconds, out=np.zeros(len(sums)), where=timed)
    rate_vanilla = np.divide(tokens_vanilla, seconds_vanilla, out=np.zeros(len(sums)), where=timed)
    ratio = np.divide(rate, rate_vanilla, out=np.ones(len(sums)), where=spoke)
    return np.column_stack([sums, rate, rate_vanilla, np.log(ratio), spoke])


@functools.lru_cache(maxsize=16)
def _counts(questions: int, stratum: int, resamples: int) -> Array:
    """How often each draw takes each question [resamples, questions]; independent between strata."""
    if not questions:
        return np.zeros((resamples, 0))
    rng = np.random.default_rng([SEED, stratum])
    return rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples).astype(np.float64)


def _estimate(
    name: str,
    tables: Sequence[Array],
    actual: Sequence[Array],
    drawn: Sequence[Array],
    splits: Sequence[tuple[Array, Split]],
) -> Estimate:
    """One estimator over the tasks in which it is defined."""
    defined = [stratum for stratum, sums in enumerate(actual) if np.isfinite(_log(_speedup(name, sums)))]
    if not defined:
        return Estimate()
    actual, drawn = [actual[stratum] for stratum in defined], [drawn[stratum] for stratum in defined]
    questions = [_questions(name, tables[stratum]) for stratum in defined]
    value = float(_overall(name, actual))
    alone = Estimate(value)
    if min(questions) < (2 if len(questions) > 1 else LEAST_QUESTIONS):
        return alone
    added = _of_workers(name, [splits[stratum] for stratum in defined]) if splits else _NO_WORKERS
    stretch, freedom = _stretch(name, questions, actual, drawn, added)
    if freedom < LEAST_FREEDOM:
        return alone
    deviations = _finite(_log(_overall(name, drawn)) - _log(value))
    tail = (1 - LEVEL) / 2
    bounds = stretch * np.quantile(deviations, [tail, 1 - tail])
    # The draws' rounding must not put the bounds of equal questions beside their value.
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if high - low > math.log(WIDEST):
        return alone
    return Estimate(value, value * math.exp(low), value * math.exp(high))


@dataclass(frozen=True)
class _OfWorkers:
    """The variance that workers add to a speedup, in units of that of the questions, and its degrees of freedom."""

    variance: float
    freedom: float


_NO_WORKERS = _OfWorkers(0.0, 1.0)


def _of_workers(name: str, splits: Sequence[tuple[Array, Split]]) -> _OfWorkers:
    """How much more the means of workers vary than the questions that they had explain.

    To first order the log of the estimator is a sum over questions. Each adds its influence: the derivative of the log
    by the question's weight. A worker's sum of influences has the variance of its questions', and that of its device.
    """
    workers = np.array([worker for _, split in splits for worker in split.workers])
    names, counts = np.unique(workers, return_counts=True)
    shares = counts / len(workers) if len(workers) else np.ones(1)
    lone = float((shares**2).sum())  # 1 / the number of workers, if all have had as many questions
    if len(names) < 2:
        return _NO_WORKERS
    influences = _influences(name, [table for table, _ in splits])
    of_questions = expected = 0.0
    for influence, (_, split) in zip(influences, splits, strict=True):
        n = len(influence)
        if n > 1:
            own = np.unique(np.asarray(split.workers), return_counts=True)[1] / n
            expected += float((influence**2).sum()) * n / (n - 1) * (1 - float((own**2).sum()))
        _, cluster = np.unique(np.asarray(split.questions), return_inverse=True)
        sums = np.bincount(cluster, influence)
        of_questions += float((sums**2).sum()) * len(sums) / max(len(sums) - 1, 1)
    everything = np.concatenate(influences)
    found = sum(float(everything[workers == one].sum()) ** 2 for one in names)
    if of_questions < _ROUNDING:
        return _NO_WORKERS
    return _OfWorkers(max(0.0, found - expected) / (1 - lone) / of_questions, 1 / lone - 1)


def _influences(name: str, tables: Sequence[Array]) -> list[Array]:
    """What each row adds to the log of the estimator, to first order; zero in sum over each task."""
    actual = [table.sum(axis=0) for table in tables]
    found = []
    for stratum, sums in enumerate(actual):
        slopes = np.zeros(len(sums))
        for column, value in enumerate(sums):
            step = 1e-6 * max(abs(value), 1e-6)
            sides = []
            for sign in (1, -1):
                moved = sums.copy()
                moved[column] += sign * step
                sides.append(_log(_overall(name, [*actual[:stratum], moved, *actual[stratum + 1 :]])))
            slopes[column] = (sides[0] - sides[1]) / (2 * step)
        found.append((tables[stratum] - tables[stratum].mean(axis=0)) @ np.nan_to_num(slopes, posinf=0, neginf=0))
    return found


def _stretch(
    name: str, questions: Sequence[int], actual: Sequence[Array], drawn: Sequence[Array], added: _OfWorkers
) -> tuple[float, float]:
    """How much wider than the draws' percentiles an interval for so few questions has to be; degrees of freedom.

    Draws from n questions vary too little by sqrt((n - 1) / n), and n questions know their own spread only as well as
    Student's t says. Over tasks both are weighted with what each adds to the variance (Welch-Satterthwaite).

    Chosen by simulated coverage (tests/bench/figures/test_stats.py) over plain percentiles, basic and BCa intervals.
    With clustered, skewed times a task's 95% intervals hold the truth for 80, 10, 5 questions in 93-95, 92-95, 93-95%
    of runs (the ratio of sums least, as it leans on the longest questions); percentiles in 92-94, 88-91, 80-84%; BCa's
    in less for the ratio of sums, since its acceleration is itself estimated from few outliers.
    Stretching, unlike taking percentiles further out, works where few different draws exist. On the log scale,
    since times are skewed, and so that a task's vanilla over method has the same interval turned over.
    """
    spread = np.zeros(len(questions))
    for stratum in range(len(questions)):
        alone = [drawn[i] if i == stratum else actual[i] for i in range(len(questions))]
        spread[stratum] = _finite(_log(_overall(name, alone))).var()
    n = np.array(questions, dtype=np.float64)
    if spread.max() < _ROUNDING:
        return 1.0, float((n - 1).sum())
    unbiased = spread * n / (n - 1)
    shares = unbiased / unbiased.sum()  # of the variance; squares of tiny variances would vanish
    parts = np.append(shares, added.variance) / (1 + added.variance)
    freedom = 1 / (parts**2 / np.append(n - 1, added.freedom)).sum()
    quantile = (1 + LEVEL) / 2
    variance = unbiased.sum() * (1 + added.variance)
    stretch = np.sqrt(variance / spread.sum()) * stdtrit(freedom, quantile) / ndtri(quantile)
    return float(stretch), float(freedom)


def _questions(name: str, table: Array) -> int:
    """How many of a task's questions have a say in the estimator."""
    if name == "geometric":
        return int(table[:, _LOG_RATIOS].sum())
    columns = slice(_RATE, _RATE_VANILLA + 1) if name == "mean_rates" else slice(_TOKENS, _SECONDS_VANILLA + 1)
    return int(table[:, columns].any(axis=1).sum())


def _overall(name: str, sums: Sequence[Array]) -> Any:
    """The estimator over tasks, from the sums over each one's questions, [8] or [resamples, 8] each."""
    if name == "mean_rates":
        return _speedup(name, functools.reduce(np.add, sums))
    return functools.reduce(np.add, [_speedup(name, task) for task in sums]) / len(sums)


def _speedup(name: str, sums: Array) -> Any:
    """The estimator for one task, [...] from sums [..., 8]; not finite where it is undefined."""
    column = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if name == "geometric":
            return np.exp(column[_LOG_RATIO] / column[_LOG_RATIOS])
        if name == "mean_rates":
            return column[_RATE] / column[_RATE_VANILLA]
        return (column[_TOKENS] / column[_SECONDS]) / (column[_TOKENS_VANILLA] / column[_SECONDS_VANILLA])


def _log(values: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]
