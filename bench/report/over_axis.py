"""The section of a run over temperatures or prompt lengths: how fast methods are at each value, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.figures.summary import Axis, Cell, Entry, Summary
from bench.report import tables
from bench.report.formats import (
    at_text,
    identical_text,
    number,
    shown_is,
    shown_name,
    times,
    times_between,
    window_list,
)
from bench.report.model import Column, Section, Table

ABOUT = {
    "temperature": (
        "The same questions at every temperature, in turns. The baseline is vanilla at the same temperature. Only "
        "answers at temperature 0 can be compared token by token."
    ),
    "prompt length": (
        "The same questions at every length, in turns. The baseline is vanilla at the same length. Passages of the "
        "question's kind precede it, and those nearest to it are the same at every length. Lengths are those of first "
        "prompts; a second turn adds to them."
    ),
}
CACHE = "cache_bytes_per_token"  # a method's note


def section(summary: Summary) -> Section:
    """Tables with a row a method and a column a value; empty for a run without an axis."""
    axis = summary.axis
    if axis is None or len(summary.methods) < 2:
        return Section("")
    ours, others = tables.in_order(summary, "method"), tables.in_order(summary, "method", "peer")
    everybody = tables.in_order(summary, "vanilla", "method", "peer")
    found = [
        _table(axis, "Decode speedup", others, lambda cell: times_between(cell.speedup_decode)),
        _table(axis, "End-to-end speedup", others, lambda cell: times_between(cell.speedup_total)),
        _table(axis, "CR", others, lambda cell: number(cell.compression_rate)),
        _table(axis, "Time per token, ms", everybody, lambda cell: number(ms_per_token(cell), 2)),
    ]
    if axis.name == "prompt length":
        found += [_table(axis, "Prefill, s", everybody, lambda cell: number(cell.ttft_s, 3)), *_memory(axis, everybody)]
    found += [
        _table(axis, "Output identical", others, lambda cell: identical_text(cell.lossless)),
        _table(axis, "Conditional acceptance by position", ours, lambda cell: window_list(cell.conditional_acceptance)),
    ]
    title = f"By {axis.name}"
    return Section(title, [ABOUT[axis.name], *(table for table in found if table.rows), shown_is(summary)], title)


def listed(summary: Summary, name: str) -> str:
    """A method's speedups in a line: `temperature 0, 0.5: 1.80x, 1.31x`."""
    assert summary.axis is not None
    points = summary.axis.points
    values = ", ".join(f"{point.value:g}" for point in points)
    speedups = ", ".join(times(point.methods[name].speedup_decode.value) for point in points)
    return f"{summary.axis.name} {values}: {speedups}"


def ms_per_token(cell: Cell) -> float | None:
    """Decode time per token: the inverse of the tasks' mean rate."""
    return 1e3 / cell.tok_per_s if cell.tok_per_s else None


def cache_mib(entry: Entry, tokens: float) -> float | None:
    """What the caches of a method take for a context of so many tokens; None: not recorded."""
    size = entry.notes.get(CACHE)
    return size * tokens / 2**20 if isinstance(size, int) else None


def _table(axis: Axis, caption: str, entries: Mapping[str, Entry], show: Callable[[Cell], str]) -> Table:
    rows = [
        [shown_name(name, entry), *(show(point.methods[name]) for point in axis.points)]
        for name, entry in entries.items()
    ]
    return Table(_columns(axis, caption), rows, caption)


def _columns(axis: Axis, figure: str) -> Sequence[Column]:
    heading = figure if figure == "CR" else f"{figure[:1].lower()}{figure[1:]}"
    return [Column(heading, left=True), *(Column(at_text(axis, point.value)) for point in axis.points)]


def _memory(axis: Axis, entries: Mapping[str, Entry]) -> list[Table]:
    """Caches alone: weights and working memory do not grow with the prompt."""
    rows = [
        [shown_name(name, entry), *(number(cache_mib(entry, point.value), 1) for point in axis.points)]
        for name, entry in entries.items()
        if cache_mib(entry, 1) is not None
    ]
    caption = "Keys and values, MiB (the target's and a draft model's)"
    return [Table(_columns(axis, caption), rows, caption)]
