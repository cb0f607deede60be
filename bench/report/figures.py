"""The plots of a summary, as PNG and SVG. Drawn on figures of their own: no display, no global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.metrics import OVERALL, Cell, ordered_tasks
from bench.records import atomic_writer
from bench.report.tables import of_kind, sampling_text, shortened, shown_name, task_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = {
    "speedup_by_task": "Decode speedup over vanilla, by task",
    "compression_rate_by_task": "Compression rate (tokens per verification step), by task",
    "ctar_by_window": "Consistent token acceptance: share of steps with more than w tokens",
}
FORMATS = ("png", "svg")
DPI = 150
SIZE_INCHES = (9.0, 4.6)
# Okabe and Ito's palette, told apart by colour-blind readers too; without the yellow, which white swallows.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vPX"  # as many as colours
HATCHES = ("", "///", "...", "xxx")  # a second round of the palette is hatched
GREY = "#555555"
_LEGEND_CHARS = 100  # what fits beside each other under a plot
_LEGEND_ROW_INCHES = 0.19


def draw(summary: dict[str, Any]) -> dict[str, Figure]:
    """Every plot by its name; one without data says so."""
    return {
        "speedup_by_task": _speedup_by_task(summary),
        "compression_rate_by_task": _compression_rate_by_task(summary),
        "ctar_by_window": _ctar_by_window(summary),
    }


def write_figures(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every plot into the folder; each file appears under its name only when completely written.

    Raises:
        UserError: the folder cannot be written.

    """
    import matplotlib

    paths = []
    # The salt replaces random ids, and dates are left out: the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "roobench"}):
        for name, figure in draw(summary).items():
            for suffix in FORMATS:
                path = folder / f"{name}.{suffix}"
                with atomic_writer(path) as file:
                    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
                    figure.savefig(file.buffer, format=suffix, dpi=DPI, metadata=metadata)
                paths.append(path)
    return paths


def _speedup_by_task(summary: dict[str, Any]) -> Figure:
    """Peers too: they have a speedup, though no steps."""
    names = [*of_kind(summary, "method"), *of_kind(summary, "peer")]
    return _bars(summary, "speedup_by_task", names, lambda cell: cell["speedup_decode"]["value"], "speedup")


def _compression_rate_by_task(summary: dict[str, Any]) -> Figure:
    names = list(of_kind(summary, "method"))
    show = "tokens per step"
    return _bars(summary, "compression_rate_by_task", names, lambda cell: cell["compression_rate"], show)


def _bars(
    summary: dict[str, Any], plot: str, names: list[str], value: Callable[[Cell], float | None], label: str
) -> Figure:
    """One group of bars a task and one for overall, one colour a method, vanilla as the line at 1."""
    from matplotlib.patheffects import withStroke

    figure, axes = _canvas(summary, PLOTS[plot])
    tasks = _tasks(summary, names)
    values = {
        name: [value(entry["tasks"][task]) if task in entry["tasks"] else None for task in tasks]
        for name, entry in summary["methods"].items()
        if name in names
    }
    drawn = [item for row in values.values() for item in row if item is not None]
    if not drawn:
        return _empty(figure, axes, "no method has finished a question: nothing to show")
    # Overall stands a little apart: it is a mean of the others.
    centres = [i + (0.25 if task == OVERALL else 0) for i, task in enumerate(tasks)]
    width = min(0.84 / len(names), 0.42)
    many = len(names) * len(tasks) > 22  # then the values fit above their bars only upright
    for index, name in enumerate(names):
        offset = (index - (len(names) - 1) / 2) * width
        at = [(c + offset, v) for c, v in zip(centres, values[name], strict=True) if v is not None]
        shown, style = shown_name(name, summary["methods"][name]), _style(summary, name)
        bars = axes.bar([x for x, _ in at], [v for _, v in at], width * 0.92, label=shown, **style)
        halo = [withStroke(linewidth=2.5, foreground="white")]  # readable across vanilla's line
        for text in axes.bar_label(bars, fmt="%.2f", padding=2, path_effects=halo, zorder=5):
            text.set(rotation=90 if many else 0, fontsize=min(8, 48 / len(names)) if many else 9)
    axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle="--", label="vanilla", zorder=3)
    axes.set_xticks(centres, [_wrapped(task) for task in tasks])
    axes.tick_params(axis="x", length=0)
    margin = max(0.6, (2.4 - centres[-1]) / 2)  # one task alone is no reason for a bar as wide as the plot
    axes.set_xlim(-margin, centres[-1] + margin)
    axes.set_ylim(0, max(*drawn, 1.0) * 1.17)
    axes.set_ylabel(label)
    if OVERALL in tasks and len(tasks) > 1:
        axes.axvline(centres[-1] - 0.625, color="#cccccc", linewidth=0.8)
    _legend(figure, axes)
    return figure


def _ctar_by_window(summary: dict[str, Any]) -> Figure:
    """One curve a method; a method alone also shows its tasks."""
    figure, axes = _canvas(summary, PLOTS["ctar_by_window"])
    curves = {
        name: entry["tasks"] for name, entry in of_kind(summary, "method").items() if entry["tasks"][OVERALL]["ctar"]
    }
    if not curves:
        return _empty(figure, axes, "no method has verified a draft: nothing to show")
    alone = len(curves) == 1
    longest = max(len(tasks[OVERALL]["ctar"]) for tasks in curves.values())
    for name, tasks in curves.items():
        shown = [task for task in tasks if task != OVERALL]
        rank = _rank(summary, name)
        if alone and len(shown) > 1:
            for index, task in enumerate(shown, rank + 1):
                _curve(axes, tasks[task]["ctar"], task_name(task), index, linewidth=1.0, markersize=4)
        # Overall of one task is that task.
        suffix = f", {task_name(OVERALL).lower() if len(shown) > 1 else task_name(shown[0])}" if alone else ""
        label = shown_name(name, summary["methods"][name]) + suffix
        _curve(axes, _to_window(longest, tasks[OVERALL]["ctar"]), label, rank, linewidth=2.4, markersize=6, zorder=4)
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlim(0.7, longest + 0.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("window w (tokens)")
    axes.set_ylabel("CTAR(w)")
    _legend(figure, axes)
    return figure


def _to_window(longest: int, values: list[float | None]) -> list[float | None]:
    """Nothing is missing beyond a method's last window: no step was as long, so the rate is 0 by its definition."""
    return [*values, *[None if values[-1] is None else 0.0] * (longest - len(values))]


def _curve(axes: Axes, values: list[float | None], label: str, index: int, **style: Any) -> None:
    """The rates that are defined, in the colour and with the marker of a place in the palette."""
    points = [(w, value) for w, value in enumerate(values, 1) if value is not None]
    style |= {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
    axes.plot([w for w, _ in points], [value for _, value in points], label=label, clip_on=False, **style)


def _canvas(summary: dict[str, Any], title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    provenance = _provenance(summary)
    axes.annotate(
        provenance,
        (0, 1),
        xytext=(0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=GREY,
        parse_math=False,
    )
    lines = provenance.count("\n") + 1
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=12 + 13 * lines)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _provenance(summary: dict[str, Any]) -> str:
    """Figures of different models, devices or questions must never be taken for each other."""
    device, dataset = summary["device"], summary["dataset"]
    parts = [
        str(summary["model"]),
        str(device.get("name") or device.get("type")),
        summary["dtype"],
        f"{dataset['name']} questions ({dataset['questions']})",
    ]
    if summary["sampling"]:
        parts.append(sampling_text(summary["sampling"]))
    if not summary["complete"]:
        parts.append("interrupted run")
    return textwrap.fill(" · ".join(parts), 110)


def _empty(figure: Figure, axes: Axes, message: str) -> Figure:
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes, fontsize=12, color=GREY)
    axes.set_axis_off()
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    labels = [shortened(name, _LEGEND_CHARS) for name in names]  # "(not lossless)" stands at the end: never cut off
    # A long legend makes the picture taller, not the plot flatter.
    columns = max(1, min(len(labels), _LEGEND_CHARS // (max(map(len, labels)) + 6)))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    rows = math.ceil(len(labels) / columns)
    figure.set_size_inches(SIZE_INCHES[0], SIZE_INCHES[1] + _LEGEND_ROW_INCHES * (rows - 1))


def _tasks(summary: dict[str, Any], names: list[str]) -> list[str]:
    """The tasks of the methods; `overall` at the end where it is more than one task's repetition."""
    tasks = [task for name in names for task in summary["methods"][name]["tasks"] if task != OVERALL]
    ordered = ordered_tasks(tasks)
    return [*ordered, OVERALL] if len(ordered) > 1 else ordered


def _rank(summary: dict[str, Any], name: str) -> int:
    """A method's place, the same in every plot, so that it keeps its colour."""
    return [*of_kind(summary, "method"), *of_kind(summary, "peer")].index(name)


def _style(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Peers are grey: they are a yardstick and not a competitor."""
    index = _rank(summary, name)
    if summary["methods"][name]["kind"] == "peer":
        return {"color": "#BBBBBB", "hatch": "\\\\\\", "edgecolor": "white"}
    hatch = HATCHES[index // len(PALETTE) % len(HATCHES)]
    return {"color": PALETTE[index % len(PALETTE)], "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def _wrapped(task: str) -> str:
    return textwrap.fill(task_name(task), 13, break_long_words=False)
