"""Speedup and CR over commits: runs of one model, device and question set in the order in which they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.figures.axis import values_asked
from bench.figures.comparable import identity
from bench.figures.facts import is_dirty
from bench.figures.metrics import questions_asked, summarize
from bench.figures.records import Run, Turn, atomic_writer, read_records
from bench.figures.rules import IDENTITY
from bench.figures.summary import Summary
from bench.report import canvas, markdown, model
from bench.report.formats import number, times_between

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Speedup and CR over commits"
_COMMIT_CHARS = 8


@dataclass(frozen=True)
class Point:
    """A run in a history."""

    commit: str
    started: str
    summary: Summary


def read_history(folders: Sequence[Path]) -> list[Point]:
    """The runs in `folders`, oldest first.

    Raises:
        UserError: not a run, or runs of different things.

    """
    runs = sorted(map(read_records, folders), key=lambda records: _started(records[0]))
    for name in IDENTITY:
        values = {str(identity(run)[name]) for run, _ in runs}
        if len(values) > 1:
            raise UserError(f"the runs differ in {name} ({', '.join(sorted(values))}): give runs that share it")
    asked = [_asked(run, turns) for run, turns in runs]
    if any(one != asked[0] for one in asked):
        counts = ", ".join(str(len(one[0])) for one in asked)
        raise UserError(
            f"the runs asked different questions of one file, or at other lengths ({counts} questions, in the order of "
            "their dates): give complete runs with the same --tasks, --limit, --seed and --prompt-lengths"
        )
    return [Point(_commit(run), _started(run), summarize(run, turns)) for run, turns in runs]


def _asked(run: Run, turns: Sequence[Turn]) -> tuple[set[tuple[int, str]], list[float | None], Any]:
    """The questions that vanilla was asked, by id and task, and the length that they were padded to, with what."""
    return questions_asked(run, turns), values_asked(run, turns)[:1], run.dataset.get("passages")


def _started(run: Run) -> str:
    return str(run.provenance.get("started") or "")


def _commit(run: Run) -> str:
    commit = str(run.provenance.get("commit") or "unknown")[:_COMMIT_CHARS]
    return f"{commit}+" if is_dirty(run.provenance) else commit


def table(points: Sequence[Point]) -> model.Table:
    """One row a run and method."""
    rows = [
        [point.started[:10], point.commit, name, times_between(entry.overall.speedup_decode),
         number(entry.overall.compression_rate)]
        for point in points
        for name, entry in point.summary.of_kind("method").items()
    ]  # fmt: skip
    return model.table(["date", "commit", "method", "decode speedup", "CR"], rows, 3)


def write_history(points: Sequence[Point], out: Path) -> list[Path]:
    """`history.md`, and its plot."""
    (plot,) = canvas.save({"history": _draw(points)}, out)
    page = out / "history.md"
    with atomic_writer(page) as file:
        file.write(markdown.page([model.Section(TITLE, [model.Image(TITLE, plot, plot.name), table(points)])]))
    return [page, plot]


def _draw(points: Sequence[Point]) -> Figure:
    """Decode speedup with intervals above, CR below, a line a method."""
    newest = points[-1].summary
    figure, (above, below) = canvas.canvas(newest, TITLE, height=6.2, rows=2, sharex=True)
    names = list(dict.fromkeys(name for point in points for name in point.summary.of_kind("method")))
    for index, name in enumerate(names):
        found = [(x, p.summary.methods[name].overall) for x, p in enumerate(points) if name in p.summary.methods]
        known = [(x, cell) for x, cell in found if cell.speedup_decode.value is not None]
        style: dict[str, Any] = {
            "color": canvas.PALETTE[index % len(canvas.PALETTE)],
            "marker": canvas.MARKERS[index % len(canvas.MARKERS)],
        }
        at = [x for x, _ in known]
        speeds = [cell.speedup_decode for _, cell in known]
        above.errorbar(at, [s.value or 0.0 for s in speeds], yerr=canvas.error_bars(speeds), label=name, **style)
        below.plot(at, [cell.compression_rate or 0.0 for _, cell in known], **style)
    above.axhline(1.0, color=canvas.GREY, linewidth=1.2, linestyle="--")
    above.set_ylabel("decode speedup")
    below.set_ylabel("CR")
    below.set_xticks(range(len(points)), [point.commit for point in points], rotation=45, ha="right", parse_math=False)
    canvas.legend(figure, *above.get_legend_handles_labels())
    return figure
