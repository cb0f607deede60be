"""The summary's schema, and what it says besides figures."""

from __future__ import annotations

import json

import pytest

from bench.errors import UserError
from tests.bench.figures.test_metrics import CELL_KEYS, SPEEDUPS, make_run, summarized
from tests.bench.figures.test_metrics import turns as turns


def test_the_summary_has_the_schema_that_readers_rely_on(turns):
    run = make_run(kangaroo="method")
    run.complete = False
    summary = summarized(run, turns)
    json.dumps(summary, allow_nan=False)
    assert set(summary) == {
        "schema",
        "run_id",
        "model",
        "dataset",
        "device",
        "dtype",
        "activations",
        "sampling",
        "complete",
        "rounds",
        "statistics",
        "excluded_questions",
        "failed_methods",
        "against",
        "hindsight",
        "axis",
        "batches",
        "crossovers",
        "beside",
        "failed",
        "divergences",
        "busy_turns",
        "outliers",
        "methods",
        "workers",
        "worker_differences",
    }
    assert summary["schema"] == 1
    assert summary["model"] == "tiny"
    assert summary["dataset"] == {"name": "mini", "sha256": "cd", "questions": 3, "max_new_tokens": None}
    assert summary["device"].items() >= {"type": "cpu", "name": "a CPU", "threads": 2}.items()
    assert summary["complete"] is False
    assert set(summary["statistics"]) == {"interval", "resamples", "method", "cluster", "strata"}
    assert (summary["statistics"]["interval"], summary["statistics"]["resamples"] >= 2000) == (0.95, True)
    assert (summary["statistics"]["cluster"], summary["statistics"]["strata"]) == ("question", "task")
    entry = summary["methods"]["kangaroo"]
    assert set(entry) == {
        "kind",
        "label",
        "lossless",
        "extra_parameters",
        "notes",
        "answered",
        "tasks",
        "members",
        "family",
    }
    assert entry["answered"] == {"questions": 3, "of": 3}
    assert (entry["kind"], entry["lossless"], entry["extra_parameters"]) == ("method", True, 7)
    assert list(entry["tasks"]) == ["translation", "qa", "overall"]
    for name in summary["methods"]:
        for figures in summary["methods"][name]["tasks"].values():
            assert set(figures) == CELL_KEYS
            assert all(set(figures[key]) == {"value", "low", "high"} for key in SPEEDUPS)


@pytest.mark.parametrize("config", [{}, {"temperature": 0.0, "top_p": 1.0, "top_k": 0}])
def test_a_run_without_a_temperature_is_greedy(turns, config):
    run = make_run(kangaroo="method")
    run.config = config  # older runs recorded none of these
    assert summarized(run, turns)["sampling"] is None


def test_the_summary_says_how_tokens_were_sampled(turns):
    run = make_run(kangaroo="method")
    run.config = {"temperature": 0.7, "top_p": 0.8, "top_k": 50, "seed": 3}
    assert summarized(run, turns)["sampling"] == {"temperature": 0.7, "top_p": 0.8, "top_k": 50}


def test_the_summary_carries_what_a_method_says_of_itself(turns):
    run = make_run(kangaroo="method")
    run.methods["kangaroo"].notes["predicted"] = {"tree": {"speedup": 1.5}}
    methods = summarized(run, turns)["methods"]
    assert methods["kangaroo"]["notes"] == {"predicted": {"tree": {"speedup": 1.5}}}
    assert methods["vanilla"]["notes"] == {}


def test_a_run_without_vanilla_cannot_be_summarised(turns):
    run = make_run(kangaroo="method")
    del run.methods["vanilla"]
    with pytest.raises(UserError, match="r1 has no vanilla"):
        summarized(run, turns)
