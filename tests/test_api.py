"""Roobench from Python: the run of the command line, in a process of its own; and the notebook that shows it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import roobench
from bench.commands import run as run_command
from bench.figures.records import TURNS_FILE, read_records
from bench.figures.summary import SCHEMA
from tests.tiny import QUESTIONS, write_questions

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "compare_methods.ipynb"


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_checkpoint):
    """The settings of a run that takes seconds."""
    folder = tmp_path_factory.mktemp("questions")
    questions = write_questions(folder / "questions.jsonl", *QUESTIONS)
    model = str(tiny_checkpoint("tied").folder)
    return {"model": model, "questions": questions, "max_new_tokens": 6, "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def summary(small, tmp_path_factory, give_kernels):
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ROOBENCH_CACHE", give_kernels(folder / "cache"))
        return roobench.run("pld", "ngram:tokens=3", peer=["hf-generate"], **small)


def test_a_run_leaves_its_files_in_the_current_folder(summary):
    assert summary.folder.parts[-3:-1] == ("results", "runs")
    run, turns = read_records(summary.folder)
    assert list(run.methods) == ["vanilla", "pld", "ngram:tokens=3", "hf-generate"]
    assert {turn.audit.verdict for turn in turns if turn.audit} == {"identical"}
    assert summary.data == json.loads((summary.folder / "summary.json").read_text())
    assert roobench.Summary.load(summary.folder) == summary


def test_the_frame_has_the_figures_of_the_table_for_programs(summary):
    """`summary.csv` is written from the typed figures, by other code."""
    found = summary.to_pandas()
    written = pd.read_csv(summary.folder / "summary.csv")
    assert len(found) == len(written) == 4 * 4
    figures = [name for name in written.columns if not written[name].isna().all()]
    assert set(figures) <= set(found.columns)
    assert len(figures) > 40
    pd.testing.assert_frame_equal(found[figures], written[figures], check_dtype=False, check_exact=True)
    nested = found.map(lambda value: isinstance(value, dict | list))
    assert not nested.any().any()


def test_a_figure_spread_over_columns_has_no_column_of_its_own(summary):
    columns = set(summary.to_pandas().columns)
    assert {"speedup_decode", "speedup_decode_low", "step_time_total", "ctar_1", "worth_decode_high"} <= columns
    assert not {"step_time", "lossless", "ctar", "confidence", "context", "predicted"} & columns


def test_a_mistake_is_told_with_its_remedy_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(roobench.RunError, match=r"^unknown method 'pdl', did you mean 'pld'\?") as raised:
        roobench.run("pdl")
    assert (raised.value.status, raised.value.folder) == (2, None)
    assert "error: unknown method 'pdl'" in capsys.readouterr().err
    with pytest.raises(roobench.RunError, match="unrecognized arguments: --lmit=1"):
        roobench.run("pld", lmit=1)
    assert not list(tmp_path.iterdir())


def test_a_method_that_fails_in_every_question_is_an_error_that_names_the_records(
    small, tmp_path, monkeypatch, give_kernels
):
    monkeypatch.setenv("ROOBENCH_CACHE", give_kernels(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "failing.py").write_text(
        "from bench.drafting.method import Draft, TextMethod\n"
        "class Failing(TextMethod):\n"
        "    warm = False\n"
        "    def forget(self):\n"
        "        self.warm = True\n"
        "    def propose_text(self, context, budget):\n"
        "        if self.warm:\n"
        "            raise ValueError('on purpose')\n"
        "        return Draft([])\n"
    )
    info = tmp_path / "failing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[roobench.methods]\nfailing = failing:Failing\n")
    with pytest.raises(roobench.RunError, match=r"^failing failed in every question, .*: on purpose") as raised:
        roobench.run("failing", peer="none", out=tmp_path / "out", **small)
    assert raised.value.status == 1
    assert list(roobench.Summary.load(raised.value.folder).data["failed_methods"]) == ["failing"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("[]", "list indices"),
        ("{", "Expecting property name"),
        ("{}", "schema"),
        (json.dumps({"schema": SCHEMA + 1, "methods": {}}), f"it has schema {SCHEMA + 1}"),
    ],
)
def test_what_is_no_summary_is_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(roobench.RunError, match=rf"summary\.json \(.*{reason}.*`roobench report {tmp_path}`"):
        roobench.Summary.load(tmp_path)


def test_it_reads_the_committed_runs():
    figures = roobench.Summary.load(ROOT / "results/reference/smollm2-135m-instruct-cpu").to_pandas()
    assert len(figures) == 8 * 7
    assert figures["speedup_decode"].notna().all()


def test_settings_become_flags():
    given = {"method": ("a", "b"), "max_new_tokens": 8, "preset": None, "json": False, "odd": True, "top_p": -1}
    assert roobench._flags(given) == ["--method=a", "--method=b", "--max-new-tokens=8", "--odd", "--top-p=-1"]


def test_several_values_of_one_flag_are_all_asked_for():
    flags = roobench._flags({"peer": ["a", "b"], "batch": [1, 2], "temperatures": (0, 0.5), "tasks": ["qa", "rag"]})
    found = run_command.parser().parse_args(flags)
    assert (found.peer, found.batch, found.temperatures, found.tasks) == (["a", "b"], (1, 2), (0.0, 0.5), "qa,rag")


def test_an_interrupt_ends_the_run_which_keeps_what_it_has(small, tmp_path, give_kernels):
    """As in a notebook, where the interrupt goes to the kernel's process alone."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a shell's background
        f"import roobench; roobench.run('pld', peer='none', rounds=1000, out='out', **{small!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROOBENCH_CACHE": give_kernels(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        turns = tmp_path / "out" / TURNS_FILE
        while process.poll() is None and not (turns.is_file() and turns.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == -signal.SIGINT, said
    assert "go on with: " in said
    assert "KeyboardInterrupt" in said
    run, answered = read_records(tmp_path / "out")
    assert answered
    assert not run.complete
    assert (tmp_path / "out" / "report.html").is_file()


# --- the notebook ----------------------------------------------------------------------------------------------------


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_notebook_runs_in_a_users_folder(small, installed, tmp_path, give_kernels):
    """Every code cell in order, in a fresh process, next to a `bench.py` of the user's own."""
    sources = ["".join(cell["source"]) for cell in cells("code")]
    (at,) = (n for n, cell in enumerate(cells("code")) if "parameters" in cell["metadata"].get("tags", ()))
    sources.insert(at + 1, f"methods = ['pld', 'ngram', 'pld+ngram']\nsettings = {small!r}")
    sources += [
        "assert summary == again",
        "assert set(by_task.columns) == set(methods) and 'overall' in by_task.index and by_task.notna().all().all()",
        "import bench; assert bench.MINE",
        "import sys; assert not [name for name in sys.modules if name.split('.')[0] in ('torch', 'methods')]",
    ]
    (tmp_path / "bench.py").write_text("MINE = True\n")
    (tmp_path / "notebook.py").write_text("\n\n".join(sources))
    environment = {**os.environ, "MPLBACKEND": "agg", "ROOBENCH_CACHE": give_kernels(tmp_path / "cache")}
    command = [installed.python, "-W", "error", "notebook.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "results" / "runs") in done.stdout


def test_the_notebook_is_committed_without_output_and_runs_what_the_docs_show():
    assert not [cell for cell in cells("code") if cell["outputs"] or cell["execution_count"]]
    assert all(cell["id"] for cell in cells("code") + cells("markdown"))
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert re.search(r"\]\(\.\./examples/compare_methods\.ipynb\)", page)
