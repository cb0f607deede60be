"""Base against new: what counts, what does not, and what may not be compared at all."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest

from bench.errors import UserError
from bench.figures import metrics
from bench.figures.compare import NOT_INTERLEAVED, compare
from bench.figures.machine import Machine, Processor
from bench.figures.records import Audit, MethodInfo, Run, Turn
from bench.figures.rules import Rules
from bench.figures.summary import Estimate
from bench.figures.verdicts import BETTER, SAME, UNKNOWN, WORSE, judge, worst
from bench.report import compare_page

COSTS = {"shallow": 0.05, "draft": 0.05, "verify": {"1": 0.9, "2": 1.0, "3": 1.1, "9": 1.7}, "rest": 0.05}
QUESTIONS = 12


def a_run(name: str = "r", **more) -> Run:
    methods = {
        "vanilla": MethodInfo("vanilla", True, 0, {}),
        "kangaroo": MethodInfo("method", True, 7, {}, costs=COSTS),
    }
    values = {
        "run_id": name,
        "command": "roobench",
        "model": {"name": "tiny", "sha256": "a" * 64},
        "dataset": {"name": "mini", "sha256": "b" * 64},
        "machine": Machine("cpu", "a CPU", 2, torch_instructions="AVX2"),
        "dtype": "float32",
        "config": {"max_new_tokens": 9, "temperature": 0.0, "top_p": 1.0, "top_k": 0},
        "methods": methods,
        "engine": {"weights": "packed"},
        "provenance": {"commit": "c" * 40, "packages": {"torch": "1"}, "interleaved": "x"},
    }
    return Run(**(values | more))


def some_turns(seed: int = 0) -> list[Turn]:
    """Vanilla's 8 steps of a token each, Kangaroo's 4 of two; times vary by question and a little by draw."""
    rng = np.random.default_rng(seed)
    turns = []
    for question in range(QUESTIONS):
        task = ("qa", "rag")[question % 2]
        slow = 1 + question / QUESTIONS  # the same in every run: questions differ
        for method, steps, drafted in (("vanilla", 8, 0), ("kangaroo", 4, 1)):
            seconds = slow * steps * (1 + 0.2 * drafted) * float(np.exp(rng.normal(0, 0.004)))
            audit = Audit("identical") if drafted else None
            turns.append(
                Turn(
                    method, question, task, task, 0, 0, prompt_tokens=5, token_ids=list(range(9)), prefill_s=slow,
                    decode_s=seconds, finish="length", per_step_drafted=[drafted] * steps,
                    per_step_accepted=[drafted] * steps, per_step_emitted=[1 + drafted] * steps,
                    per_step_depth=[drafted] * steps, per_step_calls=[drafted] * steps, audit=audit,
                )
            )  # fmt: skip
    return turns


def changed(turns: list[Turn], method: str, **times: float) -> list[Turn]:
    """Copies, with some figures of one method multiplied."""
    copies = copy.deepcopy(turns)
    for turn in copies:
        if turn.method == method:
            for name, factor in times.items():
                setattr(turn, name, getattr(turn, name) * factor)
    return copies


def compared(new_turns, base_turns=None, rules=None, base=None, new=None):
    return compare((base or a_run("base"), base_turns or some_turns(1)), (new or a_run("new"), new_turns), rules)


def metric(found, name, label="kangaroo", task="overall"):
    return found.methods[label].tasks[task].metrics[name]


def test_the_same_code_is_the_same():
    found = compared(some_turns(2))
    assert found.verdict == SAME
    assert {entry.verdict for entry in found.methods.values()} == {SAME}
    assert compare_page.findings(found) == []
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_slower_method_is_worse_by_its_time_and_named_with_task_and_metric():
    found = compared(changed(some_turns(2), "kangaroo", decode_s=1.05))
    assert found.methods["kangaroo"].verdict == WORSE
    assert found.methods["vanilla"].verdict == SAME
    change = metric(found, "time per token, ms").change
    assert change.value == pytest.approx(1.05, abs=0.01)
    assert 1.02 < change.low < change.value < change.high
    assert any("kangaroo" in text and "time per token" in text for text in compare_page.findings(found))


def test_a_faster_vanilla_is_no_regression_and_a_slower_one_is():
    """Both change every speedup, in the other direction."""
    faster = compared(changed(some_turns(2), "vanilla", decode_s=0.9))
    assert metric(faster, "decode speedup").verdict == WORSE
    assert metric(faster, "decode speedup").counts is False
    assert faster.methods["kangaroo"].verdict == SAME
    assert faster.methods["vanilla"].verdict == BETTER
    slower = compared(changed(some_turns(2), "vanilla", decode_s=1.1))
    assert (slower.verdict, slower.methods["vanilla"].verdict) == (WORSE, WORSE)
    assert slower.methods["kangaroo"].verdict == SAME


def test_a_doubled_prefill_is_worse():
    found = compared(changed(some_turns(2), "kangaroo", prefill_s=2))
    assert metric(found, "prefill per prompt token, ms").verdict == WORSE
    assert found.methods["kangaroo"].verdict == WORSE


def test_runs_made_apart_are_compared_by_speedup_alone():
    apart = a_run("base", provenance={"commit": "c", "packages": {"torch": "1"}})
    found = compared(changed(some_turns(2), "vanilla", decode_s=1.2, prefill_s=1.2), base=apart)
    assert found.interleaved is False
    assert "time per token, ms" not in found.methods["kangaroo"].tasks["overall"].metrics
    assert metric(found, "decode speedup").counts is True
    assert metric(found, "decode speedup").verdict == BETTER
    assert NOT_INTERLEAVED in compare_page.markdown(found)


def less_accepted(turns):
    """One step of one answer of twelve that accepted nothing more: CR 2 becomes 1.96."""
    copies = copy.deepcopy(turns)
    turn = next(turn for turn in copies if turn.method == "kangaroo")
    turn.per_step_accepted = [0, 0, *turn.per_step_accepted[1:]]
    turn.per_step_emitted = [1, 1, *turn.per_step_emitted[1:]]
    for name in ("per_step_drafted", "per_step_depth", "per_step_calls"):
        setattr(turn, name, [*getattr(turn, name), 1])
    assert metrics.compression_rate([t for t in turns if t.method == "kangaroo"]) == 2
    return copies


def test_one_token_less_accepted_is_worse_on_one_machine_and_within_the_tolerance_of_another():
    found = compared(less_accepted(some_turns(2)))
    assert found.same_machine is True
    assert metric(found, "CR").verdict == WORSE
    assert found.methods["kangaroo"].verdict == WORSE
    assert any("CR" in text or "speedup at base's costs" in text for text in compare_page.findings(found))
    elsewhere = a_run("new", machine=Machine("cpu", "a CPU", 4, torch_instructions="AVX2"))
    assert (
        metric(compared(less_accepted(some_turns(2)), new=elsewhere, rules=Rules(tolerance=0.03)), "CR").verdict == SAME
    )


def test_another_processor_of_the_same_name_is_another_machine():
    machines = [Machine("cpu", "a CPU", 2, Processor("a CPU", model=model)) for model in ("1", "2")]
    runs = {side: a_run(side, machine=machine) for side, machine in zip(("base", "new"), machines, strict=True)}
    with pytest.raises(UserError, match=rf"device: .*{machines[0].digest}.*{machines[1].digest}"):
        compared(less_accepted(some_turns(2)), **runs)
    found = compared(less_accepted(some_turns(2)), **runs, rules=Rules(tolerance=0.03, allow=("device",)))
    assert found.same_machine is False
    assert metric(found, "CR").verdict == SAME


def test_more_drafts_that_bring_nothing_are_worse_by_what_they_cost():
    copies = copy.deepcopy(some_turns(2))
    for turn in copies:
        if turn.method == "kangaroo":  # a lost early exit: six drafts a step, no more accepted
            turn.per_step_drafted = turn.per_step_depth = turn.per_step_calls = [6] * 4
    found = compared(copies)
    assert metric(found, "CR").verdict == SAME
    assert metric(found, "drafted per step").verdict == WORSE
    assert metric(found, "speedup at base's costs").verdict == WORSE
    assert found.methods["kangaroo"].verdict == WORSE


def test_other_measured_costs_give_a_tolerance_and_beyond_it_nothing_is_known():
    new = a_run("new")
    new.methods["kangaroo"] = dataclasses.replace(new.methods["kangaroo"], measured={"costs": "other"})
    found = compared(less_accepted(some_turns(2)), new=new, rules=Rules(tolerance=0.03))
    assert metric(found, "CR").verdict == SAME
    assert any("kangaroo measured other forward-pass costs in new" in text for text in found.warnings)
    beyond = compared(less_accepted(some_turns(2)), new=new, rules=Rules(tolerance=0.001))
    assert metric(beyond, "CR").verdict == UNKNOWN
    assert beyond.methods["kangaroo"].verdict == UNKNOWN


def test_drafts_beyond_the_known_costs_are_worse_by_their_number():
    """A step that base's costs do not cover cannot be priced: the drafts themselves count then."""
    copies = copy.deepcopy(some_turns(2))
    for turn in copies:
        if turn.method == "kangaroo":
            turn.per_step_drafted = turn.per_step_depth = turn.per_step_calls = [60] * 4
    found = compared(copies)
    assert metric(found, "speedup at base's costs").verdict == UNKNOWN
    assert metric(found, "drafted per step").verdict == WORSE
    assert metric(found, "drafted per step").counts
    assert found.methods["kangaroo"].verdict == WORSE


def test_answers_that_nobody_checks_any_more_are_worse():
    copies = [dataclasses.replace(turn, audit=None) for turn in some_turns(2)]
    found = compared(copies)
    assert metric(found, "answers not audited any more").new == QUESTIONS
    assert found.methods["kangaroo"].verdict == WORSE


def test_other_answers_of_vanilla_are_worse_unless_allowed():
    """Audits are against vanilla, and would not see an engine that is wrong for everybody."""
    copies = [dataclasses.replace(turn, token_ids=[7, *turn.token_ids[1:]]) for turn in some_turns(2)]
    found = compared(copies)
    assert metric(found, "answers unlike base's", "vanilla").verdict == WORSE
    assert found.methods["vanilla"].verdict == WORSE
    assert any("vanilla answers 12 questions differently" in text for text in found.warnings)
    allowed = compared(copies, rules=Rules(allow=("answers",)))
    assert allowed.methods["vanilla"].verdict == SAME


def test_an_answer_that_newly_fails_is_worse_though_another_one_got_right():
    base, new = some_turns(1), some_turns(2)
    base[1] = dataclasses.replace(base[1], error="boom")
    new[3] = dataclasses.replace(new[3], error="boom")
    failed = metric(compared(new, base), "failed answers")
    assert (failed.base, failed.new, failed.verdict) == (1, 1, WORSE)


def test_an_answer_that_is_not_vanillas_any_more_is_worse():
    copies = copy.deepcopy(some_turns(2))
    copies[1].audit = Audit("different", 3, 1, 2, 5.0, 0.1)
    found = compared(copies)
    assert metric(found, "answers not vanilla's").verdict == WORSE
    assert found.verdict == WORSE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model", {"model": {"name": "other", "sha256": "c" * 64}}),
        ("questions", {"dataset": {"name": "mini", "sha256": "d" * 64}}),
        ("dtype", {"dtype": "bfloat16"}),
        ("device", {"machine": Machine("cuda", "a GPU")}),
        ("limit of new tokens", {"config": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "top_k": 0}}),
    ],
)
def test_runs_of_different_things_are_refused_by_name_unless_that_is_meant(name, change):
    with pytest.raises(UserError, match=f"different things .*{name}.*--allow '{name}'"):
        compared(some_turns(2), new=a_run("new", **change))
    found = compared(some_turns(2), new=a_run("new", **change), rules=Rules(allow=(name,)))
    assert any(name in warning for warning in found.warnings)


def test_runs_without_a_common_question_are_refused():
    others = [dataclasses.replace(turn, question_id=turn.question_id + 100) for turn in some_turns(2)]
    with pytest.raises(UserError, match="no method and question in common"):
        compared(others)


def test_a_question_that_failed_on_one_side_is_left_out_of_both():
    """By that method; and a failure that base did not have is worse."""
    copies = copy.deepcopy(some_turns(2))
    assert copies[1].method == "kangaroo"
    copies[1] = dataclasses.replace(copies[1], error="boom", decode_s=1e6)
    found = compared(copies)
    assert found.methods["vanilla"].verdict == SAME
    assert metric(found, "time per token, ms").verdict == SAME  # without that question
    failed = metric(found, "failed answers")
    assert (failed.base, failed.new, failed.verdict, failed.counts) == (0, 1, WORSE, True)
    assert any("failed answers 0 → 1" in text for text in compare_page.findings(found))


def test_a_method_that_fails_everywhere_is_worse():
    copies = [dataclasses.replace(turn, error="boom") if turn.method == "kangaroo" else turn for turn in some_turns(2)]
    found = compared(copies)
    assert found.methods["kangaroo"].verdict == WORSE
    assert found.methods["vanilla"].verdict == SAME
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_method_of_one_side_only_is_told():
    new = a_run("new")
    new.methods["medusa"] = MethodInfo("method", True, 0, {})
    assert "medusa ran in new only" in " ".join(compared(some_turns(2), new=new).warnings)
    without = [turn for turn in some_turns(2) if turn.method == "vanilla"]
    found = compared(without, new=a_run("new", methods={"vanilla": MethodInfo("vanilla", True, 0, {})}))
    assert found.methods["kangaroo"].verdict == UNKNOWN
    assert found.verdict == UNKNOWN


def test_less_than_the_whole_is_told():
    new = a_run("new")
    new.complete = False
    warnings = " ".join(compared([turn for turn in some_turns(2) if turn.question_id > 2], new=new).warnings)
    assert "the run of new was interrupted" in warnings
    assert "9 of the 12 questions of base are compared" in warnings


def test_a_peers_speed_decides_nothing():
    apart = {"provenance": {"commit": "c", "packages": {"torch": "1"}}}
    methods = {"vanilla": MethodInfo("vanilla", True, 0, {}), "kangaroo": MethodInfo("peer", True, 0, {})}
    found = compared(
        changed(some_turns(2), "kangaroo", decode_s=2),
        base=a_run("b", methods=methods, **apart),
        new=a_run("n", methods=methods, **apart),
    )
    assert metric(found, "decode speedup").verdict == WORSE
    assert metric(found, "decode speedup").counts is False
    assert found.verdict == SAME


@pytest.mark.parametrize(
    ("bounds", "more_is_worse", "verdict"),
    [
        ((1.05, 1.03, 1.07), True, WORSE),
        ((1.05, 1.03, 1.07), False, BETTER),
        ((0.95, 0.93, 0.97), True, BETTER),
        ((1.01, 1.005, 1.015), True, SAME),  # significant, but too small to matter
        ((0.981, 0.970, 0.990), True, SAME),  # no slower, whatever else
        ((1.05, 0.99, 1.11), True, UNKNOWN),
        ((1.0, 0.97, 1.03), True, UNKNOWN),
        ((1.05, None, None), True, UNKNOWN),
    ],
)
def test_a_verdict_needs_significance_and_size(bounds, more_is_worse, verdict):
    assert judge(Estimate(*bounds), 0.02, more_is_worse=more_is_worse) == verdict


def test_the_worst_verdict_is_told():
    assert worst([SAME, BETTER, UNKNOWN, WORSE]) == WORSE
    assert worst([SAME, BETTER, UNKNOWN]) == UNKNOWN
    assert worst([SAME, BETTER]) == BETTER
    assert worst([]) == UNKNOWN
