"""Speedup and CR over commits: runs of one thing, in the order in which they were made."""

from __future__ import annotations

import dataclasses

import pytest

from bench.cli import main
from bench.figures.records import write_json, write_turns
from tests.bench.figures.test_compare import a_run, changed, some_turns


@pytest.fixture
def runs(tmp_path):
    """Three runs, the newest first on the command line; Kangaroo got faster from one to the next."""
    folders = []
    for number, factor in enumerate((1.2, 1.1, 1.0)):
        folder = tmp_path / f"run{number}"
        run = a_run(f"run{number}")
        run.provenance |= {
            "commit": str(number) * 40,
            "started": f"2026-11-0{number + 1}T00:00:00",
            "dirty": number == 1,
        }
        write_json(folder / "run.json", run)
        write_turns(folder / "turns.jsonl", changed(some_turns(number), "kangaroo", decode_s=factor))
        folders.append(str(folder))
    return folders[::-1]


def test_a_row_a_run_and_method_oldest_first(runs, tmp_path, capsys):
    assert main(["history", *runs, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("2026")]
    assert [row.split()[0] for row in rows] == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert [row.split()[1] for row in rows] == ["00000000", "11111111+", "22222222"]
    assert all("kangaroo" in row and "2.00" in row for row in rows)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"history.md", "history.png"}
    page = (tmp_path / "out" / "history.md").read_text()
    assert page.startswith("# Speedup and CR over commits\n\n![Speedup and CR over commits](history.png)\n\n| date |")
    assert "| 2026-11-02 | 11111111+ | kangaroo |" in page


def test_runs_of_different_things_are_no_history(runs, tmp_path, capsys):
    other = dataclasses.replace(a_run("other"), dtype="bfloat16")
    write_json(tmp_path / "other" / "run.json", other)
    write_turns(tmp_path / "other" / "turns.jsonl", some_turns(0))
    assert main(["history", *runs, str(tmp_path / "other")]) == 2
    assert "differ in dtype" in capsys.readouterr().err


def test_runs_that_asked_other_questions_are_no_history(runs, tmp_path, capsys):
    write_json(tmp_path / "other" / "run.json", a_run("other"))
    turns = some_turns(0)
    write_turns(tmp_path / "other" / "turns.jsonl", [t for t in turns if t.question_id != turns[0].question_id])
    assert main(["history", *runs, str(tmp_path / "other")]) == 2
    assert "asked different questions of one file" in capsys.readouterr().err
