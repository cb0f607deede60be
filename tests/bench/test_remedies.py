"""What an error message advises works when it is followed, and an interrupted command says how to go on."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from bench.cli import main
from bench.errors import program
from bench.run.examiner import Warnings
from tests.tiny import records, run_bench


@pytest.fixture
def finished(setting):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    return setting.out


def commands_in(said: str) -> list[list[str]]:
    """The commands of ours that a message gives, as arguments of `main`."""
    start = re.escape(program())
    return [shlex.split(found) for found in re.findall(rf"{start} ([^\n`;,]*)", said)]


def base(setting) -> list[str]:
    return ["--model", str(setting.model), "--questions", setting.questions, "--max-new-tokens", "4"]


# A command that fails, what its message advises, and the command with that advice; {} is put in by the test.
FLAGS = [
    (["report", "{run}", "--plots", "{blocked}"], "--plots", ["report", "{run}", "--plots", "{free}"]),
    (["export", "{run}", "--out", "{blocked}"], "--out", ["export", "{run}", "--out", "{free}"]),
    (
        ["compare", "{run}", "{run}", "--json", "{run}"],
        "--json",
        ["compare", "{run}", "{run}", "--json", "{free}.json"],
    ),
    (
        ["compare", "{run}", "{run}", "--markdown", "{blocked}/x.md"],
        "--markdown",
        ["compare", "{run}", "{run}", "--markdown", "{free}/x.md"],
    ),
]


@pytest.mark.parametrize(("wrong", "flag", "right"), FLAGS, ids=lambda part: part[0] if isinstance(part, list) else "")
def test_the_flag_that_is_advised_is_there_and_helps(finished, tmp_path, capsys, wrong, flag, right):
    (tmp_path / "file").write_text("")
    places = {"run": finished, "blocked": tmp_path / "file" / "x", "free": tmp_path / "free"}
    capsys.readouterr()
    assert main([part.format(**places) for part in wrong]) == 2
    said = capsys.readouterr().err
    assert flag in said or "give another path" in said
    assert main([part.format(**places) for part in right]) in (0, 1)  # `compare` judges times, too


def test_missing_weights_are_trained_by_the_command_that_is_advised(setting, capsys):
    flags = [*base(setting), "--out", str(setting.out), "--peer", "none"]
    assert main([*flags, "--method", "kangaroo"]) == 2
    (command,) = commands_in(capsys.readouterr().err)
    assert command[:2] == ["train", "kangaroo"]
    assert command[2:] == ["--model", "MODEL"]
    with pytest.raises(SystemExit) as helped:  # the training itself takes long, and has tests of its own
        main([*command[:2], "--model", str(setting.model), "--help"])
    assert helped.value.code == 0
    assert main([*flags, "--method", setting.kangaroo]) == 0


def test_a_complete_run_is_shown_by_the_command_that_is_advised(finished, capsys):
    assert main(["--resume", str(finished)]) == 2
    (command,) = commands_in(capsys.readouterr().err)
    assert main(command) == 0


def test_an_interrupt_while_the_report_is_written_names_the_command_that_writes_it(setting, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("bench.report.write_report", interrupted)
        assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 130
    (command,) = commands_in(capsys.readouterr().err)
    assert command[0] == "report"
    assert main(command) == 0
    assert (setting.out / "report.md").is_file()


def test_an_interrupt_within_a_question_names_the_command_that_goes_on(setting, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("bench.run.examiner.Examiner.answer", interrupted)
        assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 130
    command = commands_in(capsys.readouterr().err)[-1]
    assert command == ["--resume", str(setting.out)]
    assert main(command) == 0
    assert records(setting.out)[0].complete


@pytest.mark.parametrize("where", ["bench.run.runner.load", "bench.run.runner.prepare"])
def test_an_interrupt_before_anything_is_recorded_says_so(setting, monkeypatch, capsys, where):
    monkeypatch.setattr(where, interrupted)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "interrupted: nothing is recorded yet; run the same command again"
    assert not setting.out.exists()


def test_an_interrupted_sweep_says_how_to_go_on(setting, monkeypatch, capsys):
    flags = [*base(setting), "--method", setting.kangaroo, "--grid", "gamma=1,2", "--out", str(setting.out)]
    with monkeypatch.context() as patch:
        patch.setattr("bench.run.runner.load", interrupted)
        assert main(["sweep", *flags]) == 130
    said = capsys.readouterr().err
    assert said.endswith(f"interrupted: go on with the same command and --out {setting.out}\n")
    assert main(["sweep", *flags]) == 0


def interrupted(*given, **more):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("called", "spelled"),
    [
        ("run_bench.py", "{python} run_bench.py"),
        ("/some/where/run_bench.py", "{python} run_bench.py"),
        ("/x/bench/__main__.py", "{python} -m bench"),
        ("{here}/.venv/bin/roobench", ".venv/bin/roobench"),
        ("/opt/with space/roobench", "'/opt/with space/roobench'"),
    ],
)
def test_our_own_command_is_spelled_as_it_was_called(tmp_path, monkeypatch, called, spelled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", [called.format(here=tmp_path)])
    assert program() == spelled.format(python=".venv/bin/python")


def test_a_command_on_the_path_is_spelled_by_its_name(tmp_path, monkeypatch):
    for name in ("python", "roobench"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", ["run_bench.py"])
    assert program() == "python run_bench.py"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "roobench")])
    assert program() == "roobench"


def test_a_warning_is_kept_without_the_path_of_the_program_that_gave_it(tmp_path, monkeypatch):
    elsewhere = tmp_path / "bin" / "roobench"
    monkeypatch.setattr(sys, "argv", [str(elsewhere)])
    told: list[str] = []
    warnings = Warnings(told.append)
    for _ in range(2):
        warnings(f"no weights: train them (`{program()} train kangaroo`)")
    assert told == [f"WARNING: no weights: train them (`{elsewhere} train kangaroo`)"]
    assert warnings.texts == ["no weights: train them (`roobench train kangaroo`)"]
