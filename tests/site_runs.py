"""Small made-up runs of several commits, machines and batch sizes, for the tests of sites and of checks. No model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bench.figures.machine import Machine, Processor
from bench.figures.plausible import read_known
from bench.figures.records import (
    BATCHES_FILE,
    RUN_FILE,
    TURNS_FILE,
    Audit,
    BatchInfo,
    MethodInfo,
    Run,
    Turn,
    write_json,
    write_turns,
)
from bench.figures.waves import Block
from tests import html_runs
from tests.bench.figures.test_compare import COSTS, a_run, changed, some_turns

MACHINE = Machine("cpu", "a CPU", 2, Processor("a CPU", cores=2), memory_bytes=2**34, read_gb_per_s=40.0)
SIZES = (1, 2, 4)
OLD, NEW, BATCHED, ELSEWHERE = "run-old", "run-new", "run-batched", "run-elsewhere"
HOSTILE = "pld:<script>alert(1)</script>"


def plausible(run_id: str = NEW, **more: Any) -> Run:
    """A run that passes all checks, with the turns of `some_turns`."""
    known = read_known()
    (model, source), (questions, mini) = next(iter(known.models.items())), next(iter(known.questions.items()))
    values: dict[str, Any] = {
        "model": {"name": source.name, "sha256": model, "parameters": 1000},
        "dataset": {"name": mini.name, "sha256": questions, "questions": 12},
        "machine": MACHINE,
        "provenance": {"started": "2026-11-02T10:00:00+00:00", "commit": "2" * 40, "dirty": False},
        "wall_s": 1000.0,
    }
    return a_run(run_id, **(values | more))


def older() -> tuple[Run, list[Turn]]:
    """The same setting at an earlier commit, where Kangaroo was slower."""
    before = {"started": "2026-11-01T10:00:00+00:00", "commit": "1" * 40, "dirty": False}
    return plausible(OLD, provenance=before), changed(some_turns(1), "kangaroo", decode_s=1.25)


def elsewhere() -> tuple[Run, list[Turn]]:
    """On another machine: a method that is not lossless, a peer, a tie, and a name that would act in a page."""
    run, turns = html_runs.run(run_id=ELSEWHERE), html_runs.turns()
    knobs, notes = {"tokens": 3, "costs": "1/2"}, {"memory": "run", "caution": "it knows *everything*"}
    run.methods[HOSTILE] = MethodInfo("method", True, 0, knobs, notes, family="text")
    turns += [html_runs.copied(turn, HOSTILE) for turn in turns if turn.method == html_runs.KANGAROO]
    turns = [turn for turn in turns if turn.method != html_runs.PEER or turn.question_id < 90]  # nine of twelve
    return run, turns


def batched() -> tuple[Run, list[Turn], list[Block]]:
    """A run in batches, in which Kangaroo's gain falls with the batch size and is gone at four."""
    infos = {"vanilla": BatchInfo({}, None), "kangaroo": BatchInfo({}, COSTS)}  # type: ignore[arg-type]
    run = plausible(BATCHED, batches={str(size): infos for size in SIZES})
    run.provenance = {**run.provenance, "started": "2026-11-03T10:00:00+00:00"}
    run.config = {**run.config, "batch": list(SIZES)}
    run.config = {**run.config, "rounds": 2}
    blocks = [_block(method, size, number) for size in SIZES for number in range(4) for method in run.methods]
    return run, [dataclasses.replace(turn, round=n) for n in range(2) for turn in some_turns(2)], blocks


def _block(method: str, size: int, number: int) -> Block:
    """As many questions as there are slots, all of which end together; two blocks a round."""
    place, first = number // 2, size * (number % 2)
    turns = [turn for turn in some_turns(2) if turn.method == method][first : first + size]
    turns = [dataclasses.replace(turn, round=place, audit=Audit("identical")) for turn in turns]
    waves = len(turns[0].per_step_emitted)
    seconds = (0.5 + 0.3 * size + 0.01 * number) * (1.0 if method == "vanilla" else 0.8 + 0.4 * size)
    columns = [seconds] * waves, [0.1 * seconds] * waves, [0.8 * seconds] * waves
    return Block(method, size, place, number % 2, turns, [0] * size, [size] * waves, *columns)


def write_run(folder: Path, run: Run, turns: list[Turn], blocks: list[Block] | None = None) -> Path:
    """The records of a run in a folder of its own."""
    write_json(folder / RUN_FILE, run)
    write_turns(folder / TURNS_FILE, turns)
    if blocks:
        write_turns(folder / BATCHES_FILE, blocks)
    return folder


def write_all(folder: Path) -> Path:
    """All of them below `folder`."""
    write_run(folder / "old", *older())
    write_run(folder / "new", plausible(), some_turns(0))
    write_run(folder / "batched", *batched())
    write_run(folder / "elsewhere" / "deeper", *elsewhere())
    return folder
