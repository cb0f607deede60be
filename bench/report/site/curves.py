"""Small panels of curves, one a method: drawn as SVG in the page's own colours, at any width, with a table below."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.figures.index import IndexEntry
from bench.figures.summary import Estimate
from bench.report.batched import below_from_the_start
from bench.report.formats import UNDEFINED, number, plural, times, times_between
from bench.report.model import Table, table
from bench.report.site.board import by_setting, commit, day, exactly_asked, machine, questions, target

# Of a panel, in pixels from above; across, everything is in percent of its width.
TOP, BOTTOM, LABELS = 12.0, 112.0, 132.0
_LEFT, _RIGHT = 18.0, 92.0
_MOST_TICKS = 5
HISTORY = (
    "Decode speedup with its 95% interval, by the commit that was measured, where a setting was measured at several. "
    "The dashed line is plain decoding in the same run. A setting is one model, machine, number format and set of "
    "questions; a method's weights may have been trained again from one commit to the next."
)
BATCHES = (
    "Throughput over plain decoding's at the same batch size. The curve falls to 1 at the *crossover*: beyond it, "
    "drafts cost more than they gain. The dotted curve is predicted from costs measured before the batches."
)
OVER = "Decode speedup over plain decoding at the same temperature or prompt length."


@dataclass(frozen=True, slots=True)
class Point:
    """A figure at a place of the axis."""

    at: float
    label: str  # of the place
    speedup: Estimate


@dataclass(frozen=True, slots=True)
class Panel:
    """A curve, ready to be drawn. Lines are (x1, y1, x2, y2), x in percent and y in pixels."""

    title: str
    summary: str  # next to the title
    spoken: str  # for who does not see it
    one: float  # where vanilla is
    curve: list[tuple[float, float, float, float]]
    predicted: list[tuple[float, float, float, float]]
    intervals: list[tuple[float, float, float]]  # x, y1, y2
    dots: list[tuple[float, float, str]]  # x, y, what it says
    rows: list[tuple[float, str]]  # labels at the side: y, text
    columns: list[tuple[float, str]]  # labels below: x, text


@dataclass(frozen=True, slots=True)
class Group:
    """The panels of one setting, on one scale."""

    title: str
    about: str  # the rest of the setting
    panels: list[Panel]
    figures: Table


@dataclass(slots=True)
class Curve:
    """What a panel shows."""

    title: str
    points: list[Point]
    predicted: list[tuple[float, float]] = field(default_factory=list)
    summary: str = ""


def history(entries: Iterable[IndexEntry]) -> list[Group]:
    """A group for each setting of which some method was measured at several commits."""
    found = []
    for same in by_setting(entries):
        runs = sorted(same, key=lambda entry: entry.date or "")
        names = dict.fromkeys(entry.method for entry in runs if entry.kind == "method")
        series = {name: [entry for entry in runs if entry.method == name] for name in names}
        series = {name: own for name, own in series.items() if len({entry.commit for entry in own}) > 1}
        if series:
            found.append(_history(series))
    return found


def _history(series: dict[str, list[IndexEntry]]) -> Group:
    every = {(entry.date or "", entry.run_id): entry for own in series.values() for entry in own}
    place = {key: float(order) for order, key in enumerate(sorted(every))}
    curves = [
        Curve(
            name,
            [Point(place[entry.date or "", entry.run_id], commit(entry), entry.speedup) for entry in own],
            summary=f"{times(own[0].speedup.value)} \N{RIGHTWARDS ARROW} {times(own[-1].speedup.value)}",
        )
        for name, own in series.items()
    ]
    rows = [
        [day(entry), commit(entry), name, times_between(entry.speedup), number(entry.compression_rate)]
        for name, own in series.items()
        for entry in own
    ]
    header = ["date", "commit", "method", "decode speedup", "CR"]
    first = next(iter(series.values()))[0]
    about = f"{machine(first)}; {exactly_asked(first)}"
    return Group(target(first), about, _panels(curves), table(header, rows, 3, "Speedup and CR over commits"))


def _rest(entry: IndexEntry) -> str:
    """What the title of a run's group leaves out."""
    return f"{machine(entry)}; {questions(entry)}"


def batches(entries: Iterable[IndexEntry]) -> list[Group]:
    """A group for each run with batches."""
    runs: dict[str, list[IndexEntry]] = {}
    for entry in entries:
        if entry.batches and entry.kind == "method":
            runs.setdefault(entry.run_id, []).append(entry)
    return [_batches(found) for found in runs.values()]


def _batches(entries: Sequence[IndexEntry]) -> Group:
    sizes = sorted({cell.batch for entry in entries for cell in entry.batches})
    curves, rows = [], []
    for entry in entries:
        by_size = {cell.batch: cell for cell in entry.batches}
        cells = [(math.log2(size), by_size[size]) for size in sizes if size in by_size]
        points = [Point(x, str(cell.batch), cell.speedup) for x, cell in cells]
        predicted = [(x, cell.predicted) for x, cell in cells if cell.predicted is not None]
        curves.append(Curve(entry.method, points, predicted, crossover_text(entry)))
        shown = [times_between(by_size[size].speedup) if size in by_size else UNDEFINED for size in sizes]
        rows.append([entry.method, *shown, crossover_text(entry)])
    header = ["method", *(f"batch {size}" for size in sizes), "crossover"]
    figures = table(header, rows, caption="Throughput over plain decoding's by batch size")
    return Group(target(entries[0]), f"{_rest(entries[0])}; {day(entries[0])}", _panels(curves), figures)


def crossover_text(entry: IndexEntry) -> str:
    """Where throughput falls to that of plain decoding."""
    known = [(cell.batch, cell.speedup.value) for cell in entry.batches if cell.speedup.value is not None]
    if not known:
        return UNDEFINED
    last = f"above 1 up to batch {known[-1][0]}"
    text = last if entry.crossover is None else f"crosses at {number(entry.crossover, 1)}"
    return below_from_the_start(known) or text


def over_axis(entries: Iterable[IndexEntry]) -> list[Group]:
    """A group for each run over temperatures or prompt lengths."""
    runs: dict[str, list[IndexEntry]] = {}
    for entry in entries:
        if entry.over and entry.kind == "method":
            runs.setdefault(entry.run_id, []).append(entry)
    return [_over(found) for found in runs.values()]


def _over(entries: Sequence[IndexEntry]) -> Group:
    first, curves, rows = entries[0], [], []
    values = [at.value for at in first.over]
    for entry in entries:
        points = [Point(float(x), f"{at.value:g}", at.speedup) for x, at in enumerate(entry.over)]
        ends = f"{times(points[0].speedup.value)} \N{RIGHTWARDS ARROW} {times(points[-1].speedup.value)}"
        curves.append(Curve(entry.method, points, summary=ends))
        rows.append([entry.method, *(times_between(at.speedup) for at in entry.over)])
    header = ["method", *(f"{value:g}" for value in values)]
    figures = table(header, rows, caption=f"Decode speedup by {first.axis}")
    return Group(f"By {first.axis}: {target(first)}", f"{_rest(first)}; {day(first)}", _panels(curves), figures)


def axes(entries: Iterable[IndexEntry]) -> list[str]:
    """What runs go over, in the plural."""
    return list(dict.fromkeys(f"{entry.axis}s" for entry in entries if entry.over and entry.kind == "method"))


def _panels(curves: Sequence[Curve]) -> list[Panel]:
    """The curves on one scale, so that they can be compared."""
    places = {point.at: point.label for curve in curves for point in curve.points}
    known = [v for c in curves for p in c.points for v in (p.speedup.value, *(p.speedup.bounds or ())) if v is not None]
    known += [value for curve in curves for _, value in curve.predicted] + [1.0]
    scale = _Scale(sorted(places), min(known), max(known))
    return [_panel(curve, scale, places) for curve in curves]


class _Scale:
    """Places on a panel for values."""

    def __init__(self, at: Sequence[float], low: float, high: float) -> None:
        margin = 0.06 * max(high - low, 0.1)
        self.low, self.high = low - margin, high + margin
        self.start, self.end = (at[0], at[-1]) if len(at) > 1 else (at[0] - 1, at[0] + 1)

    def x(self, at: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (at - self.start) / (self.end - self.start), 2)

    def y(self, value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low), 2)

    def rows(self) -> list[tuple[float, str]]:
        """Labels of a few round values; 1 is always among them."""
        span = self.high - self.low
        wide = 10.0 ** math.ceil(math.log10(span / _MOST_TICKS))
        step = next((step for step in (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10) if span / step <= _MOST_TICKS), wide)
        first = math.ceil((self.low - 1) / step)
        values = [1 + step * place for place in range(first, first + _MOST_TICKS + 1)]
        return [(self.y(value), f"{value:g}x") for value in values if self.low <= value <= self.high]


def _panel(curve: Curve, scale: _Scale, places: dict[float, str]) -> Panel:
    known = [(p, p.speedup.value) for p in curve.points if p.speedup.value is not None]
    path = [(scale.x(point.at), scale.y(value)) for point, value in known]
    expected = [(scale.x(at), scale.y(value)) for at, value in curve.predicted]
    spans = [(scale.x(p.at), scale.y(b[0]), scale.y(b[1])) for p, _ in known if (b := p.speedup.bounds)]
    spoken = "; ".join(f"{point.label}: {times_between(point.speedup)}" for point in curve.points)
    every = sorted(places)
    step = math.ceil(len(every) / _MOST_TICKS)
    return Panel(
        curve.title,
        curve.summary,
        f"{curve.title}, {plural(len(curve.points), 'point')}: {spoken}",
        scale.y(1.0),
        _segments(path),
        _segments(expected),
        spans,
        [(*at, f"{p.label}: {times_between(p.speedup)}") for at, (p, _) in zip(path, known, strict=True)],
        scale.rows(),
        [(scale.x(at), places[at]) for at in every[::step]],
    )


def _segments(path: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    return [(*start, *end) for start, end in itertools.pairwise(path)]
