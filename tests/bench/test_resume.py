"""A run that was killed goes on: nothing is lost, nothing asked twice, and nothing else is measured than was begun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.records import append_turns, read_turns
from tests.tiny import records, run_bench, write_questions

ROOT = Path(__file__).parents[2]
# Kills its own process with SIGKILL once the next question is written down.
KILLED = """
import os, signal, sys
from bench import records, runner
from bench.cli import main

append = records.append_turns

def last_words(path, turns):
    append(path, turns)
    os.kill(os.getpid(), signal.SIGKILL)

runner.append_turns = last_words
main(sys.argv[1:])
"""


def keys(turns):
    return [(t.method, t.question_id, t.turn, t.round) for t in turns]


def tokens(turns):
    return {key: t.token_ids for key, t in zip(keys(turns), turns, strict=True)}


@pytest.fixture
def whole(setting, tmp_path):
    """An undisturbed run in `whole`, and its flags."""
    flags = ["--method", setting.kangaroo, "--peer", "hf-generate", "--rounds", "2"]
    assert run_bench(setting.model, setting.questions, tmp_path / "whole", *flags) == 0
    return flags, read_turns(tmp_path / "whole")


def cut_after(out, lines, torn=b""):
    """Leave the run in `out` as if it had been killed after so many lines and a half one."""
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"complete": False}))
    kept = (out / "turns.jsonl").read_bytes().splitlines(keepends=True)
    (out / "turns.jsonl").write_bytes(b"".join(kept[:lines]) + torn)


def test_killed_twice_and_resumed_nothing_is_lost_or_doubled(setting, whole, tmp_path):
    flags, expected = whole
    out = tmp_path / "killed"
    begun = [
        "--model",
        str(setting.model),
        "--questions",
        setting.questions,
        "--out",
        str(out),
        "--max-new-tokens",
        "8",
    ]
    for arguments in ([*begun, *flags], ["--resume", str(out)]):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=os.environ, capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    run, turns = records(out)
    assert not run.complete
    assert keys(turns) == keys(expected)[: len(turns)]
    assert {t.question_id for t in turns} == {11, 12}
    assert main(["--resume", str(out)]) == 0
    run, turns = records(out)
    assert run.complete
    assert sorted(keys(turns)) == sorted(keys(expected))
    assert tokens(turns) == tokens(expected)
    assert len(run.provenance["sessions"]) == 3
    assert run.wall_s == pytest.approx(sum(session["wall_s"] for session in run.provenance["sessions"]))


@pytest.mark.parametrize("torn", [b"", b'{"method": "vanilla", "questio', b"\0" * 300, '{"text": "é'.encode()[:-1]])
@pytest.mark.parametrize("lines", [0, 1, 4, 7])
def test_run_goes_on_from_wherever_its_records_break_off(setting, whole, tmp_path, lines, torn):
    """A question of which some turns are missing is asked again, whole."""
    _, expected = whole
    out = tmp_path / "whole"
    cut_after(out, lines, torn)
    assert main(["report", str(out)]) == 0
    assert main(["--resume", str(out)]) == 0
    run, turns = records(out)
    assert run.complete
    assert sorted(keys(turns)) == sorted(keys(expected))
    assert tokens(turns) == tokens(expected)


def test_finished_questions_are_not_asked_again(setting, whole, tmp_path, monkeypatch):
    out = tmp_path / "whole"
    cut_after(out, 12)
    before = read_turns(out)
    written = []
    monkeypatch.setattr(
        "bench.runner.append_turns", lambda path, turns: (append_turns(path, turns), written.append(turns))
    )
    assert main(["--resume", str(out)]) == 0
    assert read_turns(out)[: len(before)] == before
    assert not set(keys(before)) & {key for turns in written for key in keys(turns)}


def test_complete_run_is_not_resumed(whole, tmp_path, capsys):
    assert main(["--resume", str(tmp_path / "whole")]) == 2
    assert "is complete: there is nothing to resume" in capsys.readouterr().err


def test_folder_without_a_run_is_not_resumed(tmp_path, capsys):
    assert main(["--resume", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--limit", "1", "--limit was None, is now 1"),
        ("--rounds", "3", "--rounds was 2, is now 3"),
        ("--method", "vanilla", "--method was ("),
        ("--dtype", "bfloat16", "--dtype was 'auto', is now 'bfloat16'"),
        ("--preset", "spec-bench", "--questions was "),
    ],
)
def test_changed_settings_are_refused_with_the_difference(whole, tmp_path, capsys, flag, value, said):
    out = tmp_path / "whole"
    cut_after(out, 4)
    before = (out / "turns.jsonl").read_bytes()
    assert main(["--resume", str(out), flag, value]) == 2
    assert said in capsys.readouterr().err
    assert (out / "turns.jsonl").read_bytes() == before


def test_the_same_settings_may_be_said_again(whole, tmp_path):
    out = tmp_path / "whole"
    cut_after(out, 4)
    assert main(["--resume", str(out), "--rounds", "2", "--peer", "hf-generate"]) == 0


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("model", "sha256"), "f" * 64, "model was 'ffff"),
        (("device", "name"), "another processor", "device was 'another processor'"),
        (("device", "threads"), 77, "threads was 77"),
        (("provenance", "packages"), {"torch": "1.0"}, "torch was '1.0'"),
        (("dtype",), "bfloat16", "dtype was 'bfloat16'"),
    ],
)
def test_another_machine_model_or_library_is_refused(whole, tmp_path, capsys, where, value, said):
    out = tmp_path / "whole"
    cut_after(out, 4)
    record = json.loads((out / "run.json").read_text())
    place = record
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    (out / "run.json").write_text(json.dumps(record))
    assert main(["--resume", str(out)]) == 2
    assert said in capsys.readouterr().err


def test_changed_questions_are_refused(setting, whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    write_questions(Path(setting.questions), (11, "writing", ("Something else?",)))
    assert main(["--resume", str(out)]) == 2
    assert "questions was" in capsys.readouterr().err


def test_knobs_that_were_measured_at_the_start_are_kept(setting, tmp_path, monkeypatch):
    """Costs measured anew would decide otherwise half-way through."""
    label = setting.kangaroo.replace("threshold=0", "stop=threshold")
    out = tmp_path / "out"
    assert run_bench(setting.model, setting.questions, out, "--method", label) == 0
    cut_after(out, 4)
    before = json.loads((out / "run.json").read_text())["methods"]
    monkeypatch.setattr("bench.engine.costs.measure", None)
    assert main(["--resume", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["methods"] == before


def test_damage_before_the_last_line_is_told_and_not_repaired(whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    lines = (out / "turns.jsonl").read_bytes().splitlines(keepends=True)
    (out / "turns.jsonl").write_bytes(b"".join([lines[0], b"{]\n", *lines[2:]]))
    before = (out / "turns.jsonl").read_bytes()
    assert main(["--resume", str(out)]) == 2
    assert "line 2: not a turn's record" in capsys.readouterr().err
    assert (out / "turns.jsonl").read_bytes() == before
