"""Figures of a sweep: speedup and CR over a knob, two knobs as lines and as heat maps, what was published apart."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures.published import PUBLISHED, Ablation, read_published
from bench.figures.summary import Summary, base_of
from bench.report import canvas
from bench.report.canvas import GREY, MARKERS, PALETTE
from bench.report.formats import shortened
from bench.report.sweep_page import Axis, Point, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

KEYS = {"speedup_decode": "decode speedup", "compression_rate": "CR (tokens per step)"}
VANILLA = "vanilla"
_PUBLISHED_KEYS = ("speedup", "compression_rate")
_PUBLISHED_NAMES = {"architecture": "adapter"}  # what the paper calls a setting of ours
_WIDTH_INCHES, _ROW_INCHES = 9.0, 4.0
_LEGEND_ROW_INCHES = 0.2
_LEGEND_CHARS = 108  # what fits in one row below the panels
_NAME_CHARS = 36  # of the method, in a title or legend
_PANEL_CHARS = 50  # of the labels under a panel that shares its row with another
_DODGE = 0.012  # between the lines of a panel, so that their intervals do not hide each other; share of the axis


@dataclass(frozen=True)
class Curve:
    """A published curve over a knob: somebody else's model, device and harness."""

    source: str  # which publication, and whether it was read off a plot
    where: str  # model and hardware
    others: str  # the other knobs, as `gamma=4`; empty: none
    points: list[tuple[Any, float | None, float | None]]  # the knob's value, speedup, CR

    @property
    def label(self) -> str:
        """Its entry in a legend."""
        return f"{self.where}{f', {self.others}' if self.others else ''}"


def published_name(axis: str) -> str:
    """What published figures call a knob or training setting."""
    name = axis.removeprefix("train.")
    return _PUBLISHED_NAMES.get(name, name)


def published_curve(method: str, knob: str, folder: Path = PUBLISHED) -> list[Curve] | None:
    """What was published about `method` over a knob or training setting; None: nothing, or there is no such folder.

    Raises:
        UserError: a file there is malformed.

    """
    name = published_name(knob)
    curves: list[Curve] = []
    for source in read_published(folder):
        hardware = {result.model: result.hardware for result in source.results}
        for ablation in source.ablations:
            if ablation.method == method and any(name in point for point in ablation.points):
                curves += _curves(source.source, hardware.get(ablation.model, ""), ablation, name)
    return curves or None


def _curves(source: str, hardware: str, ablation: Ablation, name: str) -> list[Curve]:
    """One curve for each setting of the other knobs that were varied too."""
    groups: dict[str, list[tuple[Any, float | None, float | None]]] = {}
    for point in ablation.points:
        others = [f"{key}={value}" for key, value in point.items() if key not in (name, *_PUBLISHED_KEYS)]
        others = [] if name == "adapter" else others  # its size is no knob
        speedup, rate = (point.get(key) for key in _PUBLISHED_KEYS)
        groups.setdefault(", ".join(others), []).append((point[name], speedup, rate))
    off = ", read off a plot" if ablation.read_off_a_figure else ""
    where = ", ".join(filter(None, [ablation.model, hardware]))
    # A single point is no curve, like the best of two knobs together.
    return [Curve(source + off, where, others, found) for others, found in groups.items() if len(found) > 1]


def write_sweep_figures(
    sweep: Sweep, summary: Summary, points: Sequence[Point], folder: Path, published: Path = PUBLISHED
) -> list[Path]:
    """Draw every figure into the folder; none where fewer than two points were measured.

    Raises:
        UserError: the folder cannot be written, or a file of published figures is malformed.

    """
    return canvas.save(draw(sweep, summary, points, published), folder)


def draw(sweep: Sweep, summary: Summary, points: Sequence[Point], published: Path = PUBLISHED) -> dict[str, Figure]:
    """Figures by name. Of more than two axes the first two are shown, the others at the fastest point."""
    if sum(point.value("speedup_decode") is not None for point in points) < 2:
        return {}
    varied = [i for i, axis in enumerate(sweep.axes) if len(axis.values) > 1]
    shown, fixed = _slice(sweep, points, varied[2:])
    subtitle = textwrap.fill(canvas.provenance(summary) + (f" · at {fixed}, the fastest" if fixed else ""), 125)
    over = varied[:2]
    base = base_of(sweep.method)
    figures = {}
    for place, first in enumerate(over):
        second = over[1 - place] if len(over) > 1 else None
        name = "sweep_" + "_by_".join(_plain(sweep.axes[i].name) for i in (first, second) if i is not None)
        curves = published_curve(base, sweep.axes[first].name, published) or []
        figures[name] = _lines(sweep, shown, first, second, subtitle, curves)
    if len(over) == 2:
        figures["sweep_heat_map"] = _heat_maps(sweep, shown, over[0], over[1], subtitle)
    return figures


def _slice(sweep: Sweep, points: Sequence[Point], rest: Sequence[int]) -> tuple[list[Point], str]:
    """The points that share the fastest one's values on the axes `rest`, and these values in words."""
    fastest = max(points, key=lambda point: point.value("speedup_decode") or 0.0).variant.values
    kept = [point for point in points if all(point.variant.values[i] == fastest[i] for i in rest)]
    return kept, ", ".join(f"{sweep.axes[i].name}={fastest[i]}" for i in rest)


def _plain(name: str) -> str:
    return name.replace("train.", "").replace(".", "_")


def places(values: Sequence[Any]) -> list[float]:
    """Positions of an axis's values: numbers to scale unless their labels would overlap; others evenly spaced."""
    even = [float(i) for i in range(len(values))]
    if not _numeric(values):
        return even
    numbers = [float(value) for value in values]
    gaps = [b - a for a, b in zip(sorted(numbers), sorted(numbers)[1:], strict=False)]
    needed = 0.012 * max(len(str(value)) for value in values) + 0.01
    return even if gaps and min(gaps) < needed * sum(gaps) else numbers


def _numeric(values: Sequence[Any]) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def _lines(
    sweep: Sweep, points: Sequence[Point], first: int, second: int | None, subtitle: str, curves: Sequence[Curve]
) -> Figure:
    """Ours in the upper row, one line a value of the second axis; what was published below, on axes of its own."""
    from matplotlib.figure import Figure

    heights = [_ROW_INCHES + _LEGEND_ROW_INCHES * _rows([*_names_of(sweep, second).values(), VANILLA])]
    if curves:
        heights.append(_ROW_INCHES + _LEGEND_ROW_INCHES * (1 + _rows([curve.label for curve in curves])))
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axis = sweep.axes[first]
    over = f" by {sweep.axes[second].name}" if second is not None else ""
    _title(rows[0], f"{shortened(sweep.method, _NAME_CHARS)}: speedup and CR over {axis.name}{over}", subtitle)
    _our_row(rows[0], sweep, points, first, second)
    if curves:
        text = "not measured here: another model, device and harness; compare shapes, not heights"
        _title(rows[1], "Published", text, bold=False)
        _published_row(rows[1], axis.name, curves)
    return figure


def _title(part: SubFigure, title: str, subtitle: str, *, bold: bool = True) -> None:
    """Two lines over a row of panels; as one supertitle, so that the layout leaves space for it."""
    weight = "bold" if bold else "normal"
    part.suptitle(title + "\n" * (subtitle.count("\n") + 2), x=0.01, ha="left", fontsize=12, fontweight=weight)
    part.text(0.01, 0.985, "\n" + subtitle, va="top", fontsize=9, color=GREY, linespacing=1.5, parse_math=False)


def _names_of(sweep: Sweep, second: int | None) -> dict[str, str]:
    """What each line is called, by the second axis' value; without one, a single line."""
    if second is None:
        return {"": shortened(sweep.method, _NAME_CHARS)}
    return {value: f"{sweep.axes[second].name}={value}" for value in sweep.axes[second].values}


def _our_row(part: SubFigure, sweep: Sweep, points: Sequence[Point], first: int, second: int | None) -> None:
    axis = sweep.axes[first]
    lines = _names_of(sweep, second)
    at = dict(zip(axis.values, places(axis.values), strict=True))
    width = max(at.values()) - min(at.values())
    for axes, (key, label) in zip(part.subplots(1, 2), KEYS.items(), strict=True):
        for rank, (value, name) in enumerate(lines.items()):
            mine = {p.variant.values[first]: p for p in points if second is None or p.variant.values[second] == value}
            shift = _DODGE * width * (rank - (len(lines) - 1) / 2)
            # A point that failed is a gap in the line.
            row = [(x + shift, mine[v].value(key), mine[v].interval(key)) for v, x in at.items() if v in mine]
            _line(axes, sorted(row, key=lambda cell: cell[0]), rank, name, joined=_numeric(axis.values))
        _knob_axis(axes, axis.name, at, _PANEL_CHARS)
        axes.set_ylabel(label)
        axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle=":", label=VANILLA, zorder=1)
    _legend(part, axes)


def _line(
    axes: Axes,
    row: Sequence[tuple[float, float | None, tuple[float, float] | None]],
    rank: int,
    name: str,
    *,
    joined: bool,
) -> None:
    """Points with their intervals, joined where values between two of them have a meaning."""
    x, y = [cell[0] for cell in row], [math.nan if cell[1] is None else cell[1] for cell in row]
    colour, marker = _look(rank)
    line = "-" if joined else "none"
    axes.plot(x, y, label=name, color=colour, marker=marker, linestyle=line, markersize=6, linewidth=2.0, zorder=3)
    bars = [(at, *interval) for at, _, interval in row if interval]
    axes.vlines([b[0] for b in bars], [b[1] for b in bars], [b[2] for b in bars], color=colour, linewidth=1.2)


def _look(rank: int) -> tuple[str, str]:
    """Colour and marker of a line; a second round of the palette has other markers."""
    return PALETTE[rank % len(PALETTE)], MARKERS[(rank + rank // len(PALETTE)) % len(MARKERS)]


def _published_row(part: SubFigure, knob: str, curves: Sequence[Curve]) -> None:
    """Dashed, hollow markers, a legend with model and hardware."""
    rates = any(rate is not None for curve in curves for *_, rate in curve.points)
    panels = part.subplots(1, 2 if rates else 1, squeeze=False)[0]
    values = list(dict.fromkeys(x for curve in curves for x, *_ in curve.points))
    at = dict(zip(values, places(values), strict=True))
    for axes, column, label in zip(panels, (1, 2), ("published speedup", "published CR"), strict=False):
        for rank, curve in enumerate(curves):
            found = sorted((at[point[0]], point[column]) for point in curve.points if point[column] is not None)
            x, y = [x for x, _ in found], [y for _, y in found]
            colour, marker = _look(rank)
            style: dict[str, Any] = {"color": colour, "marker": marker, "mfc": "white", "linestyle": "--"}
            if not _numeric(values):  # there is nothing between two of them
                axes.vlines(x, 1.0, y, color=colour, linewidth=1.2, linestyle="--")
                style["linestyle"] = "none"
            axes.plot(x, y, label=curve.label, linewidth=1.4, **style)
        _knob_axis(axes, knob.removeprefix("train."), at, _PANEL_CHARS * (2 - rates))
        axes.set_ylabel(label)
        axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle=":", zorder=1)
    _legend(part, axes, "; ".join(dict.fromkeys(curve.source for curve in curves)))


def _knob_axis(axes: Axes, name: str, at: Mapping[Any, float], chars: int) -> None:
    from matplotlib.ticker import MaxNLocator

    width = max(6, chars // len(at))  # characters of a label
    labels = [textwrap.fill(str(value), width) for value in at]
    axes.set_xticks(list(at.values()), labels, fontsize=8 if any("\n" in label for label in labels) else 9)
    axes.set_xlabel(name)
    # As many ticks whatever the height, or the layout would make room for other labels than are drawn.
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.margins(x=0.08, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def _columns(names: Sequence[str]) -> int:
    """How many names fit in one row of a legend."""
    return max(1, min(len(names), _LEGEND_CHARS // (max(map(len, names)) + 6)))


def _rows(names: Sequence[str]) -> int:
    return math.ceil(len(names) / _columns(names))


def _legend(part: SubFigure, axes: Axes, title: str | None = None) -> None:
    handles, names = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": _columns(names), "title": title}
    made = part.legend(handles, names, frameon=False, fontsize=9, title_fontsize=9, **place)
    for text in made.get_texts():
        text.set_parse_math(False)


def _heat_maps(sweep: Sweep, points: Sequence[Point], first: int, second: int, subtitle: str) -> Figure:
    """Speedup and CR over two axes, every cell with its figure; a cell without one failed."""
    from matplotlib.figure import Figure

    across, down = sweep.axes[first], sweep.axes[second]
    height = 2.1 + 0.42 * len(down.values)
    figure = Figure(figsize=(_WIDTH_INCHES, max(3.2, height)), layout="constrained")
    (part,) = figure.subfigures(1, 1, squeeze=False)[0]
    title = f"{shortened(sweep.method, _NAME_CHARS)}: speedup and CR over {across.name} and {down.name}"
    _title(part, title, subtitle)
    for axes, (key, label) in zip(part.subplots(1, 2), KEYS.items(), strict=True):
        cells = {(p.variant.values[second], p.variant.values[first]): p.value(key) for p in points}
        _heat_map(part, axes, [[cells.get((y, x)) for x in across.values] for y in down.values], label)
        _names(axes, across, down)
    return figure


def _heat_map(part: SubFigure, axes: Axes, rows: Sequence[Sequence[float | None]], label: str) -> None:
    found = [value for row in rows for value in row if value is not None]
    low, high = min(found), max(found)
    image = axes.imshow(
        [[float("nan") if value is None else value for value in row] for row in rows],
        cmap="cividis",
        aspect="auto",
        vmin=low,
        vmax=high,
    )
    axes.set_facecolor("#dddddd")
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            dark = value is not None and value - low < 0.55 * (high - low)
            text = "failed" if value is None else f"{value:.2f}"
            weight = "bold" if value is not None and value == high else "normal"
            colour = "white" if dark else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color=colour, fontweight=weight)
    part.colorbar(image, ax=axes, label=label, shrink=0.95)


def _names(axes: Axes, across: Axis, down: Axis) -> None:
    crowded = sum(map(len, across.values)) > 40
    shown: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(across.values)), across.values, fontsize=9, **shown)
    axes.set_yticks(range(len(down.values)), down.values, fontsize=9)
    axes.set_xlabel(across.name)
    axes.set_ylabel(down.name)
    axes.tick_params(length=0)
