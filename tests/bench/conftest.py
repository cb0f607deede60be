"""What several tests of the bench share: a cache of their own, a packaged model without its bytes, a tiny setting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import methods
from bench.models.chat import ChatFormat
from tests import fakes
from tests.tiny import QUESTIONS, write_questions


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch):
    """What else this machine does is none of a test's business."""
    monkeypatch.setattr("bench.run.environment.psutil.cpu_percent", lambda interval: 0.0)
    monkeypatch.setattr("bench.run.cores._STAT", Path("/nonexistent"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("ROOBENCH_CACHE", str(root))
    monkeypatch.delenv("ROOBENCH_DEFAULT_WHEEL", raising=False)
    return root


@pytest.fixture
def fake_default(cache, monkeypatch):
    return fakes.fake_default(monkeypatch)


@pytest.fixture
def setting(tmp_path, cache, tiny_checkpoint, tiny_model, tiny_adapter, tiny_tokenizer, monkeypatch):
    """A model whose adapter often guesses right, three questions, an output folder; plots are only noted."""
    drawn: list[Path] = []
    monkeypatch.setattr("bench.report.figures.write_figures", lambda summary, folder: drawn.append(folder) or [])
    hf = tiny_model("tied", True)[1]
    return SimpleNamespace(
        model=tiny_checkpoint("tied", True).folder,
        hf=hf,
        kangaroo=f"kangaroo:weights={tiny_adapter(hf)},threshold=0",
        questions=write_questions(tmp_path / "questions.jsonl", *QUESTIONS),
        out=tmp_path / "out",
        chat=ChatFormat(tiny_tokenizer),
        drawn=drawn,
    )


@pytest.fixture
def add_method(monkeypatch):
    """Make a class known as a method by a name."""
    extra, load = {}, methods.load
    monkeypatch.setattr(methods, "load", lambda name: extra.get(name) or load(name))
    return extra.__setitem__
