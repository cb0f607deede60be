"""Plots of what happens in a step: its time, its tokens, the fate and the confidence of its drafts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bench.figures.summary import Cell, Confidence, ContextBin, Entry, StepTime, Summary
from bench.report import canvas, figures_many
from bench.report.canvas import GREY, PALETTE, Plot
from bench.report.formats import shown_name, times
from bench.report.tables import MANY, in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCEPTANCE = "Probability that a draft is accepted, given that all before it in its step were."
PLOTS = {
    "time_per_step": Plot(
        "Where the time of a step goes, in vanilla steps",
        "Where the time goes",
        "A step of each method in units of a vanilla step: by task, CR over its length is the speedup.",
    ),
    "emitted_per_step": Plot(
        "Tokens that a step adds to the answer",
        "What is accepted",
        "How many tokens the steps added; one means that no draft was accepted.",
    ),
    "acceptance_by_position": Plot(
        "Conditional acceptance of the w-th draft, given that those before it were accepted",
        "What is accepted",
        ACCEPTANCE,
    ),
    "window_ctar": Plot(
        "Window CTAR: share of positions at which w drafts in a row are right",
        "What is accepted",
        "The same at every position of vanilla's answer, with drafting forced to w tokens.",
    ),
    "draft_confidence": Plot(
        "Confidence of the draft model in accepted and in rejected tokens",
        "What is accepted",
        "The better the confidence, the further apart accepted and rejected tokens are.",
    ),
    "time_per_token_by_context": Plot(
        "Decode time per token, by length of context",
        "Where the time goes",
        "A longer context makes every forward pass more expensive; prefill is not included.",
    ),
}
MOST_EMITTED = 10  # steps that added more share the last bar
ACCEPTED, REJECTED = PALETTE[0], PALETTE[3]
UNKNOWN = "verify and rest together"  # older records do not separate them
PARTS = {"draft": PALETTE[1], "verify": PALETTE[0], "rest": "#BBBBBB", UNKNOWN: PALETTE[5]}


def draw(summary: Summary) -> dict[str, Figure | None]:
    """Every plot by its name, None for one without data."""
    return {
        "time_per_step": _time_per_step(summary),
        "emitted_per_step": _emitted_per_step(summary),
        "acceptance_by_position": _acceptance_by_position(summary),
        "window_ctar": _window_ctar(summary),
        "draft_confidence": _draft_confidence(summary),
        "time_per_token_by_context": _time_by_context(summary),
    }


def _with(summary: Summary, key: str, *kinds: str) -> dict[str, Entry]:
    """The methods that have a figure at all, by name."""
    return {name: entry for name, entry in summary.of_kind(*kinds).items() if getattr(entry.overall, key)}


def _time_per_step(summary: Summary) -> Figure | None:
    """A bar a method; a task's CR over its total is its speedup, and of the tasks' means nearly so."""
    entries = {name: e for name, e in in_order(summary, "vanilla", "method").items() if e.timed}
    if all(entry.kind == "vanilla" for entry in entries.values()):
        return None
    note = "overall; a method beats vanilla where its CR is beyond the end of its bar (exact by task)"
    height = 1.9 + 0.52 * len(entries)
    figure, (axes,) = canvas.canvas(summary, PLOTS["time_per_step"].title, height=height, note=note)
    cells = [entry.overall for entry in entries.values()]
    rows = [_parts(cell.step_time) for cell in cells if cell.step_time]
    totals = [sum(row.values()) for row in rows]
    end = max(_marks(axes, cells), *totals)
    _stacked(axes, rows, end)
    for place, (cell, total) in enumerate(zip(cells, totals, strict=True)):
        text = f"cost {total:.2f}, speedup {times(cell.speedup_decode.value)}"
        axes.text(end * 1.04, place, text, va="center", fontsize=9)
    canvas.method_axis(axes, [shown_name(name, entry) for name, entry in entries.items()])
    axes.set_xlim(0, end * 1.4)
    axes.set_xlabel("time of a step in vanilla steps; tokens per step")
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [*(part for part in PARTS if part in labelled), *(name for name in labelled if name not in PARTS)]
    canvas.legend(figure, [labelled[name] for name in order], order)
    return figure


def _marks(axes: Axes, cells: list[Cell]) -> float:
    """Predicted totals as strokes and CR as diamonds over the bars; the rightmost mark's place."""
    costs = [(place, cell.predicted.step_cost) for place, cell in enumerate(cells) if cell.predicted]
    if costs:
        low, high = [place - 0.38 for place, _ in costs], [place + 0.38 for place, _ in costs]
        style: dict[str, Any] = {"colors": "black", "linewidth": 2.2, "zorder": 4}
        axes.vlines([cost for _, cost in costs], low, high, label="total, predicted", **style)
    rates = [(place, cell.compression_rate or 0.0) for place, cell in enumerate(cells) if cell.compression_rate]
    look: dict[str, Any] = {"color": PALETTE[2], "marker": "D", "markersize": 8, "markeredgecolor": "white"}
    at = [rate for _, rate in rates], [place for place, _ in rates]
    axes.plot(*at, label="CR (tokens per step)", linestyle="none", zorder=5, **look)
    return max((value for _, value in [*costs, *rates]), default=0.0)


def _stacked(axes: Axes, rows: list[dict[str, float]], end: float) -> None:
    """The parts of the steps' times one after the other, each with its value where it is wide enough.

    `end`: the rightmost mark's place.
    """
    left = [0.0] * len(rows)
    for part, shade in PARTS.items():
        widths = [row.get(part, 0.0) for row in rows]
        if not any(part in row for row in rows):
            continue
        axes.barh(range(len(rows)), widths, 0.62, left=left, color=shade, label=part, edgecolor="white")
        for place, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.05 * end:
                ink = "white" if part == "verify" else "black"
                axes.text(start + width / 2, place, f"{width:.2f}", ha="center", va="center", fontsize=8, color=ink)
        left = [start + width for start, width in zip(left, widths, strict=True)]


def _parts(item: StepTime) -> dict[str, float]:
    """What is known of a step's time."""
    known = {part: value for part in ("draft", "verify", "rest") if (value := getattr(item, part)) is not None}
    total = item.total
    assert total is not None
    return known if len(known) == 3 else known | {UNKNOWN: total - sum(known.values())}


def _emitted_per_step(summary: Summary) -> Figure | None:
    """Shares of a method's steps, so that methods with more and with fewer steps compare."""
    entries = _with(summary, "emitted_histogram", "method")
    counts = {name: _capped(entry.overall.emitted_histogram or []) for name, entry in entries.items()}
    counts = {name: row for name, row in counts.items() if sum(row)}
    if not counts:
        return None
    longest = max(map(len, counts.values()))
    cut = any(len(entry.overall.emitted_histogram or []) > MOST_EMITTED for entry in entries.values())
    title, note = PLOTS["emitted_per_step"].title, "all tasks; share of the method's steps"
    if len(counts) > MANY:
        return figures_many.shares(summary, title, counts, f"{longest}{'+' if cut else ''}", note)
    figure, (axes,) = canvas.canvas(summary, title, note=note)
    width = 0.84 / len(counts)
    for index, (name, row) in enumerate(counts.items()):
        offset = (index - (len(counts) - 1) / 2) * width
        shares = [count / sum(row) for count in row]
        places = [tokens + offset for tokens in range(1, len(row) + 1)]
        style: dict[str, Any] = canvas.bar_style(summary, name)
        bars = axes.bar(places, shares, width * 0.92, label=shown_name(name, entries[name]), **style)
        if len(counts) <= 2:
            axes.bar_label(bars, labels=[_share(share) for share in shares], padding=2, fontsize=9)
    labels = [str(tokens) for tokens in range(1, longest + 1)]
    axes.set_xticks(range(1, longest + 1), [*labels[:-1], f"{labels[-1]}+" if cut else labels[-1]])
    axes.set_xlim(0.4, max(longest, 3) + 0.6)
    axes.yaxis.set_major_formatter(_percent())
    axes.set_xlabel("tokens added by a step (the target's own included)")
    axes.set_ylabel("share of steps")
    axes.margins(y=0.12)
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure


def _share(value: float) -> str:
    if not value:
        return ""
    return f"{value:.0%}" if value >= 0.005 else "<1%"


def _capped(histogram: list[int]) -> list[int]:
    """Without empty lengths at the end; the longest share an entry."""
    while histogram and not histogram[-1]:
        histogram = histogram[:-1]
    return [
        *histogram[: MOST_EMITTED - 1],
        *([sum(histogram[MOST_EMITTED - 1 :])] if histogram[MOST_EMITTED - 1 :] else []),
    ]


def _acceptance_by_position(summary: Summary) -> Figure | None:
    note = (
        "overall (the tasks' mean); of steps that drafted at least w deep and had w - 1 accepted: few where w is large"
    )
    labels = ("position w of the draft", "share accepted")
    return _curves(summary, "acceptance_by_position", "conditional_acceptance", note, labels)


def _window_ctar(summary: Summary) -> Figure | None:
    note = "overall; at every position of vanilla's answer, with drafting forced to w tokens"
    return _curves(summary, "window_ctar", "window_ctar", note, ("window w (tokens)", "share of positions"))


def _curves(summary: Summary, plot: str, key: str, note: str, labels: tuple[str, str]) -> Figure | None:
    """A rate by w, one curve a method."""
    entries = {
        name: entry
        for name, entry in _with(summary, key, "method").items()
        if any(value is not None for value in getattr(entry.overall, key))
    }
    if not entries:
        return None
    if len(entries) > MANY:
        curves = {name: canvas.points(getattr(entry.overall, key)) for name, entry in entries.items()}
        return figures_many.panels_of(summary, PLOTS[plot].title, curves, labels, note)[0]
    figure, (axes,) = canvas.canvas(summary, PLOTS[plot].title, note=note)
    for name, entry in entries.items():
        label = shown_name(name, entry)
        canvas.curve(axes, getattr(entry.overall, key), label, canvas.rank(summary, name), linewidth=2.2, markersize=6)
    longest = max(len(getattr(entry.overall, key)) for entry in entries.values())
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlim(0.7, max(longest, 2) + 0.3)
    axes.set_ylim(0, 1)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure


def _draft_confidence(summary: Summary) -> Figure | None:
    """A panel a method: the shares of its accepted and of its rejected drafts by confidence."""
    shown = in_order(summary, "method").items()
    entries = {shown_name(n, e): c for n, e in shown if (c := e.overall.confidence) and any(c.accepted + c.rejected)}
    if not entries:
        return None
    columns = min(len(entries), 3)
    rows = math.ceil(len(entries) / columns)
    note = "all tasks; shares of the accepted drafts, and of those that lost where verification ended"
    height = 1.9 + 2.3 * rows
    shape = {"rows": rows, "columns": columns, "sharex": True, "sharey": True}
    figure, panels = canvas.canvas(summary, PLOTS["draft_confidence"].title, height=height, note=note, **shape)
    for place, (axes, (name, found)) in enumerate(zip(panels, entries.items(), strict=False)):
        _confidence_panel(axes, name, found)
        below = place + columns >= len(entries)
        axes.tick_params(labelbottom=below)
        axes.set_xlabel("confidence" if below else "")
        axes.set_ylabel("share of drafts" if place % columns == 0 else "")
    for axes in panels[len(entries) :]:
        axes.set_axis_off()
    panels[0].set_ylim(bottom=0)
    panels[0].yaxis.set_major_formatter(_percent())
    canvas.legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def _confidence_panel(axes: Axes, name: str, found: Confidence) -> None:
    groups = (("accepted", found.accepted, ACCEPTED, "-"), ("rejected", found.rejected, REJECTED, "--"))
    for label, counts, shade, line in groups:
        shares = [count / (sum(counts) or 1) for count in counts]
        axes.stairs(shares, found.edges, color=shade, alpha=0.25, fill=True)
        axes.stairs(shares, found.edges, color=shade, linewidth=1.6, linestyle=line, label=label)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    title = f"{canvas.two_lines(name)}\n{sum(found.accepted):,} accepted, {sum(found.rejected):,} rejected"
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)


def _time_by_context(summary: Summary) -> Figure | None:
    """A line a method, and vanilla's on the same turns."""
    entries = _with(summary, "context", "method")
    if not entries:
        return None
    note = "turns in bins of context (prompt plus half the answer); the method's and vanilla's mean in each"
    title, labels = PLOTS["time_per_token_by_context"].title, ("context (tokens)", "ms per token")
    if len(entries) > MANY:
        ours, base = (
            {name: _points(entry.overall.context, key) for name, entry in entries.items()}
            for key in ("ms_per_token", "vanilla_ms_per_token")
        )
        note = f"{note.rpartition(';')[0]}; dashed: vanilla on the same turns"
        figure, panels = figures_many.panels_of(summary, title, ours, labels, note, base)
        panels[0].set_ylim(bottom=0)
        return figure
    figure, (axes,) = canvas.canvas(summary, title, note=note)
    bins = max((entry.overall.context for entry in entries.values()), key=len)
    _line(axes, bins, "vanilla_ms_per_token", label="vanilla", color=GREY, linestyle="--", marker=".")
    for name, entry in entries.items():
        place = canvas.rank(summary, name)
        style = {"color": canvas.colour(summary, name), "marker": canvas.MARKERS[place % len(canvas.MARKERS)]}
        _line(axes, entry.overall.context, "ms_per_token", label=shown_name(name, entry), linewidth=2.0, **style)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure


def _line(axes: Axes, bins: list[ContextBin], key: str, **style: Any) -> None:
    axes.plot(*_points(bins, key), **style)


def _points(bins: list[ContextBin], key: str) -> tuple[list[float], list[float]]:
    known = [(item.context or 0.0, y) for item in bins if (y := getattr(item, key)) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)
