"""What all plots share: size, colours, title, provenance, legend. No display, no global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures.metrics import ordered_tasks
from bench.figures.records import atomic_writer
from bench.figures.summary import OVERALL, Estimate, Summary
from bench.report.formats import setting_text, shortened, task_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
SIZE_INCHES = (9.0, 4.6)
# Okabe and Ito's palette, which colour-blind readers can distinguish; without yellow, which is too faint on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
GROUPS = ("How fast", "In batches", "Where the time goes", "What is accepted")  # of plots, in a page's order
MARKERS = "osD^vPX"  # as many as colours
HATCHES = ("", "///", "...", "xxx")  # a second round of the palette is hatched
GREY = "#555555"
LIGHT = "#e4e4e4"
ERROR_BAR = {"ecolor": "#222222", "elinewidth": 1.1, "capsize": 0}
NAME_CHARS = 30  # of a method's name next to an axis
_LEGEND_CHARS = 100  # what fits in one row below a plot
_LEGEND_ROW_INCHES = 0.19
_TITLE_INCHES = 0.44
_PROVENANCE_INCHES = 0.165  # a line


@dataclass(frozen=True, slots=True)
class Plot:
    """What a page says about a plot."""

    title: str
    group: str  # under which pages show it
    caption: str  # what a reader should see in it


def canvas(
    summary: Summary | str,
    title: str,
    *,
    height: float = SIZE_INCHES[1],
    rows: int = 1,
    columns: int = 1,
    note: str = "",
    **subplots: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with title, provenance (given itself, or of a summary; a note under it) and its panels, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)
    made_of = summary if isinstance(summary, str) else provenance(summary)
    text = textwrap.fill(made_of, 118) + (f"\n{textwrap.fill(note, 118)}" if note else "")
    # Placed by the figure's corner and not by the axes': long labels next to an axis would push them off the page.
    place = {"xycoords": "figure fraction", "textcoords": "offset points", "va": "top", "annotation_clip": False}
    lines = panels[0].annotate(text, (0, 1), xytext=(9, -27), fontsize=9, color=GREY, parse_math=False, **place)
    heading = panels[0].annotate(title, (0, 1), xytext=(9, -7), fontsize=13, fontweight="bold", **place)
    for label in (lines, heading):
        label.set_in_layout(False)
    _reserve(figure, text.count("\n") + 1)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=LIGHT, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], columns: int = 0) -> None:
    """Below the plot, in `columns` columns (0: as many as fit); a long legend makes the picture taller."""
    limit = _LEGEND_CHARS // columns + 6 if columns else _LEGEND_CHARS
    labels = [shortened(name, limit) for name in names]  # "(not lossless)" is at the end: never cut off
    columns = columns or max(1, min(len(labels), _LEGEND_CHARS // (max(map(len, labels)) + 6)))
    made = figure.legend(list(handles), labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in made.get_texts():
        text.set_parse_math(False)
    rows = math.ceil(len(labels) / columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _LEGEND_ROW_INCHES * (rows - 1))
    _reserve(figure, figure.axes[0].texts[0].get_text().count("\n") + 1)


def method_axis(axes: Axes, names: Sequence[str]) -> None:
    """Methods from top to bottom without horizontal grid lines: for horizontal bars and dots."""
    axes.set_yticks(range(len(names)), [two_lines(name) for name in names])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LIGHT, linewidth=0.8)


def two_lines(name: str) -> str:
    """A method's name for the side of an axis; a long one has its notes in a line of their own."""
    lines = name.replace(" (", "\n(").split("\n") if len(name) > NAME_CHARS else [name]
    return "\n".join(shortened(line, NAME_CHARS) for line in lines)


def error_bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths below and above the values, as matplotlib takes them; 0 where there is no interval."""
    below, above = [], []
    for estimate in estimates:
        low, high = estimate.bounds or (0.0, 0.0)
        below.append(estimate.value - low if estimate.bounds and estimate.value else 0.0)
        above.append(high - estimate.value if estimate.bounds and estimate.value else 0.0)
    return [below, above]


def top(estimate: Estimate) -> float:
    """The upper end of an estimate's bar."""
    return max(estimate.value or 0.0, estimate.bounds[1] if estimate.bounds else 0.0)


def tasks_of(summary: Summary, names: Sequence[str]) -> list[str]:
    """The tasks of the methods; `overall` at the end where it is more than one task's repetition."""
    ordered = ordered_tasks(task for name in names for task in summary.methods[name].by_task)
    return [*ordered, OVERALL] if len(ordered) > 1 else ordered


def rank(summary: Summary, name: str) -> int:
    """A method's place, the same in every plot, so that it keeps its colour."""
    return [*summary.of_kind("method", "peer")].index(name)


def colour(summary: Summary, name: str) -> str:
    """A method's colour; vanilla and peers are grey: they are a yardstick, not a competitor."""
    if summary.methods[name].kind != "method":
        return "#999999"
    return PALETTE[rank(summary, name) % len(PALETTE)]


def bar_style(summary: Summary, name: str) -> dict[str, Any]:
    """A method's colour and hatch; peers are grey: they are a yardstick, not a competitor."""
    index = rank(summary, name)
    if summary.methods[name].kind == "peer":
        return {"color": "#BBBBBB", "hatch": "\\\\\\", "edgecolor": "white"}
    hatch = HATCHES[index // len(PALETTE) % len(HATCHES)]
    return {"color": PALETTE[index % len(PALETTE)], "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def wrapped(task: str) -> str:
    """A task's name for an axis."""
    return textwrap.fill(task_name(task), 13, break_long_words=False)


def curve(axes: Axes, values: Sequence[float | None], label: str, index: int, **style: Any) -> None:
    """The rates at w = 1, 2, ... that are defined, in the colour and with the marker of a place in the palette."""
    style |= {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
    axes.plot(*points(values), label=label, clip_on=False, **style)


def points(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The places w = 1, 2, ... and the rates of those that are defined."""
    known = [(float(w), value) for w, value in enumerate(values, 1) if value is not None]
    return [w for w, _ in known], [value for _, value in known]


def _reserve(figure: Figure, lines: int) -> None:
    """Space for the title and `lines` lines below it, whatever the picture's height."""
    engine = figure.get_layout_engine()
    assert engine is not None
    share = (_TITLE_INCHES + _PROVENANCE_INCHES * lines) / figure.get_size_inches()[1]
    engine.set(rect=(0.006, 0, 0.988, 1 - share))  # type: ignore[call-arg]


def provenance(summary: Summary) -> str:
    """The line below every title."""
    return " · ".join(setting_text(summary))


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Figures by name as PNG; each file appears under its name only when completely written.

    Raises:
        UserError: the folder cannot be written.

    """
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        with atomic_writer(path) as file:
            figure.savefig(file.buffer, format="png", dpi=DPI, metadata={"Software": None})
        paths.append(path)
    return paths
