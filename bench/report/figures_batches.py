"""Plots of decoding in batches: where drafting stops paying, and throughput against each user's speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.figures.summary import Summary
from bench.report import canvas, figures_many
from bench.report.canvas import GREY, MARKERS, PALETTE, Plot
from bench.report.formats import shown_name
from bench.report.tables import MANY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = {
    "batch_crossover": Plot(
        "Throughput over vanilla, by batch size",
        "In batches",
        "Throughput of full batches over vanilla's at the same batch size. Where a curve falls below 1, drafts cost "
        "more than they gain.",
    ),
    "batch_frontier": Plot(
        "Throughput against the speed of each sequence",
        "In batches",
        "A curve a method, from the smallest batch (right) to the largest: further up and right is better.",
    ),
}


def draw(summary: Summary) -> dict[str, Figure | None]:
    """Every plot by its name, None for one without data."""
    return {"batch_crossover": _crossover(summary), "batch_frontier": _frontier(summary)}


def _crossover(summary: Summary) -> Figure | None:
    """A curve a method over batch sizes, with its intervals; a ring where it crosses 1."""
    curves = {
        name: [cell for cell in summary.batches[name] if cell.speedup.value is not None] for name in summary.crossovers
    }
    curves = {name: cells for name, cells in curves.items() if cells}
    if not curves:
        return None
    title = PLOTS["batch_crossover"].title
    labels = ("batch size", "throughput over vanilla's")
    if len(curves) > MANY:
        found = {
            name: ([float(cell.batch) for cell in cells], [cell.speedup.value or 0.0 for cell in cells])
            for name, cells in curves.items()
        }
        return figures_many.panels_of(summary, title, found, labels)[0]
    figure, (axes,) = canvas.canvas(summary, title, note="full waves only; rings: where a curve falls to 1")
    for name, cells in curves.items():
        place, estimates = canvas.rank(summary, name), [cell.speedup for cell in cells]
        style = _style(place)
        axes.errorbar(
            [cell.batch for cell in cells],
            [estimate.value or 0.0 for estimate in estimates],
            yerr=canvas.error_bars(estimates),
            label=shown_name(name, summary.methods[name]),
            elinewidth=1.2,
            **style,
        )
        crossing = summary.crossovers[name].measured
        if crossing is not None and (cells[0].speedup.value or 0) >= 1:
            axes.plot([crossing], [1], "o", markersize=11, markerfacecolor="none", color=style["color"], zorder=4)
    axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle="--", label="vanilla", zorder=1.5)
    sizes = sorted({cell.batch for cells in curves.values() for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure


def _frontier(summary: Summary) -> Figure | None:
    """A curve a method, vanilla too: tokens/s of a sequence and of the whole batch, a point a batch size."""
    known = {name: [cell for cell in cells if cell.tok_per_s] for name, cells in summary.batches.items()}
    curves = {
        name: ([cell.tok_per_s_each or 0.0 for cell in cells], [cell.tok_per_s or 0.0 for cell in cells])
        for name, cells in known.items()
        if cells
    }
    baseline = next((name for name in curves if summary.methods[name].kind == "vanilla"), None)
    if baseline is None:
        return None
    title, labels = PLOTS["batch_frontier"].title, ("tokens/s of a sequence", "tokens/s of the batch")
    if len(curves) > MANY + 1:
        beside = dict.fromkeys(curves, curves[baseline])
        found = {name: curve for name, curve in curves.items() if name != baseline}
        return figures_many.panels_of(summary, title, found, labels, "dashed: vanilla", beside)[0]
    figure, (axes,) = canvas.canvas(summary, title, note="numbers: batch sizes; full waves only")
    for name, (each, whole) in curves.items():
        style: dict[str, Any] = {"color": GREY, "marker": "x"}
        if name != baseline:
            style = _style(canvas.rank(summary, name))
        axes.plot(each, whole, label=shown_name(name, summary.methods[name]), **style)
        for x, y, cell in zip(each, whole, known[name], strict=True):
            axes.annotate(str(cell.batch), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure


def _style(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}
