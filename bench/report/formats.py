"""How figures and names are written, the same in every table, page and plot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bench.figures.machine import Machine
from bench.figures.metrics import VERDICTS
from bench.figures.notable import Where
from bench.figures.records import remembers_the_run
from bench.figures.summary import OVERALL, Axis, Entry, Estimate, Sampling, Statistics, Summary
from bench.text import visible

TASK_NAMES = {
    "mt_bench": "Multi-turn conversation",
    "translation": "Translation",
    "summarization": "Summarization",
    "qa": "Question answering",
    "math_reasoning": "Math reasoning",
    "rag": "RAG",
    OVERALL: "Overall",
}
UNDEFINED = "-"
PEAK_MEMORY = (
    "Peak memory: the most that the process (on CUDA: torch's tensors) held while the method answered, including "
    "everything else that was loaded: other methods, peers, the reference of an audit."
)
NOT_LOSSLESS = "NOT lossless"
SAMPLED = "sampled"
NO_INTERVALS = "no intervals: too few questions (one task alone needs four), or times too uneven"
RATIO_OF_SUMS = "ratio of sums (overall: the tasks' unweighted mean)"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute a cell
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", re.IGNORECASE)


def task_name(task: str) -> str:
    """A task as people call it; a task of another question set keeps its own name."""
    return TASK_NAMES.get(task, task)


def number(value: float | None, digits: int = 2) -> str:
    """A figure with a fixed number of decimals."""
    return UNDEFINED if value is None else f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    """A ratio, like `1.12x`."""
    return UNDEFINED if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """A share with its sign, like `+3.1%`."""
    return UNDEFINED if value is None else f"{100 * value:+.1f}%"


def plural(many: int, what: str) -> str:
    """Like `1 run`, `7 runs`."""
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def share(value: float | None, digits: int = 0) -> str:
    """A share without a sign, like `3%`."""
    return UNDEFINED if value is None else f"{value:.{digits}%}"


def times_between(estimate: Estimate | None) -> str:
    """A ratio with its interval where it has one, like `1.19x [1.15, 1.23]`."""
    if estimate is None:
        return UNDEFINED
    return times(estimate.value) + (f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.bounds else "")


def intervals(summary: Summary) -> Statistics | None:
    """How the intervals were computed; None where no speedup has one."""
    cells = [cell for entry in summary.methods.values() for cell in entry.tasks.values()]
    known = any(cell.speedup_decode.bounds or cell.speedup_total_mean_rates.bounds for cell in cells)
    return summary.statistics if known else None


def interval_text(summary: Summary, *, full: bool = False) -> str:
    """What the brackets behind a figure are, as recorded in the summary; empty where no figure has any.

    `full` includes the bootstrap method, which is long.
    """
    made = intervals(summary)
    if made is None:
        return ""
    method = f"{made.method}; " if full else ""
    return (
        f"in brackets the {made.interval:.0%} bootstrap interval ({method}{made.resamples:,} "
        f"resamples, clustered by {made.cluster}, stratified by {made.strata})"
    )


def shown_is(summary: Summary) -> str:
    """The sentence under a table of speedups: which estimator it shows and what the interval is."""
    return f"Speedups: {RATIO_OF_SUMS}; {interval_text(summary) or NO_INTERVALS}."


def window_list(values: Sequence[float | None] | None, limit: int | None = None) -> str:
    """A rate by window, like `0.50 0.22 0.10`."""
    return " ".join(number(value) for value in (values or [])[:limit]) or UNDEFINED


def gibibytes(value: int | None) -> str:
    """Memory, in GiB."""
    return f"{value / 2**30:.2f} GiB" if value else UNDEFINED


def count(value: int) -> str:
    """A count with thousands separators."""
    return f"{value:,}" if value else UNDEFINED


def shown_name(name: str, entry: Entry) -> str:
    """A method's name next to figures, with what keeps these from being compared with the others'."""
    answered = entry.answered
    fewer = f"{answered.questions} of {answered.of} questions" if answered.questions < answered.of else ""
    remembers = "remembers the run" if remembers_the_run(entry.notes) else ""
    lossless = "" if entry.lossless else "not lossless"
    notes = [note for note in (engine_text(entry), lossless, remembers, fewer) if note]
    label = entry.label or name
    return f"{label} ({', '.join(notes)})" if notes else label


def engine_text(entry: Entry) -> str:
    """The engine of a peer, like `another engine: vLLM 0.11.0`; empty where none is recorded."""
    match entry.notes.get("engine"):
        case {"name": str(name), "version": str(version)}:
            return f"another engine: {name} {version}".strip()
    return ""


def where(turn: Where, summary: Summary) -> str:
    """A turn as people count: the first turn and round are 1."""
    place = f"question {turn.question_id} ({task_name(turn.task)})"
    place += f" at {at_text(summary.axis, turn.at)}" if summary.axis and turn.at is not None else ""
    return f"{summary.label(turn.method)}, {place}, turn {turn.turn + 1}, round {turn.round + 1}"


def at_text(axis: Axis, value: float) -> str:
    """A value of the run's axis, like `temperature 0.5` or `2,048 tokens`."""
    return f"temperature {value:g}" if axis.name == "temperature" else f"{value:,.0f} tokens"


def axis_text(summary: Summary) -> str:
    """At which value of the run's axis figures are, like `prompts of 256 tokens`; empty without one."""
    if summary.axis is None:
        return ""
    shown = at_text(summary.axis, summary.axis.points[0].value)
    return shown if summary.axis.name == "temperature" else f"prompts of {shown}"


def device_name(device: Machine) -> str:
    """A device as it calls itself."""
    return device.name or device.type


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters: the middle is left out, because labels differ at their ends."""
    if len(text) <= limit:
        return text
    kept = max(limit - 1, 2)
    return f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


def csv_cell(value: Any) -> Any:
    """A value for CSV: a text that a spreadsheet would compute as a formula gets a quote in front."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if value.startswith(_FORMULA) and not _NUMBER.fullmatch(value) else text


def sampling_text(sampling: Sampling | None) -> str:
    """How tokens were drawn, like `temperature 0.7, top-p 0.8`; empty for greedy decoding."""
    if sampling is None:
        return ""
    text = f"temperature {sampling.temperature:g}"
    text += f", top-p {sampling.top_p:g}" if sampling.top_p < 1 else ""
    return text + (f", top-k {sampling.top_k}" if sampling.top_k else "")


def lossless_text(counts: dict[str, int] | None, *, sampled: bool = False) -> str:
    """The audit's verdicts, like `14/14 identical` or `13 identical, 1 numerical`."""
    if counts is None:
        return NOT_LOSSLESS
    audited = sum(counts.values())
    if audited == 0:
        return SAMPLED if sampled else "not checked"
    if counts["identical"] == audited:
        return f"{audited}/{audited} identical"
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def identical_text(counts: dict[str, int] | None) -> str:
    """The share of identical turns, short enough for a terminal."""
    if counts is None:
        return NOT_LOSSLESS
    if not sum(counts.values()):
        return UNDEFINED
    return f"{counts['identical']}/{sum(counts.values())}"


def precision_text(dtype: str, activations: str) -> str:
    """A number format, and that of activations in products where it is another: `q4, int8 activations`."""
    return dtype if activations in ("", dtype) else f"{dtype}, {activations} activations"


def setting_text(summary: Summary) -> list[str]:
    """What was measured on what: figures of different models, devices or questions must never be mixed up."""
    parts = [
        summary.model,
        device_name(summary.device),
        precision_text(summary.dtype, summary.activations),
        f"{summary.dataset.name} questions ({summary.dataset.questions})",
        sampling_text(summary.sampling) or axis_text(summary),
        "" if summary.complete else "interrupted run",
    ]
    return [part for part in parts if part]
