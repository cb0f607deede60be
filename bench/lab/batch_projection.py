"""Projections for batches: what a run's recorded steps would be worth at a batch size, at the timings of a device.

The steps are those of the questions one by one. A method that stops drafting by its costs drafts less in a batch, so of
such a method the projection is what it would be if it did not. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError
from bench.figures.axis import at_first
from bench.figures.breakdown import ratio
from bench.figures.engine_record import EngineRecord
from bench.figures.facts import PassCosts
from bench.figures.metrics import summarize
from bench.figures.records import Turn, read_records
from bench.figures.waves import add_batches, crossover, read_blocks

_WAVES = 4000  # that are drawn for each batch size
_SEED = 20240117


def project_batches(engine: EngineRecord, folders: Sequence[Path], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A row for every method of the runs in `folders`: the speedup of its throughput by batch size, and where it is 1.

    Raises:
        UserError: a run cannot be read, or none has steps and costs to project.

    """
    passes = {int(n): ms for n, ms in engine["passes"].items()}
    if len(passes) < 2:
        raise UserError("--batch needs the cost of forward passes over several widths: measure the engine again")
    rows = [row for folder in folders for row in _recorded(passes, folder, sizes)]
    if not rows:
        raise UserError(f"no method with recorded steps and costs is in {', '.join(map(str, folders))}")
    return rows


def _recorded(passes: dict[int, float], folder: Path, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    run, turns = read_records(folder)
    summary, first = summarize(run, turns), at_first(run, turns)
    add_batches(summary, run, read_blocks(folder, run))
    for label, info in run.methods.items():
        own = [turn for turn in first if turn.method == label and turn.error is None and turn.per_step_calls]
        if info.kind != "method" or info.costs is None or not own:
            continue
        curve = [(size, _speedup(_steps(own), info.costs, passes, size)) for size in sizes]
        measured = summary.crossovers.get(label)
        cells = {cell.batch: cell.speedup.value for cell in summary.batches.get(label, ())}
        yield {
            "method": label,
            "source": f"run {run.run_id}, {run.model.get('name')}",
            "projected": {str(size): speedup for size, speedup in curve},
            "measured": {str(size): cells.get(size) for size in sizes},
            "crossover": crossover(curve),
            "measured_crossover": measured.measured if measured else None,
        }


def _steps(turns: Sequence[Turn]) -> NDArray[np.float64]:
    """[steps, 4]: rows verified, depth, calls of the draft model, tokens added."""
    rows = []
    for turn in turns:
        scouts = turn.per_step_scouts or [0] * len(turn.per_step_drafted)
        columns = (turn.per_step_drafted, scouts, turn.per_step_depth, turn.per_step_calls, turn.per_step_emitted)
        rows += [(1 + drafted + others, *rest) for drafted, others, *rest in zip(*columns, strict=True)]
    return np.array(rows, dtype=np.float64)


def _speedup(steps: NDArray[np.float64], costs: PassCosts, passes: dict[int, float], size: int) -> float | None:
    """Throughput over vanilla's of waves of `size` steps, which are drawn from the recorded ones.

    A wave costs what its rows do. Everything else of a method (draft model, layers below an exit, bookkeeping) is
    assumed to cost as much in units of vanilla's step of the batch as it does alone.
    """
    drawn = steps[np.random.default_rng([_SEED, size]).integers(len(steps), size=(_WAVES, size))]
    rows, depth, calls = drawn[:, :, 0].sum(1), drawn[:, :, 1].max(1), drawn[:, :, 2].max(1)
    verify = costs["verify"]["1"] * _ms(passes, rows) / _ms(passes, np.array([float(size)]))
    wave = verify + costs["draft"] * calls + costs["shallow"] * (depth + 1) + costs["rest"]
    return ratio(fmean(steps[:, 3]), float(wave.mean()))


def _ms(passes: dict[int, float], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cost of passes over so many rows: linear between the measured widths, and on from the last two."""
    known = sorted(passes)
    ms = np.interp(rows, known, [passes[n] for n in known])
    before, last = known[-2:]
    slope = (passes[last] - passes[before]) / (last - before)
    return ms + np.maximum(0, rows - last) * slope
