"""The axis of a run: a setting that takes several values in it, temperatures or prompt lengths. Pure: no torch.

A turn records the value at which it was asked. Pairs are of one value, so vanilla at the same value is the baseline.
Reports and comparisons are about the first value; `Summary.axis` has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.figures.checks import axis_values
from bench.figures.records import Run, Turn
from bench.figures.summary import AtValue, Axis, Sampling, Summary


def over_axis(run: Run, turns: Sequence[Turn], at: Callable[[Run, Sequence[Turn], float | None], Summary]) -> Summary:
    """The figures `at` the first value of the axis, with those over all values. Failures and divergences are of all."""
    values = values_asked(run, turns)
    found = [at(run, [turn for turn in turns if turn.at == value], value) for value in values]
    made = found[0]
    if values != [None]:
        name = "temperature" if run.config.get("temperatures") else "prompt length"
        overall = [{label: entry.overall for label, entry in one.methods.items()} for one in found]
        made.axis = Axis(name, [AtValue(value or 0.0, cells) for value, cells in zip(values, overall, strict=True)])
        made.failed = [failure for one in found for failure in one.failed]
        made.divergences = [divergence for one in found for divergence in one.divergences]
    return made


def values_asked(run: Run, turns: Iterable[Turn]) -> list[float | None]:
    """The values that were asked at; [None] for a run without an axis."""
    known, present = axis_values(run.config), {turn.at for turn in turns}
    return [value for value in known if value in present] or known[:1]


def at_first(run: Run, turns: Sequence[Turn]) -> list[Turn]:
    """The turns at the first value, which reports are about; all of a run without an axis."""
    first = values_asked(run, turns)[0]
    return [turn for turn in turns if turn.at == first]


def sampling(run: Run, value: float | None = None) -> Sampling | None:
    """How tokens were drawn, at a value of the axis (None: at its first); None: greedy decoding."""
    temperature = run.config.get("temperature", 0)
    if temperatures := run.config.get("temperatures"):
        temperature = temperatures[0] if value is None else value
    return Sampling(temperature, run.config.get("top_p", 1.0), run.config.get("top_k", 0)) if temperature else None
