"""The plots of a summary. By task and by window here, the others in modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures.published import Source, read_published
from bench.figures.summary import OVERALL, Cell, Estimate, Summary
from bench.report import canvas, figures_averages, figures_axis, figures_batches, figures_many, figures_steps
from bench.report.canvas import GREY, Plot, points
from bench.report.formats import shown_name, task_name
from bench.report.tables import MANY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = {
    "speedup_by_task": Plot(
        "Decode speedup over vanilla, by task",
        "How fast",
        "Tokens per second over vanilla's on the same prompts; the line at 1 is vanilla.",
    ),
    "compression_rate_by_task": Plot(
        "Compression rate (tokens per verification step), by task",
        "What is accepted",
        "Tokens per verification step: the speedup if drafts and wider forward passes cost nothing.",
    ),
    "ctar_by_window": Plot(
        "Consistent token acceptance: share of steps with more than w tokens",
        "What is accepted",
        "Share of steps that added more than w tokens. A step that drafted fewer counts as a miss.",
    ),
    **figures_axis.PLOTS,
    **figures_steps.PLOTS,
    **figures_averages.PLOTS,
    **figures_batches.PLOTS,
}


def draw(summary: Summary, sources: Sequence[Source] | None = None) -> dict[str, Figure]:
    """Every plot by its name; those without data are left out.

    `sources` are the published figures to show next to ours (default: those in `results/published`).
    """
    found = {
        "speedup_by_task": _speedup_by_task(summary),
        "compression_rate_by_task": _compression_rate_by_task(summary),
        "ctar_by_window": _ctar_by_window(summary),
    }
    sources = read_published() if sources is None else sources
    found |= figures_axis.draw(summary) | figures_steps.draw(summary) | figures_averages.draw(summary, sources)
    found |= figures_batches.draw(summary)
    return {name: figure for name, figure in found.items() if figure is not None}


def write_figures(summary: Summary, folder: Path) -> list[Path]:
    """Draw every plot into the folder; each file appears under its name only when completely written.

    Raises:
        UserError: the folder cannot be written, or a file of published figures is malformed.

    """
    return canvas.save(draw(summary), folder)


def _speedup_by_task(summary: Summary) -> Figure | None:
    """Peers too: they have a speedup, though no steps."""
    names = list(summary.of_kind("method", "peer"))
    cells = [cell for name in names for cell in summary.methods[name].tasks.values()]
    note = "bars: ratio of sums, overall the tasks' unweighted mean"
    if summary.statistics and any(cell.speedup_decode.bounds for cell in cells):
        note += f"; lines: {summary.statistics.interval:.0%} bootstrap intervals"
    return _bars(summary, "speedup_by_task", names, lambda cell: cell.speedup_decode, "speedup", note)


def _compression_rate_by_task(summary: Summary) -> Figure | None:
    names = list(summary.of_kind("method"))
    return _bars(
        summary, "compression_rate_by_task", names, lambda cell: Estimate(cell.compression_rate), "tokens per step"
    )


def _bars(
    summary: Summary, plot: str, names: list[str], estimate: Callable[[Cell], Estimate], label: str, note: str = ""
) -> Figure | None:
    """One group of bars a task and one for overall, one colour a method, vanilla as the line at 1."""
    tasks = canvas.tasks_of(summary, names)
    entries = {name: summary.methods[name] for name in names}
    values = {name: {task: estimate(e.tasks[task]) for task in tasks if task in e.tasks} for name, e in entries.items()}
    drawn = [canvas.top(item) for row in values.values() for item in row.values() if item.value is not None]
    if not drawn:
        return None
    if len(names) > MANY:
        note = note.replace("bars:", "dots:")
        return figures_many.by_task(summary, PLOTS[plot].title, entries, estimate, label, note)
    figure, (axes,) = canvas.canvas(summary, PLOTS[plot].title, note=note)
    # Overall is set a little apart: it is a mean of the others.
    centres = {task: i + (0.25 if task == OVERALL else 0) for i, task in enumerate(tasks)}
    width = min(0.84 / len(names), 0.42)
    many = len(names) * len(tasks) > 22  # then the values fit above their bars only upright
    for index, name in enumerate(names):
        offset = (index - (len(names) - 1) / 2) * width
        at = [(centres[task] + offset, item) for task, item in values[name].items() if item.value is not None]
        _bar_row(axes, at, width, (many, len(names)), summary, name)
    axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle="--", label="vanilla", zorder=2.5)
    axes.set_xticks(list(centres.values()), [canvas.wrapped(task) for task in tasks], parse_math=False)
    axes.tick_params(axis="x", length=0)
    last = centres[tasks[-1]]
    margin = max(0.6, (2.4 - last) / 2)  # one task alone is no reason for a bar as wide as the plot
    axes.set_xlim(-margin, last + margin)
    axes.set_ylim(0, max(*drawn, 1.0) * 1.17)
    axes.set_ylabel(label)
    if OVERALL in tasks and len(tasks) > 1:
        axes.axvline(last - 0.625, color="#cccccc", linewidth=0.8)
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure


def _bar_row(
    axes: Any, at: list[tuple[float, Estimate]], width: float, crowd: tuple[bool, int], summary: Summary, name: str
) -> None:
    """One method's bars with their intervals and values, upright where there are many."""
    from matplotlib.patheffects import withStroke

    many, methods = crowd
    estimates = [item for _, item in at]
    style: dict[str, Any] = canvas.bar_style(summary, name) | {"label": shown_name(name, summary.methods[name])}
    if any(item.bounds for item in estimates):
        style |= {"yerr": canvas.error_bars(estimates), "error_kw": canvas.ERROR_BAR}
    bars = axes.bar([x for x, _ in at], [item.value for item in estimates], width * 0.92, **style)
    halo = [withStroke(linewidth=2.5, foreground="white")]  # readable across vanilla's line
    for text in axes.bar_label(bars, fmt="%.2f", padding=2, path_effects=halo, zorder=5):
        text.set(rotation=90 if many else 0, fontsize=min(8, 48 / methods) if many else 9)


def _ctar_by_window(summary: Summary) -> Figure | None:
    """One curve a method; a method alone also shows its tasks."""
    curves = {name: (e, ctar) for name, e in summary.of_kind("method").items() if (ctar := e.overall.ctar)}
    if not curves:
        return None
    longest = max(len(values) for _, values in curves.values())
    if len(curves) > MANY:
        found = {name: points(_to_window(longest, values)) for name, (_, values) in curves.items()}
        labels = ("window w (tokens)", "CTAR(w)")
        return figures_many.panels_of(summary, PLOTS["ctar_by_window"].title, found, labels)[0]
    figure, (axes,) = canvas.canvas(summary, PLOTS["ctar_by_window"].title)
    for name, (entry, values) in curves.items():
        tasks, place = entry.by_task, canvas.rank(summary, name)
        suffix = ""
        if len(curves) == 1:  # overall of one task is that task
            suffix = f", {task_name(OVERALL).lower() if len(tasks) > 1 else task_name(next(iter(tasks)))}"
            for index, (task, cell) in enumerate(tasks.items() if len(tasks) > 1 else (), place + 1):
                canvas.curve(axes, cell.ctar or [], task_name(task), index, linewidth=1.0, markersize=4)
        label = shown_name(name, entry) + suffix
        canvas.curve(axes, _to_window(longest, values), label, place, linewidth=2.4, markersize=6, zorder=4)
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlim(0.7, longest + 0.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("window w (tokens)")
    axes.set_ylabel("CTAR(w)")
    canvas.legend(figure, *axes.get_legend_handles_labels())
    return figure


def _to_window(longest: int, values: list[float | None]) -> list[float | None]:
    """Nothing is missing beyond a method's last window: no step was as long, so the rate is 0 by its definition."""
    return [*values, *[None if values[-1] is None else 0.0] * (longest - len(values))]
