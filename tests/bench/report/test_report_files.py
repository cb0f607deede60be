"""The files that a report writes: all of them or none, the same each time, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bench.errors import UserError
from bench.figures.metrics import TASKS, summarize
from bench.figures.records import Audit, read_run, read_turns
from bench.figures.summary import read_summary
from bench.report import figures, terminal_table, write_report
from tests.bench.report.helpers import OLD_PLOTS, make_run, make_summary, make_turns, save

ROOT = Path(__file__).parents[3]
REFERENCE = sorted((ROOT / "results" / "reference").glob("*/summary.json"))


def test_a_report_is_page_summary_and_plots_with_relative_links(tmp_path):
    methods = {"kangaroo": "method", "hf-generate": "peer"}
    folder = save(tmp_path / "runs" / "r1", make_run(methods), make_turns(methods))
    plots = tmp_path / "plots" / "r 1"
    written = write_report(folder, plots)
    drawn = list(figures.draw(make_summary(methods)))
    assert drawn[:3] == OLD_PLOTS
    assert written == [
        folder / "report.html",
        folder / "report.md",
        folder / "report.tex",
        folder / "summary.json",
        folder / "summary.csv",
        *(plots / f"{name}.png" for name in drawn),
    ]
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "](../../plots/r%201/speedup_by_task.png)" in page
    assert json.loads((folder / "summary.json").read_text())["run_id"] == "r1"
    for name in drawn:
        assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob(".*")), "a temporary file was left behind"


def test_the_same_records_give_the_same_files(tmp_path):
    folder = save(tmp_path / "run", make_run({"kangaroo": "method"}), make_turns({"kangaroo": "method"}))
    first = {path: path.read_bytes() for path in write_report(folder, tmp_path / "plots")}
    assert {path: path.read_bytes() for path in write_report(folder, tmp_path / "plots")} == first


def test_a_failing_figure_leaves_the_old_files(tmp_path, monkeypatch):
    methods = {"kangaroo": "method"}
    folder = save(tmp_path / "run", make_run(methods), make_turns(methods))
    plots = tmp_path / "plots"
    write_report(folder, plots)
    before = {path: path.read_bytes() for path in (*plots.iterdir(), folder / "report.md")}

    def savefig(self, file, **_):
        file.write(b"half a picture")
        raise RuntimeError("no more ink")

    monkeypatch.setattr(Figure, "savefig", savefig)
    save(folder, make_run(methods, dtype="bfloat16"), make_turns(methods, TASKS[:1]))
    with pytest.raises(RuntimeError, match="no more ink"):
        write_report(folder, plots)
    assert {path: path.read_bytes() for path in (*plots.iterdir(), folder / "report.md")} == before


def test_a_plot_that_cannot_be_written_is_a_user_error(tmp_path):
    methods = {"kangaroo": "method"}
    folder = save(tmp_path / "run", make_run(methods), make_turns(methods))
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"speedup_by_task\.png"):
        write_report(folder, tmp_path / "plots")


def test_reports_need_neither_torch_nor_a_display(tmp_path):
    folder = save(tmp_path, make_run({"kangaroo": "method"}), make_turns({"kangaroo": "method"}))
    code = (
        "import sys, pathlib\n"
        "import bench.report\n"
        "assert 'matplotlib' not in sys.modules, 'a table in a terminal needs no drawing library'\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "bench.report.write_report(folder, folder / 'plots')\n"
        "heavy = {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)


def test_an_interrupted_run_is_reported_over_what_was_finished(tmp_path):
    methods = {"kangaroo": "method", "medusa": "method"}
    turns = make_turns(methods)
    # Interrupted in the second question: vanilla and one method had answered, the other had not.
    folder = save(tmp_path, make_run(methods, complete=False), turns[:5])
    write_report(folder, tmp_path / "plots")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"] is False
    assert [summary["methods"][name]["tasks"]["overall"]["turns"] for name in ("kangaroo", "medusa")] == [2, 1]
    assert "INTERRUPTED" in terminal_table(read_summary(tmp_path))


@pytest.mark.parametrize("turns", [make_turns({}), []])
def test_vanilla_alone_is_reported_without_a_comparison(tmp_path, turns):
    folder = save(tmp_path, make_run({}, complete=bool(turns)), turns)
    write_report(folder, tmp_path / "plots")
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Only vanilla was run: there is nothing to compare." in page
    summary = read_summary(tmp_path)
    assert "vanilla alone" in terminal_table(summary)
    assert figures.draw(summary) == {}
    assert not (tmp_path / "plots").exists()
    assert "![" not in page
    assert not re.search(r"\n#+ [^\n]+\n+(#|$)", page), "a heading without content"


def test_a_summary_is_read_as_it_was_written(tmp_path):
    methods = {"kangaroo": "method", "hf-generate": "peer"}
    run, turns = make_run(methods), make_turns(methods)
    turns[0].error, turns[3].audit = "boom", Audit("different", 5, 11, 13, 0.25, 1e-4)
    write_report(save(tmp_path, run, turns), tmp_path / "plots")
    assert read_summary(tmp_path) == summarize(run, turns)


@pytest.mark.parametrize(
    "damage", [{"rounds": "1"}, {"rounds": True}, {"surprise": 1}, {"methods": None}, {"failed": {}}]
)
def test_a_damaged_summary_is_told(tmp_path, damage):
    write_report(save(tmp_path, make_run({}), make_turns({})), tmp_path / "plots")
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError, match=r"summary\.json is no summary of a run .*redraw"):
        read_summary(tmp_path)


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.parent.name)
def test_the_reference_runs_are_shown(path):
    summary = summarize(read_run(path.parent), read_turns(path.parent))
    terminal_table(summary)
    drawn = figures.draw(summary)
    assert drawn.keys() >= set(OLD_PLOTS)
