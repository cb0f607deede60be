"""Metrics of a comparison and their verdicts: better, the same, worse, or inconclusive. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from bench.figures import breakdown, stats
from bench.figures.comparison import Comparison, Metric
from bench.figures.metrics import OVERALL
from bench.figures.records import Turn
from bench.figures.summary import Estimate

BETTER, SAME, WORSE, UNKNOWN = "better", "same", "worse", "inconclusive"
_EXACT = 1e-9

Answer = TypeVar("Answer")


def settle(compared: Comparison) -> None:
    """Draw the verdicts of cells, methods and the whole from those of the metrics that count."""
    for entry in compared.methods.values():
        for cell in entry.tasks.values():
            cell.verdict = worst(metric.verdict for metric in cell.metrics.values() if metric.counts)
        entry.verdict = entry.tasks[OVERALL].verdict
    compared.verdict = worst(entry.verdict for entry in compared.methods.values())


def worst(verdicts: Iterable[str]) -> str:
    """The one that a reader must know of: worse, then inconclusive, then better, then same."""
    order = [WORSE, UNKNOWN, BETTER, SAME]
    return min(verdicts, key=order.index, default=UNKNOWN)


def judge(change: Estimate, effect: float, *, more_is_worse: bool) -> str:
    """The verdict on a ratio of new to base with its interval: significant *and* of some size, or neither."""
    if change.value is None or change.bounds is None:
        return UNKNOWN
    value, (low, high) = change.value, change.bounds
    if not more_is_worse:
        value, low, high = 1 / value, 1 / high, 1 / low
    if low > 1 and value > 1 + effect:
        return WORSE
    if high < 1 and value < 1 / (1 + effect):
        return BETTER
    return SAME if high < 1 + effect else UNKNOWN


def new_metric(base: float | None, new: float | None, change: Estimate | None = None, **more: Any) -> Metric:
    """A figure of both sides with its change; `more`: verdict, whether it counts, which way is worse."""
    return Metric(base=base, new=new, change=change or Estimate(), **more)


def counter(base: float, new: float, tolerance: float, **more: Any) -> Metric:
    """A figure without noise: it has no interval, and any change beyond the tolerance counts."""
    value = breakdown.ratio(new, base) if base else (1.0 if base == new else None)
    metric = new_metric(base, new, Estimate(value, value, value), **more)
    if value is not None and abs(value - 1) <= tolerance + _EXACT:
        metric.verdict = SAME
    else:
        metric.verdict = WORSE if (new > base) == metric.more_is_worse else BETTER
    return metric


def fault(pairs: Iterable[tuple[Answer, Answer]], of: Callable[[Answer], bool]) -> Metric:
    """Answers with a fault: one that was right before makes it worse, whatever got better elsewhere."""
    sides = [(of(base), of(new)) for base, new in pairs]
    base, new = sum(a for a, _ in sides), sum(b for _, b in sides)
    verdict = WORSE if any(b and not a for a, b in sides) else BETTER if new < base else SAME
    return new_metric(base, new, verdict=verdict)


def per_unit(tasks: list[stats.Array]) -> tuple[float | None, float | None]:
    """Milliseconds per unit, base's and new's: the tasks' unweighted mean."""
    totals = [task.sum(axis=0) for task in tasks]
    base = breakdown.mean(breakdown.ratio(1000 * total[3], total[2]) for total in totals)
    new = breakdown.mean(breakdown.ratio(1000 * total[1], total[0]) for total in totals)
    return base, new


def time_change(tasks: list[stats.Array]) -> Estimate:
    """Time of new over base: the geometric mean of the questions' ratios, by task, with its interval."""
    rate = stats.estimates(tasks)["geometric"]  # of speeds, new over base
    return Estimate(_inverse(rate.value), _inverse(rate.high), _inverse(rate.low))


def prefill_units(turn: Turn) -> tuple[float, int]:
    """Seconds and prompt tokens of a prefill."""
    return turn.prefill_s, turn.prompt_tokens


def decode_units(turn: Turn) -> tuple[float, int]:
    """Seconds and tokens of decoding."""
    return turn.decode_s, turn.decode_tokens


def _inverse(value: float | None) -> float | None:
    return 1 / value if value else None
