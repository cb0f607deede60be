"""index.json: an entry for each run and method, made of the records; the committed one is up to date."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import UserError
from bench.figures.facts import is_dirty
from bench.figures.index import read_index
from bench.figures.plausible import runs_below
from bench.figures.records import Run, Turn
from bench.figures.summary import base_of
from tests import html_runs, site_runs
from tests.bench.figures.test_compare import some_turns
from tests.site_runs import BATCHED, ELSEWHERE, NEW, OLD

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "results" / "index.json"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    site_runs.write_all(folder / "runs")
    (folder / "runs" / "new" / "report.md").write_text("# A report\n")
    assert main(["publish", "--index", str(folder / "runs"), "--out", str(folder)]) == 0
    return folder / "index.json"


def entry(path: Path, run_id: str, method: str):
    (found,) = [one for one in read_index(path).entries if (one.run_id, one.method) == (run_id, method)]
    return found


def test_there_is_an_entry_for_each_run_and_method_newest_run_first(index):
    found = [(one.run_id, one.method) for one in read_index(index).entries]
    two = ["vanilla", "kangaroo"]
    others = ["vanilla", html_runs.KANGAROO, html_runs.LOSSY, html_runs.PEER, site_runs.HOSTILE]
    expected = {BATCHED: two, NEW: two, OLD: two, ELSEWHERE: others}
    assert found == [(run_id, method) for run_id, names in expected.items() for method in names]


def test_an_entry_says_what_was_measured_where_and_how_fast(index):
    found = entry(index, NEW, "kangaroo")
    assert (found.commit, found.dirty, found.date) == ("2" * 40, False, "2026-11-02T10:00:00+00:00")
    assert found.model.name == "smollm2-135m-instruct"
    assert found.model.sha256.startswith("3d45d530")
    assert (found.machine.name, found.machine.cores, found.machine.read_gb_per_s) == ("a CPU", 2, 40.0)
    assert (found.dtype, found.threads, found.rounds, found.sampling) == ("float32", 2, 1, "")
    assert (found.questions.name, found.questions.asked, found.questions.max_new_tokens) == ("mini", 12, 9)
    # Four steps of two tokens at 1.2 seconds against eight of one.
    assert found.speedup.value == pytest.approx(2 / 1.2, rel=0.01)
    assert found.speedup.low < found.speedup.value < found.speedup.high
    assert found.compression_rate == 2
    assert found.tok_per_s == pytest.approx(found.tok_per_s_vanilla * found.speedup.value, rel=0.01)
    assert found.lossless == {"identical": 12, "numerical": 0, "different": 0}
    assert set(found.tasks) == {"qa", "rag"}
    assert found.tasks["qa"].speedup.value == pytest.approx(2 / 1.2, rel=0.01)
    assert found.problems == []


@pytest.mark.parametrize(
    ("begun", "later", "known"),
    [(False, False, False), (False, True, True), (True, False, True), (None, False, None), (None, True, True)],
)
def test_a_run_is_dirty_if_any_of_its_sessions_was(begun, later, known):
    sessions = [{"dirty": begun}, {"dirty": later}]
    assert is_dirty({"dirty": begun, "sessions": sessions}) is known


def test_a_session_that_was_dirty_is_told_by_the_index(tmp_path):
    run, turns = site_runs.older()
    run.provenance = {**run.provenance, "sessions": [{"dirty": False}, {"dirty": True}]}
    site_runs.write_run(tmp_path / "run", run, turns)
    assert main(["publish", "--index", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert entry(tmp_path / "index.json", OLD, "kangaroo").dirty is True


def test_knobs_are_those_that_ran_without_measured_costs(index):
    assert entry(index, ELSEWHERE, site_runs.HOSTILE).knobs == {"tokens": 3}


def test_a_lossy_method_claims_nothing_and_a_tie_is_counted(index):
    assert entry(index, ELSEWHERE, html_runs.LOSSY).lossless is None
    assert not entry(index, ELSEWHERE, html_runs.LOSSY).claims_lossless
    assert entry(index, ELSEWHERE, html_runs.KANGAROO).lossless == {"identical": 11, "numerical": 1, "different": 0}


def test_batches_and_their_crossover_are_there(index):
    found = entry(index, BATCHED, "kangaroo")
    assert [cell.batch for cell in found.batches] == [1, 2, 4]
    assert [cell.speedup.value for cell in found.batches] == pytest.approx([2 / 1.2, 2 / 1.6, 2 / 2.4], abs=1e-3)
    assert 2 < found.crossover < 4
    assert found.batches[0].predicted == pytest.approx(found.batches[1].predicted)
    assert entry(index, NEW, "kangaroo").batches == []


def test_a_report_is_named_where_it_is_and_only_then(index):
    assert entry(index, NEW, "kangaroo").report == "runs/new/report.md"
    assert entry(index, OLD, "kangaroo").report is None


def test_what_the_checks_find_is_told(index):
    assert any("uncommitted changes" in sentence for sentence in entry(index, ELSEWHERE, "vanilla").problems)


def setting_of(folder: Path, run: Run, turns: list[Turn]):
    site_runs.write_run(folder / run.run_id, run, turns)
    assert main(["publish", "--index", str(folder / run.run_id), "--out", str(folder)]) == 0
    return entry(folder / "index.json", run.run_id, "kangaroo").setting


def test_runs_that_asked_other_questions_are_of_other_settings(tmp_path):
    """The file's digest and the count of questions are the same in all of them."""
    run, turns = site_runs.plausible(), some_turns(0)
    as_is = setting_of(tmp_path, run, turns)
    assert setting_of(tmp_path, site_runs.plausible("again"), some_turns(1)) == as_is
    others = {
        "seed": [dataclasses.replace(turn, question_id=turn.question_id + 40) for turn in turns],
        "tasks": [dataclasses.replace(turn, task="other") for turn in turns],
        "interrupted": turns[:-4],
        "failed": [*turns[:-1], dataclasses.replace(turns[-1], error="no")],
    }
    settings = [setting_of(tmp_path, site_runs.plausible(name), changed) for name, changed in others.items()]
    for lengths in ([256, 512], [512, 1024]):
        run = site_runs.plausible(f"at-{lengths[0]}")
        run.config = {**run.config, "prompt_lengths": lengths}
        padded = [dataclasses.replace(turn, at=float(at)) for at in lengths for turn in turns]
        settings.append(setting_of(tmp_path, run, padded))
    assert len({as_is, *settings}) == 7


def test_an_entry_is_a_line(index):
    lines = index.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(read_index(index).entries) + 2
    assert json.loads(lines[1].rstrip(","))["run_id"] == BATCHED


def test_two_runs_of_one_id_are_refused(tmp_path, capsys):
    for name in ("a", "b"):
        site_runs.write_run(tmp_path / name, *site_runs.older())
    assert main(["publish", "--index", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert f"are both run {OLD}: leave one of them out" in capsys.readouterr().err
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1, "entries": []}', '{"schema": 2, "entries": [{}]}'])
def test_another_file_is_no_index(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"is no index of runs .*: write it with `publish --index`"):
        read_index(tmp_path / "index.json")


@pytest.mark.parametrize(
    ("method", "base"), [("a", "a"), ("a:b", "a"), ("a:x=1,y=2", "a"), ("a+b:tree", "a+b"), ("a:x=1+b:y=2", "a+b")]
)
def test_the_base_of_a_method_is_its_name(method, base):
    assert base_of(method) == base


def test_the_committed_index_is_up_to_date(tmp_path, monkeypatch):
    """Figures may differ in their last digit: intervals are computed by other processors too."""
    monkeypatch.chdir(ROOT)
    assert main(["publish", "--index", "--out", str(tmp_path)]) == 0
    made, committed = (json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "index.json", COMMITTED))
    again = "run `publish --index --out results`"
    assert len(made["entries"]) == len(committed["entries"]), again
    for new, old in zip(made["entries"], committed["entries"], strict=True):
        assert new["report"].endswith(old["report"]), again
        assert alike(new | {"report": None}, old | {"report": None}), f"{old['run_id']}, {old['method']}: {again}"
        assert (ROOT / "results" / old["report"]).is_file()


def alike(a, b) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, abs=3e-4)
    return bool(a == b)


def test_every_published_run_of_the_project_is_in_the_index():
    known = {one.run_id for one in read_index(COMMITTED).entries}
    folders = runs_below([ROOT / "results" / "reference"])
    assert {json.loads((folder / "run.json").read_text())["run_id"] for folder in folders} <= known
