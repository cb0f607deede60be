"""A side of the gate, from within and as a process: it answers as a run would, with what it was told was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import pytest

from bench.config import RunConfig
from bench.drafting.loop import open_sequence, speculate
from bench.errors import UserError
from bench.gate import side as side_module
from bench.gate import slow_down, worker
from bench.gate.checkout import Checkout, here
from bench.gate.measured import measured_by
from bench.gate.protocol import PROTOCOL
from bench.gate.side import Side, first_request
from bench.run.workers.lines import serve
from tests.tiny import records, run_bench


@pytest.fixture
def config(setting):
    return RunConfig(
        model=str(setting.model),
        questions=setting.questions,
        method=(setting.kangaroo,),
        peer=("none",),
        max_new_tokens=8,
        out=str(setting.out),
    )


def course(questions, labels):
    """The lines of one round; is sent whether an answer goes on."""
    for question in questions:
        for turn in range(question["turns"]):
            where = {"question": question["id"], "turn": turn, "round": 0}
            for label in labels:
                going = yield {"do": "answer", "label": label, **where}
                while going:
                    going = yield {"do": "go on"}
            yield {"do": "close", **where}


def test_a_worker_answers_as_a_run_does(config, setting):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    _, expected = records(setting.out)
    made = worker.Worker(config, {}, {})
    hello = made.handle({"do": "hello"})
    lines, turns, pauses = course(hello["questions"], ["vanilla", setting.kangaroo]), [], 0
    line = next(lines)
    with contextlib.suppress(StopIteration):
        while True:
            out = io.StringIO()
            serve(made.handle, io.StringIO(json.dumps(line) + "\n"), out)
            told_back = json.loads(out.getvalue())
            turns += told_back.get("turns", [])
            pauses += told_back.get("going", False)
            line = lines.send(told_back.get("going"))
    assert pauses > len(turns)  # after the prefill and, of a long answer, after four steps

    def told(turn):
        keys = ("method", "question_id", "turn", "token_ids", "per_step_drafted", "per_step_emitted", "audit")
        return [turn[key] for key in keys]

    whole = sorted(map(told, map(dataclasses.asdict, expected)), key=str)
    assert sorted(map(told, turns), key=str) == whole
    assert hello["protocol"] == PROTOCOL
    assert hello["questions"][0] == {"id": 11, "task": "mt_bench", "turns": 2}


def test_what_the_other_side_measured_is_used(config, setting):
    costs = "0.100/0.100/1:1.000/2:1.100"
    measured = {setting.kangaroo: {"costs": costs}, "vanilla": {"costs": costs}}
    made = worker.Worker(config, measured, {})
    info = made.record.methods[setting.kangaroo]
    assert info.config["costs"] == costs
    assert measured_by(made.record) == {setting.kangaroo: {"costs": costs}}


def test_only_what_differs_from_the_defaults_is_told(config):
    told = first_request(config, {}, {})["config"]
    assert set(told) == {"model", "questions", "method", "peer", "max_new_tokens", "out", "dtype", "temperature"}
    assert RunConfig(**told) == config


@pytest.mark.parametrize(("share", "passes"), [(1.0, 10), (0.5, 5), (0.0, 0)])
def test_a_slowed_method_does_a_share_more_and_answers_the_same(config, monkeypatch, share, passes):
    """With a clock that ticks once a look: a step takes one tick, and so does a pass."""
    made = worker.Worker(config, {}, {})
    method = made.contestants["vanilla"].method
    ticks = iter(range(10**6))
    monkeypatch.setattr(slow_down, "now_s", lambda device: next(ticks))
    done = []
    run_layers = method.target.run_layers
    monkeypatch.setattr(method.target, "run_layers", lambda *a, **k: done.append(a) or run_layers(*a, **k))

    def ten_steps() -> list[list[int]]:
        sequence = open_sequence(method, [1, 2, 3])
        return [speculate(method, [sequence], [9])[0].emitted for _ in range(10)]

    expected = ten_steps()
    without = len(done)
    slow_down.slow_down(method, share)  # begins with a pass that counts for nothing
    done.clear()
    assert ten_steps() == expected
    assert len(done) - without == passes


def test_only_our_own_methods_can_be_slowed_down(config):
    with pytest.raises(UserError, match="--slow-down nobody"):
        worker.Worker(config, {}, {"nobody": 0.1})


def test_a_process_answers_and_ends(config, setting, tmp_path, cache, give_kernels):
    give_kernels(cache)
    side = Side("new", here(None), first_request(config, {}, {}), tmp_path / "new.log")
    where = {"question": 12, "turn": 0, "round": 0}
    for label in side.run.methods:
        going = side.begin(label, where)
        while going:
            going = side.go_on()
    turns = side.audited(where)
    assert [turn.method for turn in turns] == ["vanilla", setting.kangaroo]
    assert turns[0].token_ids == turns[1].token_ids
    assert turns[1].audit.verdict == "identical"
    assert side.run.methods[setting.kangaroo].config["exit_layer"] == 1
    side.process.kill()
    side.process.wait()
    with pytest.raises(UserError, match=r"new ended before the gate did .*new\.log"):
        side.begin("vanilla", where)
    side.close()


def test_a_side_that_cannot_start_tells_why(config, tmp_path):
    wrong = dataclasses.replace(config, method=("kangaro",))
    with pytest.raises(UserError, match=r"base ended before the gate did \(unknown method 'kangaro'"):
        Side("base", here(None), first_request(wrong, {}, {}), tmp_path / "base.log")


def test_other_code_than_the_checkouts_is_refused(config, tmp_path, cache, give_kernels):
    """An empty folder: the bench that runs is found elsewhere."""
    give_kernels(cache)
    elsewhere = Checkout(str(tmp_path), here(None).python, paths=(here(None).folder,))
    with pytest.raises(UserError, match=r"base takes the bench from .*, not from .*pip install -e"):
        Side("base", elsewhere, first_request(config, {}, {}), tmp_path / "base.log")


def test_a_side_that_says_nothing_is_given_up(config, tmp_path, monkeypatch):
    monkeypatch.setattr(side_module, "_ANSWER_S", 0.2)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()
    (tmp_path / "bench" / "__main__.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(UserError, match="no answer within"):
        Side("base", Checkout(str(tmp_path), here(None).python), first_request(config, {}, {}), tmp_path / "base.log")


def test_code_from_before_the_gate_is_told(config, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()
    with pytest.raises(UserError, match=r"base ended before the gate did .*base\.log"):
        Side("base", Checkout(str(tmp_path), here(None).python), first_request(config, {}, {}), tmp_path / "base.log")


def test_a_template_that_refuses_a_turn_fails_it_as_in_a_run(config, monkeypatch):
    made = worker.Worker(config, {}, {})
    question, *_ = made.handle({"do": "hello"})["questions"]

    def refuse(*given):
        raise UserError("the template refuses it")

    monkeypatch.setattr(type(made.examiner.loaded.chat), "prompt", refuse)
    where = {"question": question["id"], "turn": 0, "round": 0}
    assert made.handle({"do": "answer", "label": "vanilla", **where}) == {"going": False}
    (turn,) = made.handle({"do": "close", **where})["turns"]
    assert turn["error"] == "the template refuses it"
