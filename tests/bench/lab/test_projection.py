"""Projections: acceptance over timings, by hand; bounds where a paper is silent; and never called a measurement."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.cli import main
from bench.lab import batch_projection
from bench.lab.projection import Shape, Timings, project
from tests.tiny import run_bench

ENGINE = {
    "model": "vicuna-7b", "random_weights": True, "parameters": 6_738_415_616, "dtype": "bfloat16",
    "device": {"type": "cuda", "name": "a GPU", "threads": 4}, "engine": {"weights": "plain"}, "warnings": [],
    "peak_bytes": 2**34, "passes": {"1": 10.0, "2": 10.0, "4": 12.0, "8": 20.0},
    "drafts": {"1": 0.5, "2": 1.0, "4": 2.0}, "drafters": {"kangaroo": 0.4, "medusa": 1.5},
    "published": {
        "kangaroo": {"what": "an adapter", "drafts": 6, "exit_layer": 2, "call_per_draft": True},
        "medusa": {"what": "heads", "drafts": 4, "exit_layer": 0, "call_per_draft": False},
    },
}  # fmt: skip
PAPER = {
    "schema": 1, "source": "a paper", "citation": "c", "url": "u", "benchmark": "b", "definitions": {},
    "ablations": [], "notes": [],
    "results": [
        {
            "method": method, "label": method.title(), "model": "Vicuna-7B", "hardware": "h", "settings": "",
            "knobs": knobs,
            "speedup": {"overall": 1.5}, "compression_rate": {"overall": 2.0}, "ctar": {},
        }
        for method, knobs in (("kangaroo", {"exit_layer": 4, "gamma": 3}), ("medusa", {}), ("rest", {}))
    ],
}  # fmt: skip


@pytest.fixture
def paper(tmp_path):
    path = tmp_path / "paper.json"
    path.write_text(json.dumps(PAPER))
    return path


@pytest.fixture
def engine_file(tmp_path):
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(ENGINE))
    return str(path)


def test_a_step_costs_what_its_parts_do():
    timings = Timings.of(ENGINE)
    # Two drafts: three passes below the exit, two calls, and the layers above it over three positions (11 ms in all).
    assert timings.step_ms("kangaroo", Shape(2, 2, 2), 2) == pytest.approx(3 * 1.0 + 2 * 0.4 + 11 * 0.9)
    assert timings.step_ms("medusa", Shape(3, 3, 1), 0) == pytest.approx(1.5 + 12)


def test_a_papers_kangaroo_lies_between_no_draft_in_vain_and_gamma_drafts(paper):
    kangaroo, medusa = project(ENGINE, [paper])  # nothing of REST is known but its rate
    assert kangaroo["method"] == "Kangaroo"
    least = 2 * 10 / (2 * 2.0 + 1 * 0.4 + 10 * 0.8)  # CR 2: a draft a step at least
    most = 2 * 10 / (4 * 2.0 + 3 * 0.4 + 12 * 0.8)
    assert kangaroo["projected"] == pytest.approx([most, least])
    assert kangaroo["published"] == 1.5
    assert medusa["projected"] == pytest.approx([2 * 10 / (1.5 + 14)] * 2)


def test_any_method_whose_draft_model_was_timed_is_projected(paper):
    form = {"what": "a datastore", "drafts": 3, "exit_layer": 0, "call_per_draft": False}
    engine = {**ENGINE, "drafters": {"rest": 2.0}, "published": {"rest": form}}
    (rest,) = project(engine, [paper])
    assert rest["projected"] == pytest.approx([2 * 10 / (2.0 + 12)] * 2)
    assert rest["assumed"] == "a chain of 3 drafts"


def test_of_a_run_every_step_counts(setting, tmp_path):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    (row,) = project(ENGINE, [setting.out])
    assert row["method"] == setting.kangaroo
    assert row["projected"][0] == row["projected"][1] > 0
    assert row["compression_rate"] >= 1
    assert row["published"] is None


def test_the_page_says_that_nothing_was_measured(paper, tmp_path, capsys):
    engine, out = tmp_path / "engine.json", tmp_path / "projection.json"
    engine.write_text(json.dumps(ENGINE))
    assert main(["project", "--engine", str(engine), "--acceptance", str(paper), "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "PROJECTED speedup" in told
    assert "PROJECTION, not a measurement" in told
    assert len(json.loads(out.read_text())["projection"]) == 2


def test_the_papers_own_file_can_be_projected_for_both_sizes():
    from bench.figures.published import PUBLISHED

    for model in ("vicuna-7b", "vicuna-13b"):
        rows = project({**ENGINE, "model": model}, [PUBLISHED / "kangaroo_paper.json"])
        assert {row["method"] for row in rows} == {"Kangaroo", "Medusa"}
        assert all(model in row["source"].lower() for row in rows)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not what bench-engine --json writes"),
        (json.dumps(ENGINE | {"passes": {}}), "passes: Dictionary should have at least 1 item"),
        (json.dumps(ENGINE | {"passes": {"2": 1.0}}), "passes.1: missing"),
        (json.dumps(ENGINE | {"passes": {"one": 1.0}}), "passes.one"),
        (json.dumps(ENGINE | {"drafts": {"1": -1.0}}), "drafts.1: Input should be greater than 0, not -1.0"),
        (json.dumps(ENGINE | {"drafters": {}}), "drafters.kangaroo: missing"),
        (json.dumps(ENGINE | {"moon": 1}), "moon: Extra inputs are not permitted"),
    ],
)
def test_mistakes_are_told_in_a_sentence(content, told, tmp_path, capsys):
    (tmp_path / "engine.json").write_text(content)
    assert main(["project", "--engine", str(tmp_path / "engine.json")]) == 2
    assert told in capsys.readouterr().err


def test_a_source_without_a_known_method_is_refused(tmp_path, capsys):
    (tmp_path / "engine.json").write_text(json.dumps(ENGINE))
    (tmp_path / "paper.json").write_text(json.dumps({**PAPER, "results": PAPER["results"][2:]}))
    arguments = ["--engine", str(tmp_path / "engine.json"), "--acceptance", str(tmp_path / "paper.json")]
    assert main(["project", *arguments]) == 2
    assert "no acceptance of kangaroo or medusa" in capsys.readouterr().err


def test_steps_in_a_batch_cost_what_all_their_rows_do():
    steps = np.array([[3.0, 2.0, 2.0, 2.0]] * 10)  # three rows, two calls and two tokens, always
    costs = {"shallow": 0.0, "draft": 0.1, "verify": {"1": 0.9}, "rest": 0.05}
    passes = {1: 10.0, 4: 10.0, 8: 20.0, 16: 40.0}
    assert batch_projection._speedup(steps, costs, passes, 1) == pytest.approx(2 / (0.9 + 0.2 + 0.05))
    assert batch_projection._speedup(steps, costs, passes, 4) == pytest.approx(2 / (0.9 * 30 / 10 + 0.25))  # 12 rows
    assert batch_projection._speedup(steps, costs, passes, 8) == pytest.approx(2 / (0.9 * 60 / 20 + 0.25))  # beyond 16


def test_a_runs_batches_are_projected_beside_what_was_measured(setting, engine_file, capsys):
    flags = ["--method", "pld", "--batch", "1,2"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    asked = ["project", "--engine", engine_file, "--acceptance", str(setting.out), "--batch", "1,2,4"]
    capsys.readouterr()
    assert main([*asked, "--json", str(setting.out / "projected.json")]) == 0
    shown = capsys.readouterr().out
    assert "PROJECTED at batch 4" in shown
    (row,) = json.loads((setting.out / "projected.json").read_text())["projection"]
    assert row["method"] == "pld"
    assert list(row["projected"]) == ["1", "2", "4"]
    assert row["measured"]["2"] > 0
    assert row["measured"]["4"] is None


def test_batches_are_projected_of_runs_alone(engine_file, capsys):
    assert main(["project", "--engine", engine_file, "--batch", "2"]) == 2
    assert "--acceptance" in capsys.readouterr().err
