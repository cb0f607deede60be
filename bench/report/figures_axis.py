"""Plots over the axis of a run: speedup, CR, times and memory over temperature or prompt length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bench.figures.summary import Axis, Cell, Entry, Estimate, Summary
from bench.report import canvas, figures_many
from bench.report.canvas import GREY, Plot
from bench.report.figures_steps import ACCEPTANCE
from bench.report.formats import at_text, shown_name
from bench.report.over_axis import cache_mib, ms_per_token
from bench.report.tables import MANY, in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = {
    "by_temperature": Plot(
        "Speedup and tokens per step, by temperature",
        "How fast",
        "The same questions at every temperature, over vanilla at the same one.",
    ),
    "by_prompt_length": Plot(
        "Speedup, tokens per step, time and memory, by prompt length",
        "How fast",
        "The same questions behind passages of their own kind, over vanilla at the same length.",
    ),
    "acceptance_by_temperature": Plot(
        "Conditional acceptance of the w-th draft, by temperature",
        "What is accepted",
        ACCEPTANCE,
    ),
    "acceptance_by_prompt_length": Plot(
        "Conditional acceptance of the w-th draft, by prompt length",
        "What is accepted",
        ACCEPTANCE,
    ),
}
_COLUMNS = 4  # of small panels


def draw(summary: Summary) -> dict[str, Figure | None]:
    """Every plot by its name, None for one without data."""
    axis = summary.axis
    entries = in_order(summary, "method")
    if axis is None or len(axis.points) < 2 or not entries:
        return {}
    kind = axis.name.replace(" ", "_")
    over = _many(summary, axis, entries) if len(entries) > MANY else _over(summary, axis, entries, kind)
    return {f"by_{kind}": over, f"acceptance_by_{kind}": _acceptance(summary, axis, entries, kind)}


def _over(summary: Summary, axis: Axis, entries: Mapping[str, Entry], kind: str) -> Figure:
    """A panel a figure, a line a method, vanilla dashed."""
    of_length = axis.name == "prompt length"
    title, note = PLOTS[f"by_{kind}"].title, "over all tasks; lines: bootstrap intervals of the speedup"
    rows = 2 if of_length else 1
    made_of = _provenance(summary)
    figure, panels = canvas.canvas(made_of, title, height=1.6 + 3.0 * rows, rows=rows, columns=2, note=note)
    vanilla = in_order(summary, "vanilla")
    _panel(summary, axis, panels[0], entries, lambda name, cell, at: cell.speedup_decode, "decode speedup")
    _panel(summary, axis, panels[1], entries, lambda name, cell, at: Estimate(cell.compression_rate), "tokens per step")
    for axes in panels[:2]:
        axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle="--", zorder=1.5)
    if of_length:
        both = {**vanilla, **entries}
        _panel(summary, axis, panels[2], both, lambda name, cell, at: Estimate(ms_per_token(cell)), "ms per token")
        _panel(
            summary, axis, panels[3], both, lambda name, cell, at: Estimate(cache_mib(both[name], at)), "KV cache, MiB"
        )
        for axes in panels[2:]:
            axes.set_ylim(bottom=0)
    for axes in panels[-2:]:
        axes.set_xlabel(_label(axis))
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    handles.setdefault("vanilla", panels[0].plot([], [], color=GREY, linestyle="--")[0])
    canvas.legend(figure, list(handles.values()), list(handles))
    return figure


def _panel(
    summary: Summary,
    axis: Axis,
    axes: Axes,
    entries: Mapping[str, Entry],
    show: Callable[[str, Cell, float], Estimate],
    label: str,
) -> None:
    for name, entry in entries.items():
        known = [(point.value, show(name, point.methods[name], point.value)) for point in axis.points]
        known = [(x, estimate) for x, estimate in known if estimate.value is not None]
        estimates = [estimate for _, estimate in known]
        style: dict[str, Any] = {"color": GREY, "linestyle": "--", "marker": "."}
        if entry.kind == "method":
            marker = canvas.MARKERS[canvas.rank(summary, name) % len(canvas.MARKERS)]
            style = {"color": canvas.colour(summary, name), "marker": marker, "markersize": 6, "linewidth": 2.0}
        bars = canvas.error_bars(estimates) if any(estimate.bounds for estimate in estimates) else None
        at = [x for x, _ in known], [estimate.value or 0.0 for estimate in estimates]
        axes.errorbar(*at, yerr=bars, label=shown_name(name, entry), elinewidth=1.3, zorder=3, **style)
    _values(axes, axis)
    axes.set_ylabel(label)


def _many(summary: Summary, axis: Axis, entries: Mapping[str, Entry]) -> Figure:
    """A small panel a method: its speedup."""
    cells = {name: [(p.value, p.methods[name].speedup_decode.value) for p in axis.points] for name in entries}
    curves = {
        name: ([x for x, y in points if y is not None], [y for _, y in points if y is not None])
        for name, points in cells.items()
    }
    labels, note = (_label(axis), "decode speedup"), "over all tasks; CR, times and intervals are in the table"
    title = f"Decode speedup over vanilla, by {axis.name}"
    figure, panels = figures_many.panels_of(_anywhere(summary), title, curves, labels, note)
    for axes in panels[: len(curves)]:
        axes.axhline(1.0, color=GREY, linewidth=1.0, linestyle="--", zorder=1.5)
        _values(axes, axis)
    return figure


def _acceptance(summary: Summary, axis: Axis, entries: Mapping[str, Entry], kind: str) -> Figure | None:
    """A panel a method, a curve a value, the larger the darker."""
    from matplotlib import colormaps

    known = {
        name: entry
        for name, entry in entries.items()
        if any(rate is not None for point in axis.points for rate in point.methods[name].conditional_acceptance or [])
    }
    if not known:
        return None
    columns = min(len(known), _COLUMNS if len(known) > MANY else 3)
    rows = math.ceil(len(known) / columns)
    note = "over all tasks; of steps that drafted at least w deep and had w - 1 accepted: few where w is large"
    shape = {"rows": rows, "columns": columns, "sharex": True, "sharey": True}
    title = PLOTS[f"acceptance_by_{kind}"].title
    figure, panels = canvas.canvas(_provenance(summary), title, height=1.9 + 2.1 * rows, note=note, **shape)
    order = sorted(point.value for point in axis.points)
    for place, (axes, (name, entry)) in enumerate(zip(panels, known.items(), strict=False)):
        for point in axis.points:
            share = order.index(point.value) / (len(order) - 1)
            shade = colormaps["viridis_r"](0.12 + 0.83 * share)
            at = canvas.points(point.methods[name].conditional_acceptance or [])
            axes.plot(
                *at,
                color=shade,
                marker="o",
                markersize=3.5,
                linewidth=1.8,
                clip_on=False,
                label=at_text(axis, point.value),
            )
        axes.set_title(canvas.two_lines(shown_name(name, entry)), fontsize=9, loc="left", parse_math=False)
        axes.set_xlabel("position w of the draft" if place + columns >= len(known) else "", fontsize=9)
        axes.set_ylabel("share accepted" if place % columns == 0 else "", fontsize=9)
        axes.tick_params(labelbottom=place + columns >= len(known))
    for axes in panels[len(known) :]:
        axes.set_axis_off()
    panels[0].set_ylim(0, 1)
    panels[0].locator_params(axis="x", integer=True)
    canvas.legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def _anywhere(summary: Summary) -> Summary:
    """The summary without the value of the axis that its other figures are at."""
    return dataclasses.replace(summary, axis=None, sampling=None)


def _provenance(summary: Summary) -> str:
    return canvas.provenance(_anywhere(summary))


def _label(axis: Axis) -> str:
    return "temperature" if axis.name == "temperature" else "prompt length (tokens)"


def _values(axes: Axes, axis: Axis) -> None:
    """Ticks at the values; prompt lengths are drawn by their logarithm."""
    values = [point.value for point in axis.points]
    if axis.name == "prompt length":
        axes.set_xscale("log", base=2)
    labels = [f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}" for value in values]
    axes.set_xticks(values, labels, fontsize=9)
    axes.minorticks_off()
