"""Trainers are found next to their methods, here and in packages outside, and each brings its own settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

import methods
from bench.cli import main
from bench.errors import UserError
from bench.sweep import grid
from bench.train import training
from methods.eagle.training import HeadTrainer
from methods.eagle3.training import Head3Trainer
from methods.kangaroo.training import AdapterTrainer
from methods.medusa.training import HeadsTrainer
from tests.bench.train.test_kangaroo_training import FLAGS, Short

METHOD = """
from dataclasses import dataclass

from bench.drafting.method import Draft, TextMethod


@dataclass(frozen=True)
class LensConfig:
    weights: str = ""


class Lens(TextMethod):
    Config = LensConfig

    def propose_text(self, context, budget):
        return Draft([])
"""
TRAINING = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bench.config import setting
from bench.train_config import TrainConfig
from bench.train.training import Trainer


@dataclass(frozen=True)
class LensTraining(TrainConfig):
    """How to train the lens."""

    scale: float = setting(1.0, "what states are multiplied with", metavar="X")

    @property
    def form(self):
        return "" if self.scale == 1 else "scaled"


class LensTrainer(Trainer):
    Config = LensTraining
    title = "Lens"
    loss_text = "cross-entropy"
    scores_text = "nothing of worth."

    def __init__(self, target, config, *given):
        super().__init__(target, config, *given)
        self.module = torch.nn.Linear(target.config.hidden, target.config.hidden)

    @classmethod
    def taps(cls, config, target):
        return (1,)

    def loss(self, indices):
        batch = self.found.batch(indices)
        logits = self.module(batch.taps[1] * self.config.scale)[batch.taught] @ self.head.T
        return F.cross_entropy(logits, batch.tokens.roll(-1, 1)[batch.taught].long())

    def scores(self, indices):
        return {"agreement": 0.5}

    def save(self, folder):
        save_file(self.module.state_dict(), folder / "lens.safetensors")

    def describe(self):
        return "a matrix"
'''


@pytest.fixture
def lens(tmp_path, monkeypatch):
    """An installed package with a method called `lens` and its training."""
    package = tmp_path / "site" / "lens_package"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("method", METHOD), ("training", TRAINING)):
        (package / f"{name}.py").write_text(text)
    info = tmp_path / "site" / "lens_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lens-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[roobench.methods]\nlens = lens_package.method:Lens\n")
    monkeypatch.syspath_prepend(str(package.parent))
    yield
    for name in [name for name in sys.modules if name.startswith("lens_package")]:
        del sys.modules[name]


def test_trained_methods_are_found_without_importing_them():
    code = (
        "import sys, methods\n"
        "assert methods.trained() == ['eagle', 'eagle3', 'kangaroo', 'medusa']\n"
        "assert not {'torch', 'methods.kangaroo.method', 'methods.kangaroo.training'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert training.trainer_of("eagle") is HeadTrainer
    assert training.trainer_of("eagle3") is Head3Trainer
    assert training.trainer_of("kangaroo") is AdapterTrainer
    assert training.trainer_of("medusa") is HeadsTrainer


def test_a_method_outside_is_trained_like_any_other(lens, setting, short_prompts, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(training, "Recipe", Short)
    monkeypatch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", tmp_path / "weights")
    assert methods.trained() == ["eagle", "eagle3", "kangaroo", "lens", "medusa"]
    assert not [name for name in sys.modules if name.startswith("lens_package.")]
    for flags in ([], ["--scale", "0.5"]):
        assert main(["train", "lens", "--model", str(setting.model), *FLAGS, *flags]) == 0
    folders = sorted((tmp_path / "weights").glob("*/*"))
    assert [folder.name for folder in folders] == ["lens", "lens-scaled"]
    assert {path.name for path in folders[1].iterdir()} >= {"README.md", "lens.safetensors"}
    assert "scale 0.5" in (folders[1] / "README.md").read_text()
    for command in (["train", "--help"], ["train", "lens", "--help"]):
        with pytest.raises(SystemExit):
            main(command)
    text = capsys.readouterr().out
    assert "train the weights of lens" in text
    assert "what states are multiplied with (default: 1.0)" in text


def test_a_sweep_takes_the_settings_of_a_training_outside(lens, tmp_path):
    _, planned = grid.plan("lens", ["train.scale=1,2"], tmp_path, {})
    assert [variant.training.scale for variant in planned] == [1.0, 2.0]
    assert type(planned[0].training) is training.trainer_of("lens").Config


def test_a_module_without_a_trainer_is_told(monkeypatch):
    monkeypatch.setattr(methods, "training_module", lambda name: "tests.tiny")
    with pytest.raises(UserError, match=r"tests\.tiny must define exactly one trainer, but defines none"):
        training.trainer_of("kangaroo")
