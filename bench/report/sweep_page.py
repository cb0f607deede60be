"""A sweep for a reader: its record, its points, `sweep.csv` and `sweep.md`. Needs no torch and no model."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.errors import UserError
from bench.figures import metrics
from bench.figures.metrics import OVERALL, Cell, failed_throughout, summarize
from bench.figures.records import SWEEP_FILE, Run, Turn, atomic_writer, read_records
from bench.report.cautions import cautions
from bench.report.formats import lossless_text, markdown_table, number, times

SCHEMA = 1
SWEEP_CSV = "sweep.csv"
SWEEP_PAGE = "sweep.md"
_FIGURES = ("speedup_total", "compression_rate", "draft_time_share")  # beside the decode speedup


@dataclass(frozen=True)
class Axis:
    """What is swept: a knob, or a training's setting as `train.name`; values as spelled."""

    name: str
    values: tuple[str, ...]


@dataclass
class Variant:
    """One point of the product of the axes."""

    label: str  # as the run calls it
    values: tuple[str, ...]  # one an axis
    training: dict[str, Any] | None = None  # settings of its weights, where these were trained for the sweep
    agreement: float | None = None  # of its weights with the target's choices, on held-out conversations


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
        found = self.overall[key] if self.overall else None
        return found["value"] if isinstance(found, dict) else found

    def interval(self, key: str) -> tuple[float, float] | None:
        """The 95% interval of an estimate, where there is one."""
        found = self.overall[key] if self.overall else None
        if not isinstance(found, dict) or found.get("low") is None or found.get("high") is None:
            return None
        return found["low"], found["high"]


def read_sweep(folder: Path) -> Sweep:
    """The `sweep.json` of a sweep's folder.

    Raises:
        UserError: missing, malformed, or written by another schema version.

    """
    path = folder / SWEEP_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {value['schema']!r}; this version reads {SCHEMA}: sweep again")
        axes = [Axis(axis["name"], tuple(axis["values"])) for axis in value["axes"]]
        variants = [Variant(**(v | {"values": tuple(v["values"])})) for v in value["variants"]]
        return Sweep(value["method"], axes, variants, dict(value["failed"]))
    except FileNotFoundError:
        raise UserError(f"{folder} is no sweep: it has no {SWEEP_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a sweep's record: {error}") from error


def measured(sweep: Sweep, run: Run, turns: Sequence[Turn]) -> tuple[dict[str, Any], list[Point]]:
    """The run's summary, and all points in the sweep's order."""
    summary = summarize(run, turns)
    if metrics.vanilla_name(run) in failed_throughout(run, turns):
        raise UserError(f"vanilla failed in every question of {run.run_id}: there is nothing to compare with")
    dead = summary["failed_methods"]
    failed = sweep.failed | {label: f"failed in every question, first with {error}" for label, error in dead.items()}
    points = []
    for variant in sweep.variants:
        entry = summary["methods"].get(variant.label)
        if variant.label in failed or entry is None:
            points.append(Point(variant, None, None, failed.get(variant.label, "was not run")))
        else:
            points.append(Point(variant, entry["tasks"][OVERALL], entry["extra_parameters"]))
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
    with atomic_writer(folder / SWEEP_PAGE) as file:
        file.write(page(sweep, run, summary, points, _images(folder, figures)))
    return [folder / SWEEP_PAGE, folder / SWEEP_CSV, *figures]


def csv_rows(sweep: Sweep, points: Sequence[Point]) -> list[list[Any]]:
    """A heading and one row a variant, in full precision; an empty cell: undefined."""
    heading = [axis.name for axis in sweep.axes]
    heading += ["label", "speedup_decode", "speedup_decode_low", "speedup_decode_high", *_FIGURES]
    heading += ["extra_parameters", "agreement", "identical", "audited", "failure"]
    rows: list[list[Any]] = [heading]
    for point in points:
        low, high = point.interval("speedup_decode") or (None, None)
        counts = (point.overall or {}).get("lossless") or {}
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
    return [["" if cell is None else cell for cell in row] for row in rows]


def table(sweep: Sweep, points: Sequence[Point], *, sampled: bool = False) -> str:
    """One row a variant, the fastest in bold, as Markdown."""
    agreement = any(point.variant.agreement is not None for point in points)
    speeds = [value for point in points if (value := point.value("speedup_decode")) is not None]
    heading = [axis.name for axis in sweep.axes]
    heading += ["decode", "95%", "end-to-end", "CR", "time drafting", "extra parameters"]
    heading += ["agreement"] * agreement + ["output"]
    rows = []
    for point in points:
        speed, interval = point.value("speedup_decode"), point.interval("speedup_decode")
        shown = times(speed)
        row = [
            *point.variant.values,
            # Without intervals the fastest of many may well be the luckiest.
            f"**{shown}**" if interval and speed == max(speeds) and len(points) > 1 else shown,
            f"{number(interval[0])}-{number(interval[1])}" if interval else "-",
            times(point.value("speedup_total")),
            number(point.value("compression_rate")),
            number(point.value("draft_time_share")),
            "-" if point.extra_parameters is None else f"{point.extra_parameters / 1e6:,.1f}M",
            *([number(point.variant.agreement, 3)] if agreement else []),
            "**failed**" if point.overall is None else lossless_text(point.overall["lossless"], sampled=sampled),
        ]
        rows.append(row)
    left = [True] * len(sweep.axes) + [False] * (len(heading) - len(sweep.axes) - 1) + [True]
    return markdown_table(heading, rows, left)


def page(sweep: Sweep, run: Run, summary: dict[str, Any], points: Sequence[Point], images: Sequence[str]) -> str:
    """`sweep.md`: what was swept, on what, the table, what failed, the figures."""
    from bench.report.canvas import provenance

    axes = " and ".join(f"`{axis.name}`" for axis in sweep.axes)
    warnings = [f"- `{point.variant.label}` {point.failure}." for point in points if point.failure]
    warnings = [f"- {text}" for text in cautions(run, summary)] + warnings
    parts = [
        f"# {sweep.method} over {axes}",
        f"{provenance(summary)}. All variants and vanilla answered every question of one run back to back, by",
        f"    {run.command}",
        "Overall figures: unweighted means of the tasks. Every method by task: [report](report.md).",
        "## Warnings\n\n" + "\n".join(warnings) if warnings else "",
        table(sweep, points, sampled=summary["sampling"] is not None),
        _trainings(sweep),
        *images,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _trainings(sweep: Sweep) -> str:
    """What all trainings had in common."""
    settings = [variant.training for variant in sweep.variants if variant.training]
    if not settings:
        return ""
    common = {key: value for key, value in settings[0].items() if all(other[key] == value for other in settings)}
    listed = ", ".join(
        f"{key} {' and '.join(value) if isinstance(value, list) else value}"
        for key, value in common.items()
        if key not in ("out", "device", "threads") and value is not None
    )
    return (
        "Weights were trained for this sweep, one set a value; `agreement` is the share of the target's own choices on "
        f"held-out conversations that their first draft hits. Common to all: {listed}."
    )


def _images(folder: Path, figures: Sequence[Path]) -> list[str]:
    links = [quote(Path(os.path.relpath(path, folder)).as_posix()) for path in figures if path.suffix == ".png"]
    return [f"![{Path(link).stem.replace('_', ' ')}]({link})" for link in links]
