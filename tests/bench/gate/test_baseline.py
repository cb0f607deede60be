"""Counters against a committed baseline, through the command line."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench.cli import main
from bench.figures.records import read_run, read_turns, write_turns
from bench.run.examiner import Examiner


@pytest.fixture
def gate(setting, tmp_path):
    """The exit status of `gate` against the baseline in `tmp_path / "baseline"`, with further flags."""
    given = ["gate", "--model", str(setting.model), "--questions", setting.questions, "--method", setting.kangaroo]
    given += ["--max-new-tokens", "8", "--baseline", str(tmp_path / "baseline")]
    return lambda *flags: main([*given, *flags])


@pytest.fixture
def baseline(gate, tmp_path, capsys):
    assert gate("--update-baseline") == 0
    floors = tmp_path / "baseline" / "floor.json"
    floors.write_text(json.dumps(dict.fromkeys(json.loads(floors.read_text()), 0.001)))  # tiny models gain nothing
    capsys.readouterr()
    return tmp_path / "baseline"


def test_the_same_code_passes(gate, baseline, capsys):
    assert gate() == 0
    printed = capsys.readouterr().out
    assert "Nothing got slower" in printed
    assert "speedup against its floor" in printed


def test_one_token_less_is_caught_with_method_task_and_metric(gate, baseline, setting, capsys):
    """The baseline accepted one token more in one step."""
    turns = read_turns(baseline)
    turn = next(t for t in turns if t.method == setting.kangaroo and any(t.per_step_accepted))
    at = next(i for i, n in enumerate(turn.per_step_accepted) if n)
    turn.per_step_emitted[at] += 1
    turn.per_step_accepted[at] += 1
    turn.token_ids.append(1)
    write_turns(baseline / "turns.jsonl", turns)
    assert gate() == 1
    printed = capsys.readouterr().out
    assert "Worse: kangaroo" in printed
    assert "speedup at base's costs" in printed or "CR" in printed


def test_the_floor_counts_unless_counters_alone_do(gate, baseline, setting, capsys):
    (baseline / "floor.json").write_text(json.dumps({setting.kangaroo: 1000}))
    assert gate() == 1
    assert "decode speedup against its floor 1000.000" in " ".join(capsys.readouterr().out.split())
    assert gate("--counters") == 0


def test_an_update_shows_the_difference_and_replaces(gate, baseline, setting, capsys):
    turns = [dataclasses.replace(t, audit=None) for t in read_turns(baseline)]
    write_turns(baseline / "turns.jsonl", turns)
    assert gate("--update-baseline") == 0
    assert "Nothing got slower" in capsys.readouterr().out
    assert read_turns(baseline) != turns
    assert read_run(baseline).config["out"] is None


def test_an_update_to_other_questions_is_no_comparison(gate, baseline, tmp_path, capsys):
    assert gate("--update-baseline", "--max-new-tokens", "4") == 0
    assert "not compared with the baseline before" in capsys.readouterr().err
    assert read_run(baseline).config["max_new_tokens"] == 4


def test_what_cannot_be_compared_is_told(gate, baseline, tmp_path, capsys):
    assert gate("--max-new-tokens", "4") == 2
    assert "--max-new-tokens" in capsys.readouterr().err
    assert main(["gate", "--baseline", str(tmp_path / "none")]) == 2
    assert "holds no baseline" in capsys.readouterr().err
    (baseline / "floor.json").write_text("[")
    assert gate() == 2
    assert "floor.json" in capsys.readouterr().err
    assert main(["gate", "--plugin", "."]) == 2
    assert "--plugin: only with --base REV" in capsys.readouterr().err
    assert main(["gate", "--base", "HEAD", "--counters", "--update-baseline"]) == 2
    assert "--counters and --update-baseline: only without --base" in capsys.readouterr().err


def test_an_interrupted_run_is_no_evidence(gate, baseline, monkeypatch, capsys):
    def interrupted(self, *more):
        raise KeyboardInterrupt

    before = (baseline / "turns.jsonl").read_bytes()
    monkeypatch.setattr(Examiner, "answer", interrupted)
    assert gate() == 130
    assert gate("--update-baseline") == 130
    assert (baseline / "turns.jsonl").read_bytes() == before


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(gate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.gate.baseline.measure", lambda *given: pytest.fail("it measured"))
    assert gate("--update-baseline", "--markdown", str(tmp_path)) == 2
    assert f"--markdown {tmp_path}" in capsys.readouterr().err
