"""Projections: what a published or recorded acceptance would be worth at the timings of a device. No torch.

A projection is not a measurement, and is labelled so wherever it is shown: the published model did not run here, only
forward passes of its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bench.drafting.published import Published
from bench.errors import UserError
from bench.figures.axis import at_first
from bench.figures.engine_record import EngineRecord
from bench.figures.metrics import OVERALL
from bench.figures.published import read_source
from bench.figures.records import Turn, read_records
from bench.figures.summary import base_of
from bench.questions import TASKS


@dataclass(frozen=True)
class Shape:
    """Steps of one kind: tokens drafted, the longest path of drafts, and draft-model calls."""

    drafted: float
    depth: float
    calls: float


@dataclass(frozen=True)
class Timings:
    """What `bench-engine` measured, ms."""

    passes: dict[int, float]
    exits: dict[int, float]  # the layers below an exit over one position
    drafters: dict[str, float]  # a call of a method's published draft model
    forms: dict[str, Published]  # of these methods

    @classmethod
    def of(cls, engine: EngineRecord) -> Timings:
        """From its record."""
        passes, exits = ({int(n): ms for n, ms in part.items()} for part in (engine["passes"], engine["drafts"]))
        return cls(
            passes, exits, engine["drafters"], {name: Published(**form) for name, form in engine["published"].items()}
        )

    def step_ms(self, method: str, shape: Shape, exit_layer: int) -> float:
        """A step of `method`. Drafts that went through the layers below an exit are verified by the other layers."""
        verify = _between(self.passes, shape.drafted + 1)
        drafting = self.drafters[method] * shape.calls
        if not exit_layer:
            return drafting + verify
        shallow = _between(self.exits, exit_layer)
        below = shallow / self.passes[1] * verify  # the share below the exit, of a forward pass over as many tokens
        return shallow * (shape.depth + 1) + drafting + verify - below


def _between(measured: dict[int, float], place: float) -> float:
    """Linear interpolation between measurements; refused beyond them."""
    known = sorted(measured)
    if not known[0] <= place <= known[-1]:
        raise UserError(
            f"a projection needs the cost at {place:g}, but {known[0]} to {known[-1]} were measured: leave this source "
            "out of --acceptance"
        )
    return float(np.interp(place, known, [measured[n] for n in known]))


def project(engine: EngineRecord, sources: Iterable[Path]) -> list[dict[str, Any]]:
    """A row for every method and source with a known acceptance, at the timings in `engine` (`bench-engine`'s record).

    Raises:
        UserError: a source cannot be read, or none has anything that can be projected.

    """
    timings, paths = Timings.of(engine), list(sources)
    rows = [
        row
        for path in paths
        for row in (_recorded(timings, path) if path.is_dir() else _published(timings, path, engine["model"]))
    ]
    if not rows:
        raise UserError(
            f"no acceptance of {' or '.join(timings.forms)} that can be projected is in {', '.join(map(str, paths))}"
        )
    return rows


def _published(timings: Timings, path: Path, shape: str) -> Iterator[dict[str, Any]]:
    """From a paper, which gives only the compression rate: bounds over what may have been drafted for it."""
    source = read_source(path)
    results = [result for result in source.results if result.method in timings.forms and result.compression_rate]
    of_shape = [result for result in results if result.model.lower().startswith(shape)]
    for result in of_shape or results:
        form, cr = timings.forms[result.method], _overall(result.compression_rate)
        layer = int(result.knobs.get("exit_layer", form.exit_layer))
        most = int(result.knobs.get("gamma", form.drafts))
        shapes, assumed = _possible(form, most, cr)
        speedups = [cr * timings.passes[1] / timings.step_ms(result.method, item, layer) for item in shapes]
        yield {
            "method": result.label,
            "source": f"{source.source}, {result.model}",
            "compression_rate": cr,
            "projected": [min(speedups), max(speedups)],
            "published": result.speedup.get(OVERALL),
            "assumed": assumed,
        }


def _possible(form: Published, most: int, cr: float) -> tuple[list[Shape], str]:
    """The fewest and the most drafts that a step may have had, and a description."""
    if not form.call_per_draft:
        return [Shape(most, most, 1)], f"a chain of {most} drafts"
    bounds = [Shape(drafts, drafts, drafts) for drafts in (cr - 1, most)]
    return bounds, f"from {most} drafts in every step to none in vain"


def _overall(by_task: dict[str, float]) -> float:
    """The tasks' mean, or what the source gives as overall."""
    tasks = [by_task[task] for task in TASKS if task in by_task]
    return fmean(tasks) if len(tasks) == len(TASKS) else by_task.get(OVERALL, fmean(by_task.values()))


def _recorded(timings: Timings, folder: Path) -> Iterator[dict[str, Any]]:
    """From a run, which records every step."""
    run, turns = read_records(folder)
    turns = at_first(run, turns)
    for label, info in run.methods.items():
        method = base_of(label)
        own = [turn for turn in turns if turn.method == label and turn.error is None and turn.per_step_emitted]
        if method not in timings.forms or not own:
            continue
        recorded = info.ran.get("exit_layer")
        layer = recorded if isinstance(recorded, int) and recorded > 0 else timings.forms[method].exit_layer
        steps = list(_steps(own))
        rate = fmean(emitted for emitted, _ in steps)
        mean_ms = fmean(timings.step_ms(method, shape, layer) for _, shape in steps)
        speedup = rate * timings.passes[1] / mean_ms
        yield {
            "method": label,
            "source": f"run {run.run_id}, {run.model.get('name')}",
            "compression_rate": rate,
            "projected": [speedup, speedup],
            "published": None,
            "assumed": "every step as it was recorded",
        }


def _steps(turns: Iterable[Turn]) -> Iterator[tuple[int, Shape]]:
    for turn in turns:
        if not turn.per_step_depth or not turn.per_step_calls:
            raise UserError(
                f"depth and calls of the drafts of {turn.method} are not recorded: record a new run to project"
            )
        columns = (turn.per_step_emitted, turn.per_step_drafted, turn.per_step_depth, turn.per_step_calls)
        for emitted, drafted, depth, calls in zip(*columns, strict=True):
            yield emitted, Shape(drafted, depth, calls)
