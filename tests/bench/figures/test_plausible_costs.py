"""Checks of contributed runs: what is faster than it can be, overall, in a task and by a worker."""

from __future__ import annotations

import dataclasses

import pytest

from bench.figures.machine import Processor, Worker
from bench.figures.plausible_costs import least_step_s
from bench.figures.records import Run, Turn
from tests.bench.figures.test_compare import some_turns
from tests.bench.figures.test_plausible import model, said
from tests.site_runs import MACHINE, batched, plausible

NOT_MEASURED = dataclasses.replace(MACHINE, read_gb_per_s=0.0)


def test_a_step_cannot_be_faster_than_its_weights_are_read():
    # 1e12 parameters of four bytes at 40 GB/s: 100 s a step.
    run = model(parameters=10**12)
    assert least_step_s(run, run.machine) == pytest.approx(100)
    found = said(run)
    assert [sentence.partition(":")[0] for sentence in found] == ["vanilla", "kangaroo"]
    assert found[0].endswith("but reading the weights takes 1e+05 ms at the machine's 40 GB/s")
    run, turns, blocks = batched()
    run.model = {**run.model, "parameters": 10**12}
    (of_batches,) = [sentence for sentence in said(run, turns, blocks) if sentence.startswith("kangaroo, batch")]
    assert of_batches.startswith("kangaroo, batch 1: a step takes")
    assert of_batches.endswith("(and 11 more like it)")


def test_the_bandwidth_has_an_allowance_and_caches_hold_what_they_can():
    # Steps take 1.5 s (plain) and 1.8 s, by the clock of the made-up turns.
    run = model(parameters=30 * 10**9)  # 3 s at 40 GB/s
    assert len(said(run)) == 2
    assert said(model(parameters=20 * 10**9)) == []  # 2 s: within the allowance
    run.machine = dataclasses.replace(
        MACHINE, processor=Processor("a CPU", cores=8, caches_bytes={"L2": 10**9, "L3": 20 * 10**9})
    )
    assert least_step_s(run, run.machine) == pytest.approx((120 - 8 - 40) / 40)
    assert said(run) == []


@pytest.mark.parametrize(("dtype", "seconds"), [("float32", 4), ("bfloat16", 2), ("q8", 1), ("q4", 0.5)])
def test_weights_have_their_number_formats_size(dtype, seconds):
    run = model(parameters=40 * 10**9)
    run.dtype = dtype
    assert least_step_s(run, run.machine) == pytest.approx(seconds)


def test_nothing_is_said_of_an_unknown_bandwidth():
    run = model(parameters=10**12)
    assert least_step_s(run, NOT_MEASURED) is None
    assert said(dataclasses.replace(run, machine=NOT_MEASURED)) == []
    assert least_step_s(dataclasses.replace(run, dtype="float8"), MACHINE) is None


def by_workers(*read_gb_per_s: float) -> tuple[Run, list[Turn]]:
    """The run by several workers, who had the questions by turns; their machines read at these speeds."""
    machines = [dataclasses.replace(MACHINE, read_gb_per_s=speed) for speed in read_gb_per_s]
    run = plausible(workers={str(n): Worker(n, "host", machine) for n, machine in enumerate(machines, 1)})
    turns = some_turns()
    for turn in turns:
        turn.worker = str(1 + turn.question_id % len(machines))
    return run, turns


def test_workers_answer_at_the_same_time():
    run, turns = by_workers(40.0, 40.0)
    run.wall_s = 150.0  # 258.8 s of answers, by two
    assert said(run, turns) == []
    run.wall_s = 130.0
    assert said(run, turns) == ["answers of worker 2 took 133.2 s, but the whole run 130.0 s"]


def test_a_step_is_held_against_the_machine_of_its_worker():
    run, turns = by_workers(40.0, 20.0)
    run.model = {**run.model, "parameters": 15 * 10**9}  # 1.5 s at 40 GB/s, 3 s at 20
    found = said(run, turns)
    assert [sentence.partition(":")[0] for sentence in found] == ["vanilla", "kangaroo"]
    assert found[0].endswith("but reading the weights takes 3e+03 ms at the machine's 20 GB/s")
    run.machine = NOT_MEASURED
    assert said(run, turns) == found


def test_a_speedup_is_no_more_than_the_tokens_of_a_step():
    turns = some_turns()
    for turn in turns:
        turn.decode_s *= 0.5 if turn.method == "kangaroo" else 1.0
    (sentence,) = said(turns=turns)
    assert sentence == (
        "kangaroo: it decodes 3.33 times as fast as plain decoding with 2.00 tokens a step, so that its steps would "
        "cost less than plain ones"
    )


def other_task(method: str, factor: float) -> list[Turn]:
    """The turns, in which one question has a task of its own and a method took another time for it."""
    turns = some_turns()
    for turn in turns:
        turn.task = "summary" if turn.question_id == 3 else turn.task
        turn.decode_s *= factor if turn.question_id == 3 and turn.method == method else 1.0
    return turns


def test_each_task_is_held_against_its_tokens():
    """Of 12 questions one hides among the others, but is a third of the tasks' mean."""
    (sentence,) = said(turns=other_task("kangaroo", 0.1))
    assert sentence.startswith("kangaroo, task summary: it decodes 16.")


def test_each_task_is_held_against_the_bandwidth():
    (sentence,) = said(model(parameters=10 * 10**9), other_task("vanilla", 0.1))  # 1 s a step
    assert sentence.startswith("vanilla, task summary: a step takes 1")
