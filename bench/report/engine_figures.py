"""The roofline of an engine benchmark: how near forward passes come to what the device can read and compute.

Williams, Waterman & Patterson, Communications of the ACM 52(4), 2009, section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures.engine_record import EngineRecord
from bench.report import canvas
from bench.report.formats import device_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = (1, 2, 4, 8, 16, 32, 64, 128)  # widths of passes that the upper axis names
_NOTE = "Operations: those of the products. Attention, norms and the choice of tokens take time, but are not counted."


def write(found: EngineRecord, folder: Path, name: str) -> Path:
    """Draw the roofline to `name`.png in the folder.

    Raises:
        UserError: the folder cannot be written.

    """
    (path,) = canvas.save({name: draw(found)}, folder)
    return path


def peak(found: EngineRecord) -> tuple[str, float]:
    """What multiplied fastest, and its operations (1e9) per second."""
    return max(found["arithmetic"].items(), key=lambda item: item[1])


def draw(found: EngineRecord) -> Figure:
    """Operations per second over operations per byte of weights, and the two limits."""
    random = "random weights" if found["random_weights"] else ""
    facts = [found["model"], random, found["dtype"], device_name(found["device"]), f"{found['device'].threads} threads"]
    told = " · ".join(filter(None, facts))
    figure, (axes,) = canvas.canvas(told, "Forward passes under the roofline", height=5.2, note=_NOTE)
    step, per_byte = found["operations"] / 1e9, found["operations"] / found["vanilla"]["weight_bytes"]
    kinds = {"whole passes": found["passes"], "their products alone": found["products"]}
    rates: list[float] = []
    for place, (label, times) in enumerate(kinds.items()):
        own = [int(n) * step / (ms / 1e3) for n, ms in times.items()]
        style: dict[str, Any] = {"color": canvas.PALETTE[place], "marker": canvas.MARKERS[place], "markersize": 5.5}
        axes.plot([int(n) * per_byte for n in times], own, label=label, linewidth=1.6, **style)
        rates += own
    (by, top), read = peak(found), found["memory"]["read_gb_s"]
    low, high = per_byte / 1.3, max(top / read, max(map(int, found["passes"])) * per_byte) * 1.3
    look: dict[str, Any] = {"color": "black", "linewidth": 1.3, "zorder": 1.5}
    axes.plot([low, high], [low * read, high * read], label=f"memory: reads {read:,.0f} GB/s", **look)
    axes.plot([low, high], [top, top], linestyle="--", label=f"arithmetic: {top:,.0f} G operations/s ({by})", **look)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(*rates, low * read) / 1.3, max(*rates, top) * 1.5))
    _name_axes(axes, per_byte, step)
    canvas.legend(figure, *axes.get_legend_handles_labels(), columns=2)
    return figure


def _name_axes(axes: Any, per_byte: float, step: float) -> None:
    """The widths of passes above, tokens per second to the right."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    widths = axes.secondary_xaxis("top", functions=(lambda x: x / per_byte, lambda n: n * per_byte))
    rates = axes.secondary_yaxis("right", functions=(lambda y: y / step, lambda rate: rate * step))
    widths.set_xlabel("tokens in a pass")
    rates.set_ylabel("tokens/s through the model")
    axes.set_xlabel("operations per byte of weights")
    axes.set_ylabel("G operations/s")
    for axis in (axes.xaxis, axes.yaxis, widths.xaxis, rates.yaxis):
        axis.set_major_locator(FixedLocator(_NAMED) if axis is widths.xaxis else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color=canvas.LIGHT, linewidth=0.8)
