"""A sweep for a reader: its record, its points, `sweep.csv` and `sweep.md`. Needs no torch and no model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.figures import metrics
from bench.figures.metrics import failed_throughout, summarize
from bench.figures.records import SWEEP_FILE, Run, Turn, atomic_writer, read_records
from bench.figures.summary import Cell, Estimate, Summary
from bench.report import link, markdown
from bench.report.cautions import cautions
from bench.report.formats import UNDEFINED, csv_cell, lossless_text, number, setting_text, times
from bench.report.model import Column, Image, Section, Strong, Table, listed
from bench.typed_json import Json, MismatchError, Share, decode_value, read

SCHEMA = 1
SWEEP_CSV = "sweep.csv"
SWEEP_PAGE = "sweep.md"
_FIGURES = ("speedup_total", "compression_rate", "draft_time_share")  # in addition to the decode speedup


@dataclass(frozen=True)
class Axis:
    """What is swept: a knob, or a training setting as `train.name`; values as spelled."""

    name: str
    values: tuple[str, ...]


@dataclass
class Variant:
    """One point of the grid."""

    label: str  # as the run calls it
    values: tuple[str, ...]  # one an axis
    training: dict[str, Json] | None = None  # settings of its weights, where these were trained for the sweep
    agreement: Share | None = None  # of its weights with the target's choices, on held-out conversations


@dataclass
class Sweep:
    """What `sweep.json` holds."""

    method: str
    axes: list[Axis]
    variants: list[Variant]
    failed: dict[str, str] = field(default_factory=dict)  # label -> why it is not in the run
    schema: int = SCHEMA


@dataclass(frozen=True)
class Point:
    """A variant with what was measured of it."""

    variant: Variant
    overall: Cell | None  # None: it failed
    extra_parameters: int | None
    failure: str = ""

    def value(self, key: str) -> float | None:
        """A figure of the overall row, such as `compression_rate`; of an estimate its value."""
        found = getattr(self.overall, key, None)
        return found.value if isinstance(found, Estimate) else found

    def interval(self, key: str) -> tuple[float, float] | None:
        """The 95% interval of an estimate, where there is one."""
        found = getattr(self.overall, key, None)
        return found.bounds if isinstance(found, Estimate) else None


def read_sweep(folder: Path) -> Sweep:
    """The `sweep.json` of a sweep's folder.

    Raises:
        UserError: missing, malformed, or written by another schema version.

    """
    path = folder / SWEEP_FILE
    try:
        value = read(dict[str, Json], path)
        if value["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {value['schema']!r}; this version reads {SCHEMA}: sweep again")
        return decode_value(Sweep, value)
    except FileNotFoundError:
        raise UserError(f"{folder} is no sweep: it has no {SWEEP_FILE}") from None
    except (MismatchError, KeyError) as error:
        raise UserError(f"{path} is not a sweep's record: {error}") from error


def measured(sweep: Sweep, run: Run, turns: Sequence[Turn]) -> tuple[Summary, list[Point]]:
    """The run's summary, and all points in the sweep's order."""
    summary = summarize(run, turns)
    if metrics.vanilla_name(run) in failed_throughout(run, turns):
        raise UserError(f"vanilla failed in every question of {run.run_id}: there is nothing to compare with")
    dead = summary.failed_methods
    failed = sweep.failed | {label: f"failed in every question, first with {error}" for label, error in dead.items()}
    points = []
    for variant in sweep.variants:
        entry = summary.methods.get(variant.label)
        if variant.label in failed or entry is None:
            points.append(Point(variant, None, None, failed.get(variant.label, "was not run")))
        else:
            points.append(Point(variant, entry.overall, entry.extra_parameters))
    return summary, points


def write_sweep(folder: Path) -> list[Path]:
    """Table and figures of the sweep in `folder`, from its records alone; returns the files, the page first.

    Raises:
        UserError: the records are missing or malformed, or the folder cannot be written.

    """
    from bench.report.sweep_figures import write_sweep_figures

    sweep, (run, turns) = read_sweep(folder), read_records(folder)
    summary, points = measured(sweep, run, turns)
    with atomic_writer(folder / SWEEP_CSV) as file:
        csv.writer(file, lineterminator="\n").writerows(csv_rows(sweep, points))
    figures = write_sweep_figures(sweep, summary, points, folder / "plots")
    images = [Image(path.stem.replace("_", " "), path, link(path, folder)) for path in figures]
    with atomic_writer(folder / SWEEP_PAGE) as file:
        file.write(markdown.page(page(sweep, run, summary, points, images)))
    return [folder / SWEEP_PAGE, folder / SWEEP_CSV, *figures]


def csv_rows(sweep: Sweep, points: Sequence[Point]) -> list[list[Any]]:
    """A heading and one row a variant, in full precision; an empty cell: undefined."""
    heading = [axis.name for axis in sweep.axes]
    heading += ["label", "speedup_decode", "speedup_decode_low", "speedup_decode_high", *_FIGURES]
    heading += ["extra_parameters", "agreement", "identical", "audited", "failure"]
    rows: list[list[Any]] = [heading]
    for point in points:
        low, high = point.interval("speedup_decode") or (None, None)
        counts = (point.overall.lossless if point.overall else None) or {}
        rows.append(
            [
                *point.variant.values,
                point.variant.label,
                *(point.value("speedup_decode"), low, high),
                *(point.value(key) for key in _FIGURES),
                *(point.extra_parameters, point.variant.agreement),
                *((counts["identical"], sum(counts.values())) if counts else (None, None)),
                point.failure,
            ]
        )
    return [["" if cell is None else csv_cell(cell) for cell in row] for row in rows]


def table(sweep: Sweep, points: Sequence[Point], *, sampled: bool = False) -> Table:
    """One row a variant, the fastest in bold."""
    speeds = [value for point in points if (value := point.value("speedup_decode")) is not None]

    def speed(point: Point) -> str:
        shown = times(point.value("speedup_decode"))
        # Without intervals the fastest of many may be the luckiest.
        fastest = point.interval("speedup_decode") and point.value("speedup_decode") == max(speeds) and len(points) > 1
        return Strong(shown) if fastest else shown

    def bounds(point: Point) -> str:
        interval = point.interval("speedup_decode")
        return f"{number(interval[0])}-{number(interval[1])}" if interval else UNDEFINED

    def output(point: Point) -> str:
        return lossless_text(point.overall.lossless, sampled=sampled) if point.overall else Strong("failed")

    columns = [
        Column("decode", speed),
        Column("95%", bounds),
        Column("end-to-end", lambda point: times(point.value("speedup_total"))),
        Column("CR", lambda point: number(point.value("compression_rate"))),
        Column("time drafting", lambda point: number(point.value("draft_time_share"))),
        Column("extra parameters", lambda point: _millions(point.extra_parameters)),
        Column("agreement", lambda point: number(point.variant.agreement, 3)),
        Column("output", output, left=True),
    ]
    if all(point.variant.agreement is None for point in points):
        columns = [column for column in columns if column.title != "agreement"]
    axes = [Column(axis.name, left=True) for axis in sweep.axes]
    rows = [[*point.variant.values, *(column.show(point) for column in columns)] for point in points]
    return Table([*axes, *columns], rows)


def _millions(parameters: int | None) -> str:
    return UNDEFINED if parameters is None else f"{parameters / 1e6:,.1f}M"


def page(sweep: Sweep, run: Run, summary: Summary, points: Sequence[Point], images: Sequence[Image]) -> list[Section]:
    """`sweep.md`: what was swept, on what, the table, what failed, the figures."""
    axes = " and ".join(f"`{axis.name}`" for axis in sweep.axes)
    failures = [f"`{point.variant.label}` {point.failure}." for point in points if point.failure]
    warned = [text.replace("](#", "](report.md#") for text in cautions(run, summary)]  # its sections are there
    trainings = _trainings(sweep)
    setting = " · ".join(setting_text(summary))
    return [
        Section(
            f"{sweep.method} over {axes}",
            [
                f"{setting}. In one run, vanilla and all variants answered each question back to back:",
                f"    {' '.join(run.command.split())}",
                "Overall figures are unweighted means of the tasks. Every method by task: [report](report.md).",
                Section("Warnings", listed([*warned, *failures])),
                table(sweep, points, sampled=summary.sampling is not None),
                *([trainings] if trainings else []),
                *images,
            ],
        )
    ]


def _trainings(sweep: Sweep) -> str:
    """The settings that all trainings share."""
    settings = [variant.training for variant in sweep.variants if variant.training]
    if not settings:
        return ""
    common = {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}
    common_text = ", ".join(
        f"{key} {' and '.join(value) if isinstance(value, list) else value}"
        for key, value in common.items()
        if key not in ("out", "device", "threads") and value is not None
    )
    return (
        "The weights were trained for this sweep, one set per value; `agreement` is the share of the target's own "
        f"tokens on held-out conversations that the first draft hits. Common to all: {common_text}."
    )
