"""reproduce: every table and figure of a paper is a run or a sweep, goes on, and what cannot be shown is said."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import methods
from bench.cli import main
from bench.drafting.reproduction import Part, Recipe
from bench.figures.published import read_published
from bench.figures.records import read_run, read_turns
from bench.figures.summary import read_summary
from bench.report.figures import PLOTS
from bench.report.reproduction_page import read_reproduction
from bench.report.sweep_page import read_sweep
from bench.run import runner
from bench.sweep import grid
from bench.train import prompts, training
from bench.train_config import SWEEP_TRAINING
from tests.bench.sweep.test_sweep_training import Short
from tests.pages import example
from tests.tiny import files_of, short_prompt

ROOT = Path(__file__).parents[3]
GRID = ("threshold=0,0.9", "gamma=4")
RECIPE = Recipe(
    "Kangaroo paper",
    (
        Part("table", "Table 1", ("kangaroo:paper", "pld", "medusa"), 3, note="As it is."),
        Part(
            "rule",
            "a figure",
            ("kangaroo:paper",),
            2,
            ("threshold=0,0.9", "gamma=4"),
            {"limit": 1},
            "gamma and threshold",
        ),
        Part("layers", "another", ("kangaroo",), 9, ("train.exit_layer=1,3",), {"limit": 1}, "exit layer"),
    ),
)


@pytest.fixture
def reproduce(setting, tmp_path, tiny_adapter, monkeypatch):
    """Call `reproduce kangaroo` with a small recipe, and weights of it alone where runs look; `asked` by the runner."""
    weights = tmp_path / "weights"
    for form in ("kangaroo", "kangaroo-paper"):
        shutil.copytree(tiny_adapter(setting.hf), weights / setting.model.name / form)
    monkeypatch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", weights)
    monkeypatch.setattr(
        methods, "recipe", lambda name, real=methods.recipe: RECIPE if name == "kangaroo" else real(name)
    )
    monkeypatch.setattr(prompts, "prompt", short_prompt)
    monkeypatch.setattr(training, "Recipe", Short)
    asked: list[Path] = []
    ask = runner.ask
    monkeypatch.setattr(runner, "ask", lambda plan, *given: asked.append(plan.folder) or ask(plan, *given))

    def call(*flags: str, method: str = "kangaroo", questions: str = setting.questions) -> int:
        given = ["--model", str(setting.model), "--questions", questions, "--out", str(setting.out), "--peer", "none"]
        return main(["reproduce", method, *given, "--max-new-tokens", "8", *flags])

    return SimpleNamespace(call=call, out=setting.out, asked=asked, weights=weights)


def section(page: str, title: str) -> str:
    """A section of a page, up to the next one."""
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.reproducible())
def test_recipes_are_of_methods_knobs_and_published_figures_that_there_are(name):
    recipe = methods.recipe(name)
    (source,) = (one for one in read_published() if one.source == recipe.source)
    assert any(result.method == name for result in source.results)
    assert len({part.name for part in recipe.parts}) == len(recipe.parts)
    for part in recipe.parts:
        for label in part.methods:
            methods.parse(label)
        assert set(part.plots) <= PLOTS.keys()
        if part.grid:
            (label,) = part.methods
            axes, planned = grid.plan(label, part.grid, Path("out"), SWEEP_TRAINING)
            assert len({variant.training.out for variant in planned if variant.training}) == part.trainings
            (found, *_) = (one for one in source.ablations if one.what == part.ablation)
            assert set(part.called.values()) <= {value for point in found.points for value in point.values()}
            assert set(part.called) <= {value for axis in axes for value in axis.values}
        else:
            assert not part.ablation


def test_the_pages_recipe_is_one():
    scope: dict[str, object] = {}
    exec(example("my_method/reproduction"), scope)
    assert isinstance(scope["RECIPE"], Recipe)
    assert [part.trainings for part in scope["RECIPE"].parts] == [0, 0]


def test_the_paper_of_kangaroo_is_all_there():
    """Table 1 with CTAR, and each ablation of the published figures: none is forgotten."""
    recipe = methods.recipe("kangaroo")
    (source,) = (one for one in read_published() if one.source == recipe.source)
    assert {part.ablation for part in recipe.parts} == {"", *(one.what for one in source.ablations)}
    first = recipe.parts[0]
    assert {label.partition(":")[0] for label in first.methods} >= {result.method for result in source.results}


# --- what is carried out ---------------------------------------------------------------------------------------------


def test_one_page_has_every_part_with_the_published_values_beside_ours(reproduce, capsys):
    assert reproduce.call() == 0
    said = capsys.readouterr()
    assert "part 1 of 2: table (Table 1), about 3 min" in said.err
    assert "WARNING: medusa is left out: no weights of medusa" in said.err
    assert [folder.name for folder in reproduce.asked] == ["table", "rule"]
    page = (reproduce.out / "reproduction.md").read_text()
    summary = read_summary(reproduce.out / "table")
    table = section(page, "table: Table 1")
    ours = summary.methods["kangaroo:paper"].tasks["qa"].compression_rate
    assert re.search(rf"\| \*\*this run\*\* \| kangaroo:paper \|.*\| {ours:.2f} \|", table)
    assert "| Kangaroo paper | Kangaroo (chain, exit layer 2, gamma 6, threshold 0.6; 67,000,000 " in table
    assert "- **Few questions**" in table.partition("<details><summary>Warnings</summary>")[2]
    assert "| 1.50x |" in table
    assert "- Left out: `medusa`: no weights of medusa come with the project" in table
    assert "As it is." in table
    rule = section(page, "rule: a figure")
    assert "- Fastest here: threshold 0" in rule
    assert "- Fastest as published, Vicuna-7B-v1.3: gamma 6, threshold 0.6, 1.50x, CR 2.06." in rule
    assert "| output | published speedup, Vicuna-7B-v1.3 | published CR, Vicuna-7B-v1.3 |" in rule
    assert re.search(r"\| 0\.9 \| 4 \| .*x \|.* identical \| 1\.40x \| 1\.82 \|\n", rule)
    others = rule.partition("### As published at other values, Vicuna-7B-v1.3, read off a plot\n")[2]
    assert "| 8 | 0.7 | 2.00 | 1.49x |" in others
    assert "| 4 | 0.9 |" not in others
    layers = section(page, "layers: another")
    assert layers.startswith("\nNot run: it needs 2 sets of trained weights: add --train.")
    assert "| 16 | 3.39 | 1.07x |" in layers
    overview = page.partition("\n## ")[0]
    assert re.search(r"\| `table` \| Table 1 \| done \| \d+\.\d \|", overview)
    assert "| `layers` | another | not run: it needs 2 sets of trained weights: add --train | - |" in overview
    html = (reproduce.out / "reproduction.html").read_text()
    assert "another: Not run" not in html
    for text in ("Fastest as published", "it needs 2 sets of trained weights", "no weights of medusa"):
        assert text in html


def test_trained_parts_are_trained_if_asked_for(reproduce, capsys):
    assert reproduce.call("--train", "--part", "layers", "--train-tokens", "200", "--train-epochs", "1") == 0
    assert [folder.name for folder in reproduce.asked] == ["layers"]
    sweep = read_sweep(reproduce.out / "layers")
    assert [variant.training["exit_layer"] for variant in sweep.variants] == [1, 3]
    assert {(variant.training["tokens"], variant.training["epochs"]) for variant in sweep.variants} == {(200, 1)}
    page = (reproduce.out / "reproduction.md").read_text()
    assert "- Fastest here: train.exit_layer " in section(page, "layers: another")
    assert "| `table` | Table 1 | not run: not asked for by --part | - |" in page
    assert reproduce.call("--train", "--part", "layers", "--train-tokens", "300", "--train-epochs", "1") == 2
    said = capsys.readouterr().err
    assert f"{reproduce.out}/layers is of `" in said
    assert "--train-tokens 200 --train-epochs 1`, and not of `" in said
    assert "--train-tokens 300 --train-epochs 1`: give the same flags, or another folder" in said


def test_parts_can_be_trained_later(reproduce):
    assert reproduce.call("--part", "rule") == 0
    assert reproduce.call("--train", "--part", "layers", "--train-tokens", "200", "--train-epochs", "1") == 0
    assert [folder.name for folder in reproduce.asked] == ["rule", "layers"]
    page = (reproduce.out / "reproduction.md").read_text()
    assert page.count("- Fastest here: ") == 2


def test_knobs_are_for_the_method_itself_where_it_is_not_trained(reproduce, tmp_path):
    other = tmp_path / "mine"
    shutil.move(reproduce.weights, tmp_path / "elsewhere")
    shutil.copytree(next((tmp_path / "elsewhere").glob("*/kangaroo")), other)
    assert reproduce.call("--dry-run") == 2  # nothing to reproduce with
    assert reproduce.call("--knobs", f"weights={other},nodes=7", "--part", "table") == 0
    run = read_run(reproduce.out / "table")
    label = f"kangaroo:paper,weights={other},nodes=7"
    assert list(run.methods) == ["vanilla", label, "pld"]
    assert (run.methods[label].config["gamma"], run.methods[label].config["nodes"]) == (6, 7)
    commands = {state.name: state.command for state in read_reproduction(reproduce.out).parts}
    assert f"--method {label}" in commands["rule"]
    assert str(other) not in commands["layers"]


# --- going on --------------------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_where_it_was_interrupted(reproduce, monkeypatch, capsys):
    keep, kept = runner.Recorder.keep, []

    def interrupted(self, turns):
        kept.append(self.plan.folder.name)
        if kept.count("table") == 2:
            raise KeyboardInterrupt
        keep(self, turns)

    with monkeypatch.context() as patch:
        patch.setattr(runner.Recorder, "keep", interrupted)
        assert reproduce.call() == 130
    assert "interrupted: the same command goes on with table" in capsys.readouterr().err
    before = read_turns(reproduce.out / "table")
    assert {turn.question_id for turn in before} == {11}
    page = (reproduce.out / "reproduction.md").read_text()
    assert "| `table` | Table 1 | interrupted; the same command goes on |" in page
    assert "| `rule` | a figure | not run yet | - |" in page
    assert reproduce.call() == 0
    after = read_turns(reproduce.out / "table")
    assert after[: len(before)] == before
    assert len(read_run(reproduce.out / "table").provenance["sessions"]) == 2
    assert [folder.name for folder in reproduce.asked] == ["table", "table", "rule"]
    assert "interrupted" not in (reproduce.out / "reproduction.md").read_text()


def test_what_is_done_is_not_run_again_but_shown_again(reproduce):
    assert reproduce.call() == 0
    records = [files_of(reproduce.out / name) for name in ("table", "rule")]
    for name in ("table/report.md", "table/summary.json", "rule/sweep.md", "reproduction.md"):
        (reproduce.out / name).unlink()  # as a kill before they were written leaves it
    assert reproduce.call() == 0
    assert [folder.name for folder in reproduce.asked] == ["table", "rule"]
    assert [files_of(reproduce.out / name) for name in ("table", "rule")] == records
    assert "## rule: a figure" in (reproduce.out / "reproduction.md").read_text()


def test_other_settings_need_another_folder(reproduce, capsys, monkeypatch):
    assert reproduce.call("--part", "rule") == 0
    assert reproduce.call("--seed", "3") == 2
    assert "--seed 3`: give the same flags, or another folder with --out" in capsys.readouterr().err
    monkeypatch.chdir(reproduce.out.parent)  # the same folder, spelled otherwise
    assert reproduce.call("--part", "rule", "--out", reproduce.out.name) == 0
    (reproduce.out / "reproduction.json").write_text("{}")
    assert reproduce.call() == 2
    assert "is no record of a reproduction" in capsys.readouterr().err
    assert [folder.name for folder in reproduce.asked] == ["rule"]


def test_output_that_is_not_vanillas_is_told_again(reproduce):
    assert reproduce.call("--part", "table") == 0
    path = reproduce.out / "table" / "turns.jsonl"
    audit = '"verdict":"identical","position":null,"token":null,"vanilla_token":null,"gap":null,"tolerance":null'
    wrong = '"verdict":"different","position":0,"token":1,"vanilla_token":2,"gap":1.0,"tolerance":0.1'
    assert audit in path.read_text()
    path.write_text(path.read_text().replace(audit, wrong, 1))
    assert reproduce.call("--part", "table") == 1


# --- mistakes, and what is cheap -------------------------------------------------------------------------------------


def test_a_dry_run_lists_parts_and_commands_and_writes_nothing(reproduce, capsys):
    assert reproduce.call("--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"layers +9 +not run: it needs 2 sets", said)
    assert "  medusa is left out: no weights of medusa" in said
    assert re.search(rf"run --method kangaroo:paper --method pld --model .* --out {reproduce.out}/table\n", said)
    assert "sweep --method kangaroo:paper --grid threshold=0,0.9 --grid gamma=4 --limit 1" in said
    assert "--peer" not in said.partition("sweep --method kangaroo:paper")[2].partition("\n")[0]
    assert not reproduce.out.exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--part", "tabel"], "no part 'tabel', did you mean 'table'?; parts of it: table, rule, layers"),
        (["--part", "layers"], "no part can be carried out: it needs 2 sets of trained weights: add --train"),
        (["--train-tokens", "9"], "--train-tokens: nothing is trained without --train"),
        (["--knobs", "gama=2"], "has no knob 'gama=2', did you mean 'gamma'"),
        (["--limit", "0"], "--limit 0 is too small"),
        (["--tasks", "poetry"], "poetry"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(reproduce, capsys, flags, told):
    assert reproduce.call(*flags) == 2
    assert told in capsys.readouterr().err
    assert not reproduce.out.exists()
    assert not reproduce.asked


def test_methods_without_a_recipe_and_without_weights_are_told(reproduce, capsys):
    assert reproduce.call(method="pld") == 2
    assert "pld has no recipe of its paper, a module `reproduction` next to its own; methods" in capsys.readouterr().err
    assert reproduce.call(method="kangaro") == 2
    assert "unknown method 'kangaro', did you mean 'kangaroo'" in capsys.readouterr().err
    shutil.rmtree(reproduce.weights)
    assert reproduce.call() == 2
    assert "no part can be carried out: no weights built as published of kangaroo come with" in capsys.readouterr().err


def test_a_dry_run_needs_no_torch():
    code = (
        "import sys, bench.cli\n"
        "assert bench.cli.main(['reproduce', 'kangaroo', '--dry-run']) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL)
