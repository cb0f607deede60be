"""Two separate runs: what is a difference of the code, and what may be the machine's."""

from __future__ import annotations

import copy
import dataclasses
import json
import shlex

import pytest

from bench.cli import main
from bench.commands import gate
from bench.figures.comparable import remedy
from bench.figures.machine import Machine
from bench.figures.records import write_json, write_turns
from bench.figures.rules import Rules
from bench.figures.verdicts import BETTER, SAME, UNKNOWN, WORSE
from tests.bench.figures.test_compare import a_run, changed, compared, less_accepted, metric, some_turns

COMMIT = "c" * 40
BUSY = [{"others_share": 0.02}, {"others_share": 0.4}]


def apart(name="r", sessions=(), costs=None, **more):
    """A run that was not interleaved with another one."""
    provenance = {"commit": COMMIT, "packages": {"torch": "1"}, "sessions": list(sessions)}
    run = a_run(name, provenance=provenance, **more)
    if costs is not None:
        run.methods["kangaroo"] = dataclasses.replace(run.methods["kangaroo"], measured={"costs": costs})
    return run


def slower(factor=1.3):
    return changed(some_turns(2), "kangaroo", decode_s=factor)


@pytest.fixture
def command(tmp_path):
    """The exit status of `compare` on two runs, and the comparison that it wrote."""

    def of(base, new, *flags):
        for name, (run, turns) in (("base", base), ("new", new)):
            write_json(tmp_path / name / "run.json", run)
            write_turns(tmp_path / name / "turns.jsonl", turns)
        path = tmp_path / "compared.json"
        status = main(["compare", str(tmp_path / "base"), str(tmp_path / "new"), f"--json={path}", *flags])
        return status, json.loads(path.read_text())

    return of


def gate_command(warnings):
    (text,) = [text for text in warnings if "gate --base" in text]
    return shlex.split(text.split("`")[1])


def test_the_same_commit_twice_on_a_busy_machine_is_inconclusive_and_points_to_the_gate(command, capsys):
    sides = (apart("base"), some_turns(1)), (apart("new", BUSY), slower())
    status, found = command(*sides)
    assert (status, found["verdict"]) == (0, UNKNOWN)
    printed = capsys.readouterr().out
    assert "other programs used 40% of the processors during the run of new" in printed
    assert f"gate --base {COMMIT[:12]}" in " ".join(printed.split())
    assert command(*sides, "--strict")[0] == 1


def test_a_regression_with_the_same_costs_on_quiet_machines_is_worse(command):
    quiet = [{"others_share": 0.03}]
    sides = (apart("base", quiet, "1/2"), some_turns(1)), (apart("new", quiet, "1/2"), slower())
    status, found = command(*sides)
    assert (status, found["verdict"]) == (1, WORSE)
    assert not any("gate --base" in text for text in found["warnings"])
    assert command((apart(costs="1/2"), some_turns(1)), (apart(costs="1/2"), less_accepted(some_turns(2))))[0] == 1


@pytest.mark.parametrize("side", ["base", "new"])
def test_a_burst_that_hit_some_turns_leaves_the_speedup_inconclusive(side):
    base, new = some_turns(1), slower()
    for turn in {"base": base, "new": new}[side][3:6]:
        turn.others_share = 0.6
    for turn in (*base, *new):
        turn.others_share = turn.others_share or 0.01
    found = compared(new, base, base=apart(), new=apart())
    assert metric(found, "decode speedup").verdict == UNKNOWN
    assert any(f"in 3 of 24 turns during the run of {side}" in text for text in found.warnings)


def test_a_busy_machine_excuses_no_counter():
    found = compared(less_accepted(some_turns(2)), base=apart(), new=apart(sessions=BUSY))
    assert metric(found, "decode speedup").verdict == UNKNOWN
    assert metric(found, "CR").verdict == WORSE
    assert found.verdict == WORSE


def test_other_costs_that_led_to_other_drafts_are_inconclusive():
    other_drafts = copy.deepcopy(slower())
    for turn in other_drafts:
        if turn.method == "kangaroo":
            turn.per_step_drafted = turn.per_step_depth = turn.per_step_calls = [3] * 4
    found = compared(other_drafts, base=apart(costs="1/2"), new=apart(costs="1/3"))
    assert metric(found, "decode speedup").verdict == UNKNOWN
    assert metric(found, "speedup at base's costs").verdict == UNKNOWN
    assert found.verdict == UNKNOWN
    assert any("drafted differently: its speedup is inconclusive" in text for text in found.warnings)
    same_costs = compared(other_drafts, base=apart(costs="1/2"), new=apart(costs="1/2"))
    assert metric(same_costs, "decode speedup").verdict == WORSE
    assert metric(same_costs, "speedup at base's costs").verdict == WORSE


def test_other_costs_that_changed_no_draft_excuse_nothing():
    found = compared(slower(), base=apart(costs="1/2"), new=apart(costs="1/3"))
    assert metric(found, "decode speedup").verdict == WORSE
    assert metric(found, "CR").verdict == SAME


def test_a_faster_method_on_a_busy_machine_is_not_better():
    assert compared(slower(0.7), base=apart(), new=apart()).verdict == BETTER
    assert compared(slower(0.7), base=apart(sessions=BUSY), new=apart()).verdict == UNKNOWN


def test_speedups_of_different_machines_are_inconclusive_and_counters_get_the_tolerance():
    elsewhere = apart(machine=Machine("cpu", "another CPU", 2, torch_instructions="AVX2"))
    rules = Rules(allow=("device",), tolerance=0.03)
    found = compared(slower(), base=apart(), new=elsewhere, rules=rules)
    assert metric(found, "decode speedup").verdict == UNKNOWN
    assert found.verdict == UNKNOWN
    fewer = compared(less_accepted(some_turns(2)), base=apart(), new=elsewhere, rules=rules)
    assert metric(fewer, "CR").verdict == SAME


def test_members_costs_of_a_composition_are_costs():
    sides = [apart(name) for name in ("base", "new")]
    for run, costs in zip(sides, ("1/2", "1/3"), strict=True):
        run.methods["kangaroo"] = dataclasses.replace(run.methods["kangaroo"], measured={"pld": {"costs": costs}})
    found = compared(less_accepted(some_turns(2)), base=sides[0], new=sides[1], rules=Rules(tolerance=0.001))
    assert metric(found, "CR").verdict == UNKNOWN


def test_a_knob_that_changed_is_named_and_decides():
    sides = [apart(name) for name in ("base", "new")]
    for run, gamma in zip(sides, (6, 4), strict=True):
        run.methods["kangaroo"] = dataclasses.replace(run.methods["kangaroo"], config={"gamma": gamma, "exit_layer": 2})
    found = compared(less_accepted(some_turns(2)), base=sides[0], new=sides[1])
    assert "kangaroo ran with other knobs in new: gamma" in found.warnings
    assert metric(found, "CR").verdict == WORSE


def test_the_gates_command_can_be_followed():
    methods = {"vanilla": a_run().methods["vanilla"], "kangaroo:gamma=4": a_run().methods["kangaroo"]}
    methods["hf-generate"] = dataclasses.replace(methods["vanilla"], kind="peer")
    config = {"model": "my models/tiny", "questions": "mini", "dtype": "bfloat16", "threads": 1, "max_new_tokens": 64}
    base, new = (apart(name, methods=methods, config=config) for name in ("base", "new"))
    words = gate_command([remedy(base, new)])
    assert words[:3] == ["python", "run_bench.py", "gate"]
    options = gate.parser().parse_args(words[3:])
    assert (options.base, options.method) == (COMMIT[:12], ["kangaroo:gamma=4"])
    assert (options.model, options.dtype, options.threads) == ("my models/tiny", "bfloat16", 1)
    assert options.questions is None
    unknown = apart()
    unknown.provenance["commit"] = None
    assert "--base REV" in remedy(unknown, new)
    assert "REV is the commit of base" in remedy(unknown, new)
