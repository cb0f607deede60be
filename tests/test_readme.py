"""The pages' example methods work as printed: found by name, lossless, and they do draft."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import methods
from bench.cli import main
from bench.drafting.loop import decode
from bench.errors import UserError
from bench.figures.summary import read_summary
from bench.train import prompts, training
from tests.bench.train.test_kangaroo_training import FLAGS, Short
from tests.methods.test_distribution import LEVEL, MODES, exact, p_value, sampled
from tests.methods.test_distribution import target as target
from tests.pages import example
from tests.tiny import ONE_TURN, records, run_bench, short_prompt, write_questions


@pytest.fixture
def echo_installed(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(example("echo"), encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield
    sys.modules.pop("methods.echo", None)


def test_example_is_not_part_of_the_project():
    with pytest.raises(UserError, match="unknown method 'echo'"):
        methods.load("echo")


def test_one_new_file_adds_a_method(echo_installed):
    assert "echo" in methods.names()
    variant = methods.parse("echo:ngram=3")
    assert variant.config.ngram == 3
    assert variant.config.length == 4
    assert [knob for knob, _, _ in methods.knobs(variant.method)] == ["ngram", "length"]


def test_its_output_is_transformers_own(echo_installed, tiny_model, tiny_decoder, hf_greedy, random_ids):
    config, model = tiny_model("tied")
    variant = methods.parse("echo")
    method = variant.method(tiny_decoder(config, model), variant.config)
    block = random_ids(12)
    prompt = block * 3  # the newest tokens stand earlier in the text, so that there is something to echo
    answer = decode(method, prompt, 24, frozenset())
    assert answer.token_ids == hf_greedy(model, prompt, 24)
    assert sum(step.drafted for step in answer.steps) > 0


# --- a method that is trained, in the project and in a package of its own --------------------------------------------


@pytest.fixture(params=["methods", "package"])
def linear_installed(request, tmp_path, monkeypatch):
    """The trained example as a folder in `methods/`, or as an installed package."""
    where = "linear" if request.param == "methods" else "linear_package"
    (tmp_path / "site" / where).mkdir(parents=True)
    for part in ("method", "training"):
        (tmp_path / "site" / where / f"{part}.py").write_text(example(f"linear/{part}"), encoding="utf-8")
    if request.param == "methods":
        monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "site")])
    else:
        info = tmp_path / "site" / "linear_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[roobench.methods]\nlinear = linear_package.method:Linear\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", tmp_path / "weights")
    yield
    for name in [name for name in sys.modules if "linear" in name.split(".")[0] or name.startswith("methods.linear")]:
        del sys.modules[name]


def test_examples_are_short():
    assert len(example("linear/method").splitlines()) + len(example("linear/training").splitlines()) <= 90
    assert len(example("echo").splitlines()) <= 24


def test_trained_example_trains_runs_and_is_listed_and_reported(
    linear_installed, tmp_path, tiny_checkpoint, hf_greedy, monkeypatch, capsys
):
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prompts, "prompt", short_prompt)
    monkeypatch.setattr(training, "Recipe", Short)
    model = str(tiny_checkpoint("tied", True).folder)
    assert main(["train", "linear", "--model", model, *FLAGS]) == 0
    assert main(["list"]) == 0
    assert "linear" in capsys.readouterr().out
    questions = write_questions(tmp_path / "questions.jsonl", ONE_TURN)
    out = tmp_path / "out"
    flags = ["--method", "linear", "--method", "pld+linear", "--method", "linear+pld"]
    assert run_bench(Path(model), questions, out, *flags) == 0
    run, turns = records(out)
    assert {turn.audit.verdict for turn in turns if turn.method != "vanilla"} == {"identical"}
    assert sum(sum(turn.per_step_drafted) for turn in turns if turn.method == "linear") > 0
    assert run.methods["linear"].extra_parameters == 48 * 48
    report = (out / "report.md").read_text()
    assert "| linear |" in report
    assert "steps in which it drafted" in report
    both = read_summary(out).methods["pld+linear"]
    assert [member.label for member in both.members] == ["pld", "linear"]
    assert sum(member.accepted for member in both.members) == sum(
        sum(turn.per_step_accepted) for turn in turns if turn.method == "pld+linear"
    )


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_trained_example_samples_losslessly(linear_installed, target, mode, tmp_path):
    folder = tmp_path / "matrix"
    folder.mkdir()
    size = target.decoder.config.hidden
    save_file({"weight": torch.eye(size, dtype=torch.float64)}, folder / "linear.safetensors")
    variant = methods.parse(f"linear:weights={folder}")
    counts, accepted = sampled(variant.method(target.decoder, variant.config), *mode)
    assert accepted >= {0, 1}
    assert p_value(counts, exact(target, *mode)) > LEVEL
