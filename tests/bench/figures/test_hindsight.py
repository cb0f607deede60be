"""Bounds from recorded steps: the cheapest way through an answer, against all ways; steps without rejected drafts."""

from __future__ import annotations

import dataclasses
import random

import pytest

from bench.figures.breakdown import step_costs
from bench.figures.hindsight import cheapest
from bench.figures.metrics import summarize
from bench.figures.records import Turn
from bench.figures.summary import Drafts
from tests.bench.report.helpers import make_run

COSTS = {"shallow": 0.1, "draft": 0.05, "verify": {"1": 0.9, "2": 1.0, "4": 1.4, "8": 3.0}, "rest": 0.02}
BASE = {"shallow": 0.0, "draft": 0.0, "verify": {"1": 0.98}, "rest": 0.02}


def all_ways(place, length, edges):
    """The costs of every way from a place to the end."""
    if place == length:
        return [0.0]
    steps = [(place + 1, 1.0), *((end, cost) for start, end, cost in edges if start == place)]
    return [cost + rest for end, cost in steps for rest in all_ways(end, length, edges)]


def test_the_cheapest_way_is_the_least_of_all_ways():
    rng = random.Random(5)
    for _ in range(200):
        length = rng.randint(0, 7)
        edges = [
            (start, rng.randint(start + 1, length), rng.uniform(0.5, 3)) for start in range(length) for _ in range(2)
        ]
        assert cheapest(length, edges) == pytest.approx(min(all_ways(0, length, edges)))


def turn_of(method, question, steps, ids=range(9), task="qa"):
    """`steps`: (drafted, depth, calls, accepted, emitted) each."""
    turn = Turn(method, question, task, task, 0, 0, token_ids=list(ids), prefill_s=1.0, decode_s=8.0, finish="length")
    for name, column in zip(
        ("drafted", "depth", "calls", "accepted", "emitted"), zip(*steps, strict=True), strict=True
    ):
        setattr(turn, f"per_step_{name}", list(column))
    return turn


def a_summary(*turns, costs=COSTS):
    names = {turn.method: "method" for turn in turns if turn.method != "vanilla"}
    run = make_run(names)
    for name, info in run.methods.items():
        run.methods[name] = dataclasses.replace(info, costs=BASE if name == "vanilla" else costs)
    return summarize(run, turns)


VANILLA = [(0, 0, 0, 0, 1)] * 8
WIDE = [(7, 3, 3, 3, 4), (7, 3, 3, 0, 1), (3, 3, 3, 2, 3)]  # steps begin at 0, 4, 5
NARROW = [(1, 1, 1, 0, 1), (1, 1, 1, 1, 2), (1, 1, 1, 0, 1), (1, 1, 1, 1, 2), (0, 0, 0, 0, 1), (1, 1, 1, 0, 1)]


def test_steps_without_their_rejected_drafts():
    turn = turn_of("wide", 1, WIDE)
    assert step_costs([turn], COSTS).tolist() == pytest.approx(
        [0.15 + 0.4 + 3.0 + 0.02] * 2 + [0.15 + 0.4 + 1.4 + 0.02]
    )
    least = [0.15 + 0.4 + 1.4 + 0.02, 0.1 + 0.9 + 0.02, 0.1 + 0.3 + 1.2 + 0.02]
    assert step_costs([turn], COSTS, hindsight=True).tolist() == pytest.approx(least)
    found = a_summary(turn, turn_of("vanilla", 1, VANILLA)).methods["wide"].overall
    assert found.perfect_stopping == pytest.approx(8 / sum(least))
    assert found.drafts == Drafts(1.0, 17 / 3, 5 / 17)


def test_one_call_for_all_drafts_is_saved_only_where_none_was_accepted():
    heads = turn_of("heads", 1, [(3, 3, 1, 2, 3), (3, 3, 1, 0, 1), (3, 3, 1, 3, 4)])
    found = step_costs([heads], COSTS | {"shallow": 0.0}, hindsight=True)
    assert found.tolist() == pytest.approx([0.05 + 1.2 + 0.02, 0.9 + 0.02, 0.05 + 1.4 + 0.02])


def test_the_best_choice_at_every_step():
    """Worked out by hand: vanilla's first step leads to nothing of NARROW's but its second; from 5 on, WIDE's last."""
    turns = [turn_of("wide", 1, WIDE), turn_of("narrow", 1, NARROW), turn_of("vanilla", 1, VANILLA)]
    found = a_summary(*turns).hindsight
    one = 0.05 + 0.2 + 1.0 + 0.02  # a step of NARROW with its draft: 1.27
    last = 0.15 + 0.4 + 1.4 + 0.02  # WIDE's last: 1.97 for three tokens
    # 0 to 1 by vanilla (1), 1 to 3 and 4 to 6 by NARROW: the rest by vanilla. Or 5 to 8 by WIDE's last.
    ways = [1 + one + 1 + one + 2, 1 + one + 2 + last]
    assert found["qa"].choice == found["overall"].choice == pytest.approx(8 / min(ways))
    assert found["qa"].both > found["qa"].choice


def test_no_method_beats_the_best_choice():
    rng = random.Random(3)
    turns = []
    for question in range(12):
        task = ("qa", "rag")[question % 2]
        turns.append(turn_of("vanilla", question, VANILLA, task=task))
        for name in ("a", "b", "c"):
            steps, left = [], 8
            while left:
                drafted = rng.randint(0, min(5, left - 1))
                accepted = rng.randint(0, drafted)
                steps.append((drafted, drafted, drafted, accepted, accepted + 1))
                left -= accepted + 1
            turns.append(turn_of(name, question, steps, task=task))
    summary = a_summary(*turns)
    for task, bound in summary.hindsight.items():
        for name in ("a", "b", "c"):
            cell = summary.methods[name].tasks[task]
            assert 0 < cell.predicted.speedup <= cell.perfect_stopping
            assert cell.predicted.speedup <= bound.choice <= bound.both
            assert cell.perfect_stopping <= bound.both


@pytest.mark.parametrize(
    ("steps", "ids", "costs"),
    [
        (WIDE, range(9), None),  # costs are not known
        ([(20, 20, 1, 3, 4), *WIDE[1:]], range(9), COSTS),  # wider than was measured
        (WIDE, [*range(8), 99], COSTS),  # the answer is another
        (WIDE[:-1], range(9), COSTS),  # a step is missing
    ],
)
def test_what_cannot_be_weighed_takes_no_part(steps, ids, costs):
    found = a_summary(turn_of("wide", 1, steps, ids), turn_of("vanilla", 1, VANILLA), costs=costs)
    assert {bound.choice for bound in found.hindsight.values()} <= {1.0}


def test_a_step_without_tokens_leads_nowhere():
    """No method of ours takes one, but a record may hold it."""
    found = a_summary(turn_of("odd", 1, [(0, 0, 0, 0, 8), (0, 0, 0, 0, 0)]), turn_of("vanilla", 1, VANILLA))
    assert found.hindsight["qa"].choice == pytest.approx(8 / (0.1 + 0.9 + 0.02))
