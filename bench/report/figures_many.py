"""Plots of more methods than there are colours: a row or a small panel for each, named where it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bench.figures.summary import FAMILIES, OVERALL, Cell, Entry, Estimate, Summary
from bench.report import canvas
from bench.report.canvas import GREY, PALETTE
from bench.report.formats import shown_name, task_name
from bench.report.tables import kind_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4  # of small panels
_PALE = "#cfcfcf"  # the other methods, behind the one that a panel is about


def family_colour(entry: Entry) -> str:
    """A method's colour where there are too many for one each: its family's."""
    if entry.kind != "method":
        return "#999999"
    return PALETTE[FAMILIES.index(entry.family) if entry.family in FAMILIES else len(FAMILIES)]


def by_task(summary: Summary, title: str, entries: Mapping[str, Entry], show: Callable[[Cell], Estimate], label: str,
            note: str) -> Figure:  # fmt: skip
    """A column a task and overall, a row a method, a dot with its interval where they meet."""
    entries = {name: entry for name, entry in summary.ranked("method", "peer").items() if name in entries}
    tasks = canvas.tasks_of(summary, list(entries))
    tasks = [*tasks[-1:], *tasks[:-1]] if tasks[-1] == OVERALL else tasks
    height = 2.2 + 0.27 * len(entries)
    figure, panels = canvas.canvas(
        summary, title, height=height, columns=len(tasks), note=note, sharey=True, sharex=True
    )
    for axes, task in zip(panels, tasks, strict=True):
        axes.axvline(1.0, color=GREY, linewidth=1.1, linestyle="--", zorder=1.5)
        for row, entry in enumerate(entries.values()):
            estimate = show(entry.tasks[task]) if task in entry.tasks else Estimate()
            if estimate.value is not None:
                style: dict[str, Any] = {"color": family_colour(entry), "markersize": 5, "elinewidth": 1.4, "zorder": 3}
                axes.errorbar([estimate.value], [row], xerr=canvas.error_bars([estimate]), fmt="o", **style)
                place: dict[str, Any] = {
                    "xytext": (0, 4),
                    "textcoords": "offset points",
                    "ha": "center",
                    "fontsize": 6.5,
                }
                axes.annotate(f"{estimate.value:.2f}", (estimate.value, row), color="#222222", **place)
        canvas.method_axis(axes, [shown_name(name, entry) for name, entry in entries.items()])
        axes.tick_params(axis="y", labelleft=axes is panels[0], labelsize=8.5)
        title = canvas.wrapped(task) if task != OVERALL else task_name(task)
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)
        axes.locator_params(axis="x", nbins=3, steps=[1, 2, 5, 10])  # short labels
    panels[len(tasks) // 2].set_xlabel(label)
    _family_legend(figure, panels[0], entries)
    return figure


def _family_legend(figure: Figure, axes: Any, entries: Mapping[str, Entry]) -> None:
    named = {kind_of(entry): family_colour(entry) for entry in entries.values()}
    if len(named) > 1:
        handles = [axes.plot([], [], "o", color=shade)[0] for shade in named.values()]
        canvas.legend(figure, handles, list(named))


def panels_of(
    summary: Summary,
    title: str,
    curves: Mapping[str, tuple[list[float], list[float]]],
    labels: tuple[str, str],
    note: str = "",
    beside: Mapping[str, tuple[list[float], list[float]]] | None = None,
) -> tuple[Figure, list[Any]]:
    """A small panel a method with its curve (x, y), the others' pale behind it; `beside`: a dashed curve each."""
    entries = {name: entry for name, entry in summary.ranked("method").items() if name in curves}
    rows = math.ceil(len(entries) / _COLUMNS)
    shape = {"rows": rows, "columns": _COLUMNS, "sharex": True, "sharey": True}
    figure, panels = canvas.canvas(summary, title, height=1.6 + 1.55 * rows, note=note, **shape)
    for place, (axes, (name, entry)) in enumerate(zip(panels, entries.items(), strict=False)):
        for other in entries:
            if other != name:
                axes.plot(*curves[other], color=_PALE, linewidth=0.8, zorder=1)
        if beside is not None:
            axes.plot(*beside[name], color=GREY, linewidth=1.2, linestyle="--", zorder=2)
        axes.plot(*curves[name], color=family_colour(entry), linewidth=2.0, marker="o", markersize=3.5, zorder=3)
        axes.set_title(canvas.two_lines(shown_name(name, entry)), fontsize=9, loc="left", parse_math=False)
        axes.tick_params(labelbottom=place + _COLUMNS >= len(entries))
        axes.set_xlabel(labels[0] if place + _COLUMNS >= len(entries) else "", fontsize=9)
        axes.set_ylabel(labels[1] if place % _COLUMNS == 0 else "", fontsize=9)
    for axes in panels[len(entries) :]:
        axes.set_axis_off()
    _family_legend(figure, panels[0], entries)
    return figure, panels


def shares(summary: Summary, title: str, counts: Mapping[str, list[int]], last: str, note: str) -> Figure:
    """A bar a method, divided by how many tokens its steps added; `last` names the longest."""
    from matplotlib import colormaps

    entries = {name: entry for name, entry in summary.ranked("method").items() if name in counts}
    longest = max(map(len, counts.values()))
    figure, (axes,) = canvas.canvas(summary, title, height=2.0 + 0.3 * len(entries), note=note)
    left = [0.0] * len(entries)
    for tokens in range(1, longest + 1):
        widths = [
            counts[name][tokens - 1] / sum(counts[name]) if tokens <= len(counts[name]) else 0 for name in entries
        ]
        shade = colormaps["viridis_r"](0.05 + 0.9 * (tokens - 1) / max(1, longest - 1)) if tokens > 1 else "#d9d9d9"
        label = last if tokens == longest else str(tokens)
        axes.barh(
            range(len(entries)), widths, 0.72, left=left, color=shade, label=label, edgecolor="white", linewidth=0.5
        )
        for row, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.055:
                ink = "white" if tokens > longest / 2 else "black"
                axes.text(start + width / 2, row, f"{width:.0%}", ha="center", va="center", fontsize=7.5, color=ink)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    canvas.method_axis(axes, [shown_name(name, entry) for name, entry in entries.items()])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of steps, by the tokens that they added (the target's own included)")
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure
