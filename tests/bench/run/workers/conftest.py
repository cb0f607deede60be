"""What tests of workers share: one cache, because every worker is a process that would compile the kernels again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import QUESTIONS, records, run_bench, write_questions

MORE = tuple((20 + i, "qa", (f"Name {fruit}.",)) for i, fruit in enumerate(("quinces", "medlars", "lychees")))
COUNTERS = ("token_ids", "per_step_drafted", "per_step_accepted", "per_step_emitted", "per_step_depth", "prompt_digest")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory, give_kernels):
    folder = tmp_path_factory.mktemp("workers-cache")
    give_kernels(folder)
    return folder


@pytest.fixture
def cache(shared_cache, monkeypatch):
    monkeypatch.setenv("ROOBENCH_CACHE", str(shared_cache))
    monkeypatch.delenv("ROOBENCH_DEFAULT_WHEEL", raising=False)
    return shared_cache


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions") / "six.jsonl", *QUESTIONS, *MORE)


@pytest.fixture(scope="session")
def flags(tiny_model, tiny_adapter):
    """Two methods without measured costs, and two rounds."""
    kangaroo = f"kangaroo:weights={tiny_adapter(tiny_model('tied', True)[1])},threshold=0"
    return ["--method", kangaroo, "--peer", "hf-generate", "--rounds", "2", "--threads", "1"]


@pytest.fixture(scope="session")
def alone(shared_cache, tiny_checkpoint, questions, flags, tmp_path_factory):
    """The answers of one process, see `answers`."""
    out = tmp_path_factory.mktemp("alone") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOBENCH_CACHE", str(shared_cache))
        patch.setattr("bench.report.figures.write_figures", lambda summary, folder: [])
        assert run_bench(tiny_checkpoint("tied", True).folder, questions, out, *flags) == 0
    return answers(records(Path(out))[1])


def answers(turns):
    """All that must not depend on who asked, by method, question, turn and round; fails if a turn is there twice."""
    found = {(t.method, t.question_id, t.turn, t.round): [getattr(t, name) for name in COUNTERS] for t in turns}
    assert len(found) == len(turns)
    return found


@pytest.fixture(name="answers")
def _answers():
    return answers
