"""Sweeps over trainings: weights are trained once a value, and failures are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bench.figures.records import read_run
from bench.train import loop, prompts, training
from bench.train.writer import Recipe
from methods.kangaroo.training import AdapterTrainer
from tests.bench.sweep.test_sweep import loads as loads
from tests.bench.sweep.test_sweep import rows_of, run_sweep
from tests.tiny import short_prompt


@dataclass(frozen=True)
class Short(Recipe):
    batch: int = 12
    length: int = 168
    answer_tokens: int = 40


@pytest.fixture
def trained(setting, monkeypatch):
    """Sweep with small trainings; `trained.fits` notes each one's exit layer, `trained.passes` the target's passes."""
    monkeypatch.setattr(prompts, "prompt", short_prompt)
    monkeypatch.setattr(training, "Recipe", Short)
    fit, states = AdapterTrainer.fit, loop._states

    def call(*flags: str, tokens: str = "200") -> int:
        given = ["--train-tokens", tokens, "--train-epochs", "1", "--tasks", "qa", *flags]
        return run_sweep(setting, *given, method="kangaroo:stop=threshold,threshold=0")

    call.fits, call.passes = [], []
    monkeypatch.setattr(AdapterTrainer, "fit", lambda self: call.fits.append(self.config.exit_layer) or fit(self))
    monkeypatch.setattr(loop, "_states", lambda *given: call.passes.append(given[2]) or states(*given))
    return call


def test_weights_are_trained_once_a_value_and_not_again(trained, setting, capsys):
    grid = ("--grid", "train.exit_layer=1,3", "--grid", "gamma=1,2", "--grid", "train.draft_vocab=0")
    assert trained(*grid) == 0
    assert trained.fits == [1, 3]
    assert trained.passes == [["final", 1, 3]]  # one pass of the target for both
    run, rows = read_run(setting.out), rows_of(setting.out)
    for row in rows:
        config = run.methods[row["label"]].config
        assert (config["exit_layer"], config["gamma"]) == (int(row["train.exit_layer"]), int(row["gamma"]))
        assert row["label"].startswith(f"kangaroo:stop=threshold,threshold=0,weights={setting.out}/weights/exit_layer=")
        card = (Path(config["weights"]) / "README.md").read_text()
        header, *cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
        assert row["agreement"] == str(float(cells[-1][header.index("agreement")]))
    assert len({row["agreement"] for row in rows}) > 1
    assert "| agreement |" in (setting.out / "sweep.md").read_text()
    assert trained(*grid) == 0
    assert trained.fits == [1, 3]
    assert "lie in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", [torch.float32]), ("bfloat16", [torch.float32, torch.bfloat16])]
)
def test_trainings_share_one_model_with_the_run_if_it_is_in_float32(trained, setting, loads, dtype, expected):
    assert trained("--grid", "train.exit_layer=9,1,2", "--dtype", dtype) == 1
    assert loads == expected
    assert trained.fits == [1, 2]
    assert read_run(setting.out).dtype == dtype


def test_a_mistake_in_the_questions_is_told_before_anything_is_trained(trained, setting, capsys):
    assert trained("--grid", "train.exit_layer=1", "--questions", "absent.jsonl") == 2
    assert "questions 'absent.jsonl' cannot be read" in capsys.readouterr().err
    assert trained.fits == []


def test_weights_that_were_trained_otherwise_are_not_taken(trained, capsys):
    assert trained("--grid", "train.exit_layer=1") == 0
    assert trained("--grid", "train.exit_layer=1", tokens="201") == 2
    assert "exit_layer=1 was trained with tokens 200, not 201: choose another folder" in capsys.readouterr().err
    assert trained.fits == [1]


def test_an_interrupted_sweep_goes_on(trained, setting, monkeypatch):
    fit = AdapterTrainer.fit

    def interrupted(self):
        if self.config.exit_layer == 2:
            raise KeyboardInterrupt
        return fit(self)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "fit", interrupted)
        assert trained("--grid", "train.exit_layer=1,2") == 130
    assert trained.fits == [1]
    assert trained("--grid", "train.exit_layer=1,2") == 0
    assert trained.fits == [1, 2]
    assert [row["train.exit_layer"] for row in rows_of(setting.out)] == ["1", "2"]


def test_a_training_that_fails_is_told_and_the_others_go_on(trained, setting, capsys):
    assert trained("--grid", "train.exit_layer=9,1") == 1
    assert trained.fits == [1]
    failed, fine = rows_of(setting.out)
    assert failed["failure"].startswith("training failed: --exit-layer 9 must be in 1..3 for ")
    assert (fine["failure"], fine["audited"]) == ("", "1")
    assert "left out" in capsys.readouterr().err
