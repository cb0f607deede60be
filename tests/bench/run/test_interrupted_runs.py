"""Runs that are interrupted, terminated or killed, or end in the warm-up: what is kept of them, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

from bench.cli import main
from bench.errors import program
from tests.bench.run.test_runner_failures import raising, summary_of
from tests.bench.run.test_runner_failures import watched as watched
from tests.tiny import records, run_bench


def test_interrupted_run_keeps_the_finished_questions_and_reports_them(setting, watched, capsys):
    watched.seen = raising(KeyboardInterrupt(), setting, "walrus")
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "watched", "--rounds", "2") == 130
    run, turns = records(setting.out)
    assert not run.complete
    assert [(t.question_id, t.method) for t in turns] == [
        (11, "vanilla"),
        (11, "watched"),
        (11, "vanilla"),
        (11, "watched"),
        (12, "vanilla"),
        (12, "watched"),
    ]
    assert summary_of(setting.out)["complete"] is False
    printed = capsys.readouterr()
    assert "Question answering" in printed.out
    assert "interrupted" in printed.err


def test_run_interrupted_before_the_first_question_is_through_has_nothing_to_report(setting, watched, capsys):
    watched.seen = raising(KeyboardInterrupt(), setting, "rhubarb")  # in the second turn
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "watched") == 130
    run, turns = records(setting.out)
    assert (run.complete, turns) == (False, [])
    assert not (setting.out / "report.md").exists()
    assert f"interrupted: go on with: {program()} --resume {setting.out}" in capsys.readouterr().err
    watched.seen = staticmethod(lambda prompt: None)
    assert main(["--resume", str(setting.out)]) == 0
    assert records(setting.out)[0].complete


def test_method_that_fails_in_the_warm_up_is_told_with_its_place_and_leaves_nothing(setting, watched, capsys):
    watched.seen = raising(ValueError("lost the thread"), setting, "summer")
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "watched") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: watched fails at its first answer, in the warm-up: ValueError: lost the thread (")
    assert line.endswith(")")
    assert not setting.out.exists()


def test_a_context_too_short_to_warm_up_in_is_reported_before_the_weights_are_read(
    setting, monkeypatch, tmp_path, capsys
):
    model = shutil.copytree(setting.model, tmp_path / "short")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4}))
    monkeypatch.setattr("bench.models.loading.load_decoder", None)
    assert run_bench(model, setting.questions, setting.out, "--method", "vanilla") == 2
    assert "error: a context of 4 tokens is too short to warm up in: take another model" in capsys.readouterr().err
    assert not setting.out.exists()


@pytest.mark.parametrize(
    ("method", "change", "told"),
    [
        ("kangaroo", {"hidden_size": "wide"}, "config.json: hidden_size: Input should be a valid integer, not 'wide'"),
        ("kangaroo", {"hidden_size": 96}, "is for another model: its hidden size is 96, but short's is 48"),
        ("kangaroo", {"exit_layer": 4}, "exit_layer=4 leaves no layers to verify: short has 4 layers"),
        ("medusa", {"heads": {}}, "config.json: heads.hidden_size: missing"),
        ("medusa", None, "config.json: No such file or directory"),
    ],
)
@pytest.mark.parametrize("composed", [False, True])
def test_faults_of_a_methods_config_are_reported_before_the_model_is_loaded(
    method, change, told, composed, setting, tiny_adapter, tiny_heads, monkeypatch, tmp_path, capsys
):
    folder = shutil.copytree({"kangaroo": tiny_adapter, "medusa": tiny_heads}[method](setting.hf), tmp_path / "weights")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | (change or {})))
    if change is None:
        (folder / "config.json").unlink()
    monkeypatch.setattr("bench.models.loading.load_decoder", None)
    model = shutil.copytree(setting.model, tmp_path / "short")
    label = f"{'pld+' if composed else ''}{method}:weights={folder}"
    assert run_bench(model, setting.questions, setting.out, "--method", label) == 2
    assert told in capsys.readouterr().err
    assert not setting.out.exists()


def test_run_interrupted_in_the_warm_up_leaves_no_folder(setting, watched):
    watched.seen = raising(KeyboardInterrupt(), setting, "summer")
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "watched") == 130
    assert not setting.out.exists()


def test_a_terminated_run_keeps_what_was_finished_and_goes_on(setting, watched, capsys):
    walrus = setting.chat.encode("walrus")

    def seen(prompt):
        if any(prompt[i : i + len(walrus)] == walrus for i in range(len(prompt))):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)  # the signal comes first

    watched.seen = staticmethod(seen)
    before = signal.getsignal(signal.SIGTERM)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "watched") == 130
    assert signal.getsignal(signal.SIGTERM) == before
    run, turns = records(setting.out)
    assert not run.complete
    assert {t.question_id for t in turns} == {11, 12}
    watched.seen = staticmethod(lambda prompt: None)
    assert main(["--resume", str(setting.out)]) == 0
    assert {t.question_id for t in records(setting.out)[1]} == {11, 12, 13}


def test_a_run_terminated_while_it_writes_leaves_no_half_file(setting, monkeypatch):
    write = json.dump

    def cut_short(value, file, **more):
        file.write('{"run_id')
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        write(value, file, **more)

    monkeypatch.setattr("bench.figures.records.json.dump", cut_short)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 130
    assert not setting.out.exists()


def test_killed_run_can_still_be_reported(setting, watched, capsys):
    watched.seen = raising(SystemExit("killed"), setting, "walrus")  # passes every handler, as a crash would
    with pytest.raises(SystemExit):
        run_bench(setting.model, setting.questions, setting.out, "--method", "watched")
    run, turns = records(setting.out)
    assert not run.complete
    assert {t.question_id for t in turns} == {11, 12}
    assert main(["report", str(setting.out)]) == 0
    assert "Question answering" in capsys.readouterr().out
