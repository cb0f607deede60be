"""Methods by name: spelling, errors that help, lazy import, and what is found next to them."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import methods
from bench.drafting.method import Peer, SpeculativeMethod
from bench.errors import UserError
from methods.kangaroo.method import Kangaroo, KangarooConfig
from methods.vanilla import Vanilla

ROOT = Path(__file__).parents[2]
PLUGIN = """
from dataclasses import dataclass

from bench.drafting.method import SpeculativeMethod
from bench.drafting.sequence import Draft


@dataclass(frozen=True)
class Config:
    sure: bool = False
    path: str | None = None
    rate: float | None = None


class Mine(SpeculativeMethod):
    Config = Config

    def propose(self, room):
        return Draft([])
"""


def refused(text: str) -> str:
    with pytest.raises(UserError) as refusal:
        methods.parse(text)
    return str(refusal.value)


def test_every_file_is_a_method():
    assert {"vanilla", "kangaroo", "hf-generate"} <= set(methods.names())
    assert methods.names() == sorted(methods.names())
    assert not {"adapter", "method", "training", "__init__", "weights", "trees"} & {*methods.names()}


@pytest.mark.parametrize("name", methods.names())
def test_every_method_can_be_loaded_and_says_its_knobs(name):
    method = methods.load(name)
    assert method is methods.load(name)
    assert methods.parse(name) == methods.Variant(name, (name,), method.Config())
    assert methods.parse(name).method is method
    for knob, default, text in methods.knobs(method):
        assert getattr(method.Config(), knob) == default
        assert text, f"{knob} has no help"


def test_knobs_are_read_by_their_types():
    text = "kangaroo:gamma=4,threshold=0,weights=a=b/c,draft_vocab=-1,exit_layer=2"
    variant = methods.parse(text)
    assert variant.label == text
    assert variant.method is Kangaroo
    assert variant.config == KangarooConfig(exit_layer=2, gamma=4, threshold=0.0, draft_vocab=-1, weights="a=b/c")
    assert type(variant.config.threshold) is float
    assert type(variant.config.gamma) is int


@pytest.mark.parametrize("folder", ["out/exit_layer=1+draft_vocab=0", "c++/adapters"])
def test_a_plus_within_a_knob_composes_nothing(folder):
    assert methods.parse(f"kangaroo:weights={folder},gamma=1").config == KangarooConfig(weights=folder, gamma=1)


def test_a_preset_sets_several_knobs_and_later_ones_win():
    paper = methods.parse("kangaroo:paper").config
    assert (paper.gamma, paper.stop, paper.threshold, paper.draft_vocab) == (6, "threshold", 0.6, 0)
    assert methods.parse("kangaroo:paper,gamma=4").config == dataclasses.replace(paper, gamma=4)
    assert "paper" in refused("kangaroo:papr")


@pytest.mark.parametrize("text", ["vanilla", "vanilla:"])
def test_a_method_may_be_named_alone(text):
    assert methods.parse(text) == methods.Variant(text, ("vanilla",), Vanilla.Config())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kangaro", ["'kangaro'", "did you mean 'kangaroo'?", "available: ", "vanilla"]),
        ("hf_generate", ["did you mean 'hf-generate'?"]),
        ("xyz", ["unknown method 'xyz'; available"]),
        ("", ["unknown method ''"]),
        ("base", ["unknown method 'base'"]),
        ("kangaroo:gama=4", ["'gama=4'", "did you mean 'gamma'?", "threshold"]),
        ("kangaroo:gamma", ["no knob 'gamma'", "key=value"]),
        ("kangaroo:=3", ["no knob '=3'"]),
        ("vanilla:gamma=4", ["'gamma=4'", "it has none"]),
        ("kangaroo:gamma=four", ["gamma='four'", "int"]),
        ("kangaroo:gamma=1.5", ["gamma='1.5'", "int"]),
        ("kangaroo:gamma=", ["gamma=''", "int"]),
        ("kangaroo:threshold=high", ["threshold='high'", "float"]),
        ("kangaroo:gamma=-1", ["'kangaroo:gamma=-1'", "gamma=-1", "at least 1"]),
        ("kangaroo:stop=early", ["stop=early", "gain or threshold"]),
        ("kangaroo:costs=1/2", ["costs='1/2'", "shallow/draft/1:verify/2:verify"]),
        ("kangaroo:beam=-1", ["beam=-1", "at least 1"]),
        ("kangaroo:nodes=0", ["nodes=0", "1..127"]),
        ("kangaroo:nodes=128", ["nodes=128", "1..127"]),
        ("kangaroo:drafts=best", ["drafts=best", "sampled or top"]),
        ("kangaroo:drafts=sampled,beam=2", ["drafts=sampled is for a chain"]),
        ("kangaroo:threshold=1.01", ["threshold=1.01", "[0, 1]"]),
        ("kangaroo:threshold=-0.1", ["threshold=-0.1", "[0, 1]"]),
        ("kangaroo:threshold=nan", ["threshold=nan", "[0, 1]"]),
        ("kangaroo:exit_layer=-1", ["exit_layer=-1"]),
        ("kangaroo:draft_vocab=-2", ["draft_vocab=-2", "at least -1"]),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(text, named):
    said = refused(text)
    for words in named:
        assert words in said


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package that registers a method called `mine`."""
    (tmp_path / "mine_package.py").write_text(PLUGIN)
    info = tmp_path / "mine_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[roobench.methods]\nmine = mine_package:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine_package", None)


def test_a_package_outside_registers_by_its_entry_point(plugin):
    assert "mine" in methods.names()
    assert "mine_package" not in sys.modules
    assert "mine" in refused("min")
    variant = methods.parse("mine:sure=true,rate=0.5,path=x")
    assert variant.method.__module__ == "mine_package"
    assert (variant.config.sure, variant.config.rate, variant.config.path) == (True, 0.5, "x")


def test_a_package_outside_cannot_take_the_name_of_a_built_in_method(plugin, tmp_path):
    info = tmp_path / "mine_package-1.0.dist-info" / "entry_points.txt"
    info.write_text("[roobench.methods]\nvanilla = mine_package:Mine\n")
    importlib.invalidate_caches()
    said = refused("vanilla")
    assert "'mine_package:Mine'" in said
    assert "built-in method, 'vanilla'" in said


@pytest.mark.parametrize(("spelled", "value"), [("1", True), ("True", True), ("0", False), ("FALSE", False)])
def test_a_switch_has_four_spellings(spelled, value, plugin):
    assert methods.parse(f"mine:sure={spelled}").config.sure is value


def test_any_other_spelling_of_a_switch_is_refused(plugin):
    assert "sure='yes' is not of type bool" in refused("mine:sure=yes")


@pytest.mark.parametrize(
    ("source", "listed"),
    [
        ("from methods.vanilla import Vanilla", "none"),
        ("from bench.drafting.method import Method\nclass Idle(Method): pass", "none"),
        ("from methods.vanilla import Vanilla\nclass A(Vanilla): pass\nclass B(Vanilla): pass", "A, B"),
    ],
    ids=["imported", "abstract", "two"],
)
def test_a_file_must_define_exactly_one_method(source, listed):
    module = ModuleType("odd")
    exec(source, vars(module))
    with pytest.raises(UserError, match=f"odd must define exactly one method, but defines {listed}"):
        methods.only_in(module, SpeculativeMethod | Peer, "method")


def test_names_are_found_without_importing_anything():
    code = (
        "import sys, methods\n"
        "names = methods.names()\n"
        "heavy = {'torch', 'transformers'}\n"
        "loaded = {m for m in sys.modules if m in heavy or m.startswith('methods.')}\n"
        "assert 'kangaroo' in names and not loaded, loaded\n"
        "methods.load('vanilla')\n"
        "assert 'methods.vanilla' in sys.modules and 'methods.kangaroo.method' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
