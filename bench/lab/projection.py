"""Projections: what a published or recorded acceptance would be worth at the costs measured on a device. No torch.

A projection is not a measurement, and says so wherever it is shown: nothing of the published model ran here, only
passes of its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bench.errors import UserError
from bench.figures.metrics import OVERALL, TASKS
from bench.figures.published import Result, read_source
from bench.figures.records import Turn, read_records

METHODS = ("kangaroo", "medusa")  # whose draft models' costs are measured
_GAMMA, _EXIT = 6, 2  # where a source does not say: Kangaroo's own
_HEADS = 4  # of Medusa-1, in a chain


@dataclass(frozen=True)
class Shape:
    """Steps of one kind: how many tokens are drafted in a row, and calls of the draft model for it."""

    drafted: float
    depth: float
    calls: float


@dataclass(frozen=True)
class Costs:
    """What `bench-engine` measured, ms."""

    passes: dict[int, float]
    exits: dict[int, float]  # the layers below an exit over one position
    drafters: dict[str, float]

    @classmethod
    def of(cls, engine: dict[str, Any]) -> Costs:
        """From its record."""
        passes, exits = ({int(n): ms for n, ms in engine[part].items()} for part in ("passes", "drafts"))
        return cls(passes, exits, engine["drafters"])

    def step_ms(self, method: str, shape: Shape, exit_layer: int) -> float:
        """A step of `method`. Kangaroo's drafts have gone through the layers below the exit: the others verify."""
        verify = _between(self.passes, shape.drafted + 1)
        if method != "kangaroo":
            return self.drafters[method] * shape.calls + verify
        shallow = _between(self.exits, exit_layer)
        below = shallow / self.passes[1] * verify  # of a pass over as many positions, the share below the exit
        return shallow * (shape.depth + 1) + self.drafters[method] * shape.calls + verify - below


def _between(measured: dict[int, float], place: float) -> float:
    """Linear between what was measured; beyond it, undefined."""
    known = sorted(measured)
    if not known[0] <= place <= known[-1]:
        raise UserError(f"a cost at {place:g} is asked for, but measured were {known[0]} to {known[-1]}")
    return float(np.interp(place, known, [measured[n] for n in known]))


def project(engine: dict[str, Any], sources: Iterable[Path]) -> list[dict[str, Any]]:
    """A row for every method and source whose acceptance is known, at the costs in `engine` (`bench-engine`'s record).

    Raises:
        UserError: a source cannot be read, or has nothing that can be projected.

    """
    costs, rows = Costs.of(engine), []
    for path in sources:
        found = list(_recorded(costs, path) if path.is_dir() else _published(costs, path, engine["model"]))
        if not found:
            raise UserError(f"{path} has no acceptance of {' or '.join(METHODS)} that can be projected")
        rows += found
    return rows


def _published(costs: Costs, path: Path, shape: str) -> Iterator[dict[str, Any]]:
    """Of a paper only the compression rate is known: bounds over what may have been drafted for it."""
    source = read_source(path)
    results = [result for result in source.results if result.method in METHODS and result.compression_rate]
    of_shape = [result for result in results if result.model.lower().startswith(shape)]
    for result in of_shape or results:
        cr = _overall(result.compression_rate)
        layer = int(result.knobs.get("exit_layer", _EXIT))
        shapes = _possible(result, cr)
        speedups = [cr * costs.passes[1] / costs.step_ms(result.method, item, layer) for item in shapes]
        yield {
            "method": result.label,
            "source": f"{source.source}, {result.model}",
            "compression_rate": cr,
            "projected": [min(speedups), max(speedups)],
            "published": result.speedup.get(OVERALL),
            "assumed": _assumed(result),
        }


def _possible(result: Result, cr: float) -> list[Shape]:
    """The least and the most that may have been drafted in a step."""
    if result.method == "medusa":
        return [Shape(_HEADS, _HEADS, 1)]
    most = result.knobs.get("gamma", _GAMMA)
    return [Shape(drafts, drafts, drafts) for drafts in (cr - 1, most)]


def _assumed(result: Result) -> str:
    if result.method == "medusa":
        return f"a chain of {_HEADS} drafts"
    return f"from {result.knobs.get('gamma', _GAMMA):g} drafts in every step to none in vain"


def _overall(by_task: dict[str, float]) -> float:
    """The tasks' mean, or what the source gives as overall."""
    tasks = [by_task[task] for task in TASKS if task in by_task]
    return fmean(tasks) if len(tasks) == len(TASKS) else by_task.get(OVERALL, fmean(by_task.values()))


def _recorded(costs: Costs, folder: Path) -> Iterator[dict[str, Any]]:
    """Of a run every step is known."""
    run, turns = read_records(folder)
    for label, info in run.methods.items():
        method = label.partition(":")[0]
        own = [turn for turn in turns if turn.method == label and turn.error is None]
        if method not in METHODS or not own:
            continue
        layer = int(info.config.get("exit_layer") or _EXIT)
        steps = list(_steps(own))
        rate = fmean(emitted for emitted, _ in steps)
        mean_ms = fmean(costs.step_ms(method, shape, layer) for _, shape in steps)
        speedup = rate * costs.passes[1] / mean_ms
        yield {
            "method": label,
            "source": f"run {run.run_id}, {run.model['name']}",
            "compression_rate": rate,
            "projected": [speedup, speedup],
            "published": None,
            "assumed": "every step as it was recorded",
        }


def _steps(turns: Iterable[Turn]) -> Iterator[tuple[int, Shape]]:
    for turn in turns:
        columns = (turn.per_step_emitted, turn.per_step_drafted, turn.per_step_depth, turn.per_step_calls)
        for emitted, drafted, depth, calls in zip(*columns, strict=True):
            yield emitted, Shape(drafted, depth, calls)
