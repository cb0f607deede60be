"""Plots that compare averages: three estimators of one speedup, and our speedups with published ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.figures.published import COMPARABLE, Result, Source, places_of, same_method, variants
from bench.figures.summary import Estimate, Summary
from bench.report import canvas
from bench.report.canvas import GREY, Plot
from bench.report.formats import shown_name
from bench.report.tables import ESTIMATORS, in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = {
    "three_estimators": Plot(
        "Overall speedup, averaged in three ways",
        "How fast",
        "Three ways to average the same measurements. Where they differ, a few questions weigh heavily.",
    ),
    "published": Plot(
        "Our speedups and published ones of the same method",
        "How fast",
        "Published values come from other models on other hardware: compare their order, not their height.",
    ),
}
_HOLLOW = "o^sDvP<>"  # published ones


def draw(summary: Summary, sources: Sequence[Source]) -> dict[str, Figure | None]:
    """Every plot by its name, None for one without data."""
    return {"three_estimators": _three_estimators(summary), "published": _published(summary, list(sources))}


def _three_estimators(summary: Summary) -> Figure | None:
    """A row a method, a dot with its interval an estimator; decode left, end-to-end right."""
    keys = [f"speedup_{part}{ending}" for part in ("decode", "total") for ending in ESTIMATORS]
    entries = in_order(summary, "method", "peer")
    entries = {name: e for name, e in entries.items() if all(getattr(e.overall, key).value for key in keys)}
    if not entries:
        return None
    height = 2.1 + 0.62 * len(entries)
    shape = {"columns": 2, "sharex": True, "sharey": True}
    title = PLOTS["three_estimators"].title
    figure, panels = canvas.canvas(summary, title, height=height, note=_note(summary), **shape)
    for axes, part, heading in zip(panels, ("decode", "total"), ("decode", "end-to-end"), strict=True):
        for place, (ending, label) in enumerate(ESTIMATORS.items()):
            estimates = [getattr(entry.overall, f"speedup_{part}{ending}") for entry in entries.values()]
            heights = [row + 0.22 * (place - 1) for row in range(len(entries))]
            dots(axes, estimates, heights, label=label, marker=canvas.MARKERS[place], color=canvas.PALETTE[place])
        axes.axvline(1.0, color=GREY, linewidth=1.2, linestyle="--", zorder=1.5)
        axes.set_title(heading, fontsize=10, loc="left")
        axes.set_xlabel("speedup over vanilla (dashed)")
        axes.locator_params(axis="x", nbins=6)
        canvas.method_axis(axes, [shown_name(name, entry) for name, entry in entries.items()])
    panels[1].tick_params(axis="y", labelleft=False)
    canvas.legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def _published(summary: Summary, sources: list[Source]) -> Figure | None:
    """A panel a method, tasks side by side: ours filled and with intervals, published ones hollow."""
    found = {base: rows for base, rows in same_method(summary, sources).items() if _measured(summary, base)}
    if not found:
        return None
    models = ", ".join(dict.fromkeys(result.model for results in found.values() for _, result in results))
    note = (
        f"filled: this run (end-to-end, Spec-Bench's mean of rates); hollow: published, of other models on other "
        f"devices ({models}), neither measured here nor directly comparable"
    )
    note += "; theirs are greedy, ours sampled" if summary.sampling else ""
    title, height = PLOTS["published"].title, 1.6 + 2.6 * len(found)
    figure, panels = canvas.canvas(summary, title, height=height, rows=len(found), note=note, sharex=True)
    labels = list(dict.fromkeys(_label(*item) for results in found.values() for item in results))
    tasks = canvas.tasks_of(summary, [name for base in found for name in variants(summary, base)])
    legend: dict[str, Any] = {}
    for axes, (base, results) in zip(panels, found.items(), strict=True):
        _dots_of_ours(axes, summary, base, tasks, len(results))
        _dots_of_others(axes, results, labels, tasks, len(variants(summary, base)))
        _by_task(axes, tasks)
        axes.set_title(base, fontsize=10, loc="left", parse_math=False)
        legend |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = sorted(legend, key=lambda label: label in labels)  # ours first
    canvas.legend(figure, [legend[label] for label in order], order, columns=2)
    return figure


def _measured(summary: Summary, base: str) -> bool:
    return any(getattr(entry.overall, COMPARABLE).value is not None for entry in variants(summary, base).values())


def _dots_of_ours(axes: Axes, summary: Summary, base: str, tasks: list[str], others: int) -> None:
    ours = variants(summary, base)
    for index, (name, entry) in enumerate(ours.items()):
        shift = _spread(index, len(ours) + others)
        cells = [(place + shift, entry.tasks[task]) for place, task in enumerate(tasks) if task in places_of(entry)]
        known = [(x, e) for x, cell in cells if (e := getattr(cell, COMPARABLE)).value is not None]
        bars = canvas.error_bars([item for _, item in known])
        marker = canvas.MARKERS[canvas.rank(summary, name) % len(canvas.MARKERS)]
        style: dict[str, Any] = {"color": canvas.colour(summary, name), "marker": marker, "linestyle": "none"}
        label = f"this run: {shown_name(name, entry)}"
        at = [x for x, _ in known], [item.value for _, item in known]
        axes.errorbar(*at, yerr=bars, label=label, elinewidth=1.4, markersize=6.5, zorder=4, **style)


def _dots_of_others(
    axes: Axes, results: list[tuple[Source, Result]], labels: list[str], tasks: list[str], ours: int
) -> None:
    """One marker a source, model and device, the same in every panel."""
    for index, (source, result) in enumerate(results):
        shift = _spread(ours + index, ours + len(results))
        points = [(place + shift, result.speedup[task]) for place, task in enumerate(tasks) if task in result.speedup]
        label = _label(source, result)
        marker = _HOLLOW[labels.index(label) % len(_HOLLOW)]
        style: dict[str, Any] = {"color": GREY, "marker": marker, "markerfacecolor": "white", "linestyle": "none"}
        axes.plot([x for x, _ in points], [value for _, value in points], label=label, markersize=6, zorder=3, **style)


def _by_task(axes: Axes, tasks: list[str]) -> None:
    for edge in range(1, len(tasks)):
        axes.axvline(edge - 0.5, color=canvas.LIGHT, linewidth=0.8, zorder=1)
    axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle="--", zorder=1.5)
    axes.set_xticks(range(len(tasks)), [canvas.wrapped(task) for task in tasks], parse_math=False)
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.1)
    axes.set_ylabel("speedup")


def _label(source: Source, result: Result) -> str:
    """Source, model and device, without the device's memory and processors."""
    hardware = re.sub(r" \(\d+ GB\).*", "", result.hardware).replace("NVIDIA ", "").replace("GeForce ", "")
    return f"{source.source}: {result.model}, {hardware}"


def _spread(index: int, columns: int) -> float:
    """A dot's place within its task, so that none hides another."""
    return 0.0 if columns == 1 else min(0.7, 0.12 * (columns - 1)) * (index / (columns - 1) - 0.5)


def dots(axes: Axes, estimates: list[Estimate], heights: list[float], **style: Any) -> None:
    """Values as dots, their intervals as lines, one at each height."""
    values = [estimate.value or 0.0 for estimate in estimates]
    bars = canvas.error_bars(estimates)
    axes.errorbar(values, heights, xerr=bars, linestyle="none", elinewidth=1.5, markersize=6, zorder=3, **style)


def _note(summary: Summary) -> str:
    made = summary.statistics
    text = "overall: the tasks' unweighted mean; Spec-Bench's pools all questions"
    return text + (f"; lines: {made.interval:.0%} bootstrap intervals" if made else "")
