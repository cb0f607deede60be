"""The gate's course with scripted sides: what is asked in which order, when it stops, what it concludes and leaves."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bench.config import RunConfig
from bench.errors import UserError
from bench.figures.compare import DECODE, PREFILL, compare
from bench.figures.machine import Machine
from bench.figures.records import Audit, MethodInfo, Run, Turn, read_run, read_turns
from bench.figures.rules import GateSettings
from bench.figures.verdicts import BETTER, SAME, UNKNOWN, WORSE
from bench.gate import gate as gate_module
from bench.gate.gate import PAIRS_FILE, Gate
from bench.report import compare_page

QUESTIONS = [{"id": i, "task": ("qa", "rag")[i % 2], "turns": 1 + (i == 0)} for i in range(8)]
COSTS = {"shallow": 0.05, "draft": 0.05, "verify": {"1": 0.9, "2": 1.0, "3": 1.1}, "rest": 0.05}


class Clock:
    """Goes on by a second with every answer of a side."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


class Scripted:
    """A side that answers at once, with times that are drawn; `change` alters a turn."""

    def __init__(self, name, change=None, seed=0, questions=QUESTIONS, clock=None):
        self.clock = clock or Clock()
        self.name, self.questions, self.change = name, questions, change or (lambda turn: None)
        self.rng = np.random.default_rng(seed)
        self.asked, self.open = [], []
        self.pauses, self.steps = 0, []
        methods = {
            "vanilla": MethodInfo("vanilla", True, 0, {}),
            "kangaroo": MethodInfo("method", True, 7, {}, costs=COSTS),
        }
        self.run = Run(
            run_id="r", command="roobench", model={"name": "tiny", "sha256": "a" * 64},
            dataset={"name": "mini", "sha256": "b" * 64}, machine=Machine("cpu", "a CPU"), dtype="float32",
            config={"max_new_tokens": 9}, methods=methods, engine={}, provenance={"commit": name * 10},
        )  # fmt: skip

    def begin(self, label, where):
        drafted = int(label == "kangaroo")
        steps = 8 - 4 * drafted
        noise_s = np.exp(self.rng.normal(0, 0.02, 2))
        turn = Turn(
            label, where["question"], ("qa", "rag")[where["question"] % 2], "c", where["turn"], where["round"],
            prompt_tokens=5, token_ids=list(range(9)), prefill_s=float(noise_s[0]), decode_s=float(steps * noise_s[1]),
            finish="length", per_step_drafted=[drafted] * steps, per_step_accepted=[drafted] * steps,
            per_step_emitted=[1 + drafted] * steps, per_step_depth=[drafted] * steps, per_step_calls=[drafted] * steps,
            audit=Audit("identical") if drafted else None,
        )  # fmt: skip
        self.clock.now_s += 1
        self.change(turn)
        self.asked.append((label, where["question"], where["turn"], where["round"]))
        self.open.append(turn)
        self.left = self.pauses
        return self.left > 0

    def go_on(self):
        self.left -= 1
        self.steps.append((self.name, self.asked[-1]))
        return self.left > 0

    def audited(self, where):
        turns, self.open = self.open, []
        return turns


def times(method, **factors):
    def change(turn):
        if turn.method == method:
            for name, factor in factors.items():
                setattr(turn, name, getattr(turn, name) * factor)

    return change


@pytest.fixture
def gated(tmp_path):
    """The comparison that a gate comes to whose new side is changed so. An answer takes a second of the budget."""

    def run(change=None, budget_min=10.0, **more):
        clock = Clock()
        base, new = Scripted("base", seed=1, clock=clock), Scripted("new", change, seed=2, clock=clock, **more)
        gate = Gate(base, new, GateSettings(budget_min=budget_min), tmp_path, clock)
        gate.run()
        return gate.result(), gate

    return run


def metric(found, name, label="kangaroo"):
    return found.methods[label].tasks["overall"].metrics[name]


def test_the_same_code_is_the_same(gated):
    found, _ = gated()
    assert found.verdict == SAME
    assert found.interleaved
    assert "called worse in at most 2%" in compare_page.markdown(found)


@pytest.mark.parametrize("label", ["kangaroo", "vanilla"])
def test_a_slower_method_is_worse_and_the_other_is_not(gated, label):
    found, _ = gated(times(label, decode_s=1.1))
    other = {"kangaroo": "vanilla", "vanilla": "kangaroo"}[label]
    assert found.methods[label].verdict == WORSE
    assert found.methods[other].verdict == SAME
    change = metric(found, DECODE, label).change
    assert 1 < change.low < change.value == pytest.approx(1.1, abs=0.02)
    assert any(f"{label}, " in text and DECODE in text for text in compare_page.findings(found))


def test_a_doubled_prefill_is_worse(gated):
    found, _ = gated(times("kangaroo", prefill_s=2))
    assert metric(found, PREFILL).verdict == WORSE
    assert metric(found, DECODE).verdict == SAME
    assert found.methods["kangaroo"].verdict == WORSE


def test_a_faster_method_is_better(gated):
    found, _ = gated(times("kangaroo", decode_s=0.8))
    assert metric(found, DECODE).verdict == BETTER


def test_fewer_accepted_tokens_are_worse_at_the_same_speed(gated):
    def less(turn):
        if turn.method == "kangaroo" and turn.question_id == 3:
            turn.per_step_accepted = [0, *turn.per_step_accepted[1:]]
            turn.per_step_emitted = [1, *turn.per_step_emitted[1:]]
            turn.token_ids = turn.token_ids[1:]

    found, _ = gated(less)
    assert metric(found, "speedup at base's costs").verdict == WORSE
    assert found.verdict == WORSE


def test_answers_that_fail_or_are_not_vanillas_are_worse(gated):
    def broken(turn):
        if turn.method == "kangaroo":
            turn.audit = Audit("different", 3, 1, 2, 5.0, 0.1)
            if turn.question_id == 5:
                turn.error = "boom"

    found, _ = gated(broken)
    assert metric(found, "answers not vanilla's").verdict == WORSE
    assert metric(found, "failed answers").verdict == WORSE


def test_both_sides_are_asked_the_same_and_neither_is_favoured(tmp_path):
    order, clock = [], Clock()
    sides = [Scripted("base", seed=1, clock=clock), Scripted("new", seed=2, clock=clock)]
    for side in sides:
        side.change = lambda turn, name=side.name: order.append((name, turn.method, turn.question_id, turn.round))
    gate = Gate(*sides, GateSettings(), tmp_path, clock)
    gate.run()
    assert sides[0].asked == sides[1].asked
    assert ("vanilla", 0, 1, 0) in sides[0].asked  # second turns too
    counted = [answer for answer in order if answer[3] >= 0]
    assert len(counted) < len(order)  # the warm-up
    pairs = list(zip(counted[::2], counted[1::2], strict=True))
    assert all(first[1:] == second[1:] for first, second in pairs)  # back to back
    for method in ("vanilla", "kangaroo"):
        of_round = [first[0] for first, _ in pairs if first[1] == method and first[3] == 0]
        assert abs(of_round.count("base") - of_round.count("new")) <= 1
    if max(answer[3] for answer in counted) > 0:
        firsts = {(first[1], first[3]): first[0] for first, _ in pairs if first[2] == 1 and first[3] < 2}
        assert firsts["vanilla", 0] != firsts["vanilla", 1] == firsts["kangaroo", 0]


def test_both_sides_take_steps_in_turns_until_each_has_ended(tmp_path):
    clock = Clock()
    base, new = Scripted("base", seed=1, clock=clock), Scripted("new", seed=2, clock=clock)
    base.steps = new.steps  # in one list, as they come
    base.pauses, new.pauses = 3, 5
    gate = Gate(base, new, GateSettings(budget_min=0.01), tmp_path, clock)
    gate.run()
    answers = [base.steps[i : i + 8] for i in range(0, len(base.steps), 8)]
    assert len(answers) == len(base.asked)
    assert all(len({answer for _, answer in steps}) == 1 for steps in answers)
    orders = {tuple(name for name, _ in steps) for steps in answers}
    # Whoever read the prompt first takes the second steps; then they change places each time.
    assert orders == {
        ("new", "base", "base", "new", "new", "base", "new", "new"),
        ("base", "new", "new", "base", "base", "new", "new", "new"),
    }


def test_every_question_is_asked_before_it_ends_early(gated):
    """The same code is fine long before that: but a fault may sit in the last question."""
    found, gate = gated()
    assert found.questions == len(QUESTIONS)
    assert len(gate.blocks) >= gate.round_blocks == 4


def test_without_budget_nobody_can_tell(gated):
    found, gate = gated(budget_min=1e-9)
    assert len(gate.blocks) == 1
    assert found.verdict == UNKNOWN
    assert any("only 2 of 8 questions could be asked" in text for text in found.warnings)


def test_vanillas_failure_ends_a_question_and_another_methods_does_not(tmp_path):
    def failing(method):
        def change(turn):
            if turn.method == method:
                turn.error = "boom"

        return change

    asked = {}
    for method in ("vanilla", "kangaroo"):
        sides = [Scripted("base"), Scripted("new", failing(method))]
        Gate(*sides, GateSettings(budget_min=1e-9), tmp_path).run()
        asked[method] = {turn for _, question, turn, _ in sides[1].asked if question == 0}
    assert asked == {"vanilla": {0}, "kangaroo": {0, 1}}


def test_its_records_can_be_read_and_compared_again(gated, tmp_path):
    found, gate = gated(times("kangaroo", decode_s=1.1))
    base, new = ((read_run(tmp_path / name), read_turns(tmp_path / name)) for name in ("base", "new"))
    again = compare(base, new)
    assert again.interleaved
    assert metric(again, DECODE).verdict == WORSE
    assert metric(again, DECODE).base == metric(found, DECODE).base
    recorded = json.loads((tmp_path / PAIRS_FILE).read_text())["blocks"]
    logs = [
        log
        for block in recorded
        for item in block["logs"]
        if (item["method"], item["metric"], item["task"]) == ("kangaroo", DECODE, "qa")
        for log in item["logs"]
    ]
    assert logs == pytest.approx(gate.logs["kangaroo", DECODE]["qa"], abs=1e-5)


def test_sides_of_different_things_are_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(UserError, match="read the same questions differently"):
        Gate(Scripted("base"), Scripted("new", questions=QUESTIONS[1:]), GateSettings(), tmp_path)
    other = Scripted("new")
    other.run.dtype = "bfloat16"
    with pytest.raises(UserError, match=r"different things .*dtype"):
        Gate(Scripted("base"), other, GateSettings(), tmp_path)


def test_a_method_that_fails_everywhere_does_not_use_up_the_budget(gated):
    def broken(turn):
        if turn.method == "kangaroo":
            turn.error = "boom"

    found, gate = gated(broken)
    assert found.methods["kangaroo"].verdict == WORSE
    assert len(gate.blocks) < 40


@pytest.mark.parametrize("wrong", [{"budget_min": 0}, {"budget_min": float("inf")}, {"alarm": 0}, {"alarm": 0.5}])
def test_wrong_settings_are_told_by_their_flag(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        GateSettings(**wrong)


@pytest.mark.parametrize("order", [["base", "new"], ["new", "base"]])
def test_both_sides_begin_alike_and_chance_says_which_is_first(order, tmp_path, monkeypatch):
    """A short process of base's measures for both; it has ended before they start."""
    events = []

    class Started(Scripted):
        def __init__(self, name, checkout, told, log_file):
            super().__init__(name)
            self.run.methods["kangaroo"] = MethodInfo(
                "method", True, 7, {"gamma": 3}, costs=COSTS, measured={"costs": "0.1/0.1/1:1.0", "tree": "0"}
            )
            events.append((name, checkout, told))

        def close(self):
            events.append(f"{self.name} ends")

    monkeypatch.setattr(gate_module, "Side", Started)
    monkeypatch.setattr(gate_module.random, "SystemRandom", lambda: SimpleNamespace(sample=lambda *_: order))

    def course(base, new, *_):
        return SimpleNamespace(run=lambda: None, result=lambda: (base.name, new.name))

    monkeypatch.setattr(gate_module, "Gate", course)
    settings = GateSettings(slower=(("kangaroo", 0.1),))
    found = gate_module.run_gate(RunConfig(), settings, "base's code", "new code", tmp_path, lambda _: None)
    assert found == ("base", "new")
    (measuring, _, nothing), ended, first, second, *ends = events
    assert (measuring, ended, nothing["measured"]) == ("base", "base ends", {})
    assert [first[0], second[0]] == order
    assert {event[0]: event[1] for event in (first, second)} == {"base": "base's code", "new": "new code"}
    told = {event[0]: event[2] for event in (first, second)}
    assert told["base"]["measured"] == told["new"]["measured"]
    assert told["base"]["measured"]["kangaroo"] == {"costs": "0.1/0.1/1:1.0"}
    assert (told["base"]["slower"], told["new"]["slower"]) == ({}, {"kangaroo": 0.1})
    assert sorted(ends) == ["base ends", "new ends"]
