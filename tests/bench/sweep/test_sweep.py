"""Sweeps: from the grids to one run, its table and its figures; weights trained once a value, failures told."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from bench.cli import main
from bench.errors import UserError
from bench.figures.records import read_run, read_turns
from bench.figures.summary import OVERALL
from bench.models import loading
from bench.report.sweep_page import Axis
from bench.run import runner
from bench.sweep import grid, sweep
from methods.vanilla import Vanilla

ROOT = Path(__file__).parents[3]


def labels_of(method: str, *grids: str, folder: Path = Path("out"), **fixed) -> list[str]:
    return [variant.label for variant in grid.plan(method, grids, folder, fixed)[1]]


# --- grids -----------------------------------------------------------------------------------------------------------


def test_axis_is_a_name_with_its_values():
    assert grid.parse_axis("gamma=2,4, 8") == Axis("gamma", ("2", "4", "8"))
    assert grid.parse_axis("weights=a=b,c") == Axis("weights", ("a=b", "c"))


def test_product_is_in_the_order_of_the_grids():
    expected = [f"kangaroo:threshold={eta},gamma={n}" for eta, n in itertools.product(("0", "0.4"), ("8", "2"))]
    assert labels_of("kangaroo", "threshold=0,0.4", "gamma=8,2") == expected
    assert labels_of("kangaroo:beam=2,nodes=9", "gamma=1,2") == [
        "kangaroo:beam=2,nodes=9,gamma=1",
        "kangaroo:beam=2,nodes=9,gamma=2",
    ]
    assert labels_of("medusa", "tree=chain,auto") == ["medusa:tree=chain", "medusa:tree=auto"]


def test_a_training_axis_names_weights_in_the_runs_folder():
    axes, planned = grid.plan(
        "kangaroo:paper", ["train.exit_layer=1,3", "gamma=2,4", "train.draft_vocab=0,64"], Path("out"), {"tokens": 7}
    )
    assert [axis.name for axis in axes] == ["train.exit_layer", "gamma", "train.draft_vocab"]
    assert planned[1].values == ("1", "2", "64")
    assert planned[1].label == "kangaroo:paper,weights=out/weights/exit_layer=1+draft_vocab=64,gamma=2"
    found = [(p.training.exit_layer, p.training.draft_vocab, p.training.tokens, p.training.out) for p in planned]
    assert found == [
        (layer, size, 7, f"out/weights/exit_layer={layer}+draft_vocab={size}")
        for layer, _, size in itertools.product((1, 3), (2, 4), (0, 64))
    ]


@pytest.mark.parametrize(
    ("method", "grids", "told"),
    [
        ("kangaroo", [], "needs at least one --grid"),
        ("kangaroo", ["gamma"], "'gamma' must be spelled name=value,value"),
        ("kangaroo", ["=2"], "'=2' must be spelled"),
        ("kangaroo", ["gamma="], "'gamma=' must be spelled"),
        ("kangaroo", ["gamma=2,,4"], "'gamma=2,,4' must be spelled"),
        ("kangaroo", ["gamma=2,4,2"], "has 2 twice"),
        ("kangaroo", ["gamma=2", "gamma=4"], "--grid gamma is given twice"),
        ("kangaroo", ["gama=2"], "no knob 'gama=2', did you mean 'gamma'"),
        ("kangaroo", ["gamma=two"], "gamma='two' is not of type int"),
        ("kangaroo", ["threshold=0,1.5"], "threshold=1.5 must be in"),
        ("kangaroo", ["threshold=0,0.0"], "kangaroo:threshold=0.0 and kangaroo:threshold=0 are one and the same"),
        ("kangaro", ["gamma=2"], "unknown method 'kangaro'"),
        ("hf-generate", ["gamma=2"], "'hf-generate' is a peer"),
        (
            "pld",
            ["train.exit_layer=1,2"],
            "method 'pld' is not trained; methods that are: eagle, eagle3, ",
        ),
        ("vanilla", ["train.exit_layer=1,2"], "vanilla always takes part in sweep"),
        ("kangaroo", ["train.exit_layr=1"], "no setting of kangaroo's training, did you mean 'exit_layer'"),
        ("kangaroo", ["train.out=a,b"], "train.out: no setting"),
        ("kangaroo", ["train.exit_layer=one"], "train.exit_layer=one is not of type int"),
        ("kangaroo", ["train.exit_layer=0"], "--exit-layer 0 is too small"),
        ("kangaroo", ["train.architecture=paper,mlp"], "train.architecture=mlp is none of feedback, paper, paper-own"),
        ("medusa", ["train.own_lm_heads=yes"], "train.own_lm_heads=yes is not of type bool"),
        ("kangaroo", ["train.ffn=0,8", "weights=a,b"], "trains the weights: leave out weights"),
        ("kangaroo:weights=a", ["train.ffn=0,8"], "trains the weights: leave out weights"),
    ],
)
def test_mistakes_in_the_grid_are_told(method, grids, told):
    with pytest.raises(UserError, match=told):
        grid.plan(method, grids, Path("out"), {})


def test_mistakes_in_the_command_are_told_before_any_work(setting, capsys):
    base = ["sweep", "--model", str(setting.model), "--questions", setting.questions, "--out", str(setting.out)]
    for flags, told in [
        ([], "needs at least one --grid"),
        (["--method", "vanilla", "--method", "kangaroo", "--grid", "gamma=2"], "a sweep is of one method, not 2"),
        (["--grid", "gamma=2,x"], "gamma='x' is not of type int"),
        ([str(setting.out), "--grid", "gamma=2"], "is redrawn without further flags"),
        ([str(setting.out)], "is redrawn without further flags"),
        (["--grid", "train.ffn=1,2", "--out", "a,b"], "cannot have a comma"),
    ]:
        assert main([*base, *flags]) == 2
        assert told in capsys.readouterr().err
    assert main(["sweep", str(setting.out)]) == 2
    assert "is no sweep: it has no sweep.json" in capsys.readouterr().err
    assert not setting.out.exists()


# --- one run ---------------------------------------------------------------------------------------------------------


def run_sweep(setting, *flags: str, method: str | None = None) -> int:
    """The exit status of a sweep with short answers."""
    given = ["--model", str(setting.model), "--questions", setting.questions, "--out", str(setting.out)]
    return main(["sweep", *given, "--max-new-tokens", "8", "--method", method or setting.kangaroo, *flags])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without_threshold(setting) -> str:
    return setting.kangaroo.removesuffix(",threshold=0")


def test_table_holds_the_figures_of_the_runs_summary(setting, capsys):
    method = without_threshold(setting)
    assert run_sweep(setting, "--grid", "threshold=0,0.9", "--grid", "gamma=1,3", method=method) == 0
    summary = json.loads((setting.out / "summary.json").read_text())
    labels = [f"{method},threshold={eta},gamma={n}" for eta in ("0", "0.9") for n in ("1", "3")]
    assert list(summary["methods"]) == ["vanilla", *labels]  # one run, no peer
    rows = rows_of(setting.out)
    assert [row["label"] for row in rows] == labels
    assert [(row["threshold"], row["gamma"]) for row in rows] == [("0", "1"), ("0", "3"), ("0.9", "1"), ("0.9", "3")]
    for row in rows:
        entry = summary["methods"][row["label"]]
        cell = entry["tasks"][OVERALL]
        for key in ("speedup_decode", "speedup_total"):
            assert float(row[key]) == cell[key]["value"]
        for key in ("compression_rate", "draft_time_share"):
            assert float(row[key]) == cell[key]
        assert int(row["extra_parameters"]) == entry["extra_parameters"]
        assert (row["identical"], row["audited"], row["failure"]) == ("4", "4", "")
    page = (setting.out / "sweep.md").read_text()
    printed = capsys.readouterr().out
    assert "|" not in printed, "Markdown is for pages"
    plain = " ".join(printed.split())
    for row in rows:
        shown = f"{float(row['compression_rate']):.2f}"
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['threshold']} | {row['gamma']} |"))
        assert shown in line
        cells = [cell.strip("* ") for cell in line.strip("|").split("|")]
        assert " ".join(" ".join(cells).split()) in plain
    assert "plots/sweep_threshold_by_gamma.png" in page
    assert "plots/sweep_heat_map.png" in page
    assert (setting.out / "plots" / "sweep_heat_map.png").is_file()


def test_a_sweep_is_redrawn_from_its_records(setting):
    assert run_sweep(setting, "--grid", "gamma=1,3") == 0
    names = ["sweep.md", "sweep.csv", "plots/sweep_gamma.png"]
    before = {name: (setting.out / name).read_bytes() for name in names}
    for name in names:
        (setting.out / name).unlink()
    assert main(["sweep", str(setting.out)]) == 0
    assert {name: (setting.out / name).read_bytes() for name in names} == before


def test_drawing_needs_no_torch():
    code = (
        "import sys, bench.cli, bench.report.sweep_page, bench.report.sweep_figures\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "assert bench.cli.main(['sweep', 'absent']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_a_folder_of_another_sweep_is_not_overwritten(setting, capsys):
    assert run_sweep(setting, "--grid", "gamma=1,3", "--tasks", "qa") == 0
    before = (setting.out / "sweep.csv").read_bytes()
    assert run_sweep(setting, "--grid", "gamma=1,2", "--tasks", "qa") == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert (setting.out / "sweep.csv").read_bytes() == before


def test_a_peer_runs_where_one_is_asked_for(setting):
    assert run_sweep(setting, "--grid", "gamma=1,3", "--peer", "hf-generate", "--tasks", "qa") == 0
    assert read_run(setting.out).methods["hf-generate"].kind == "peer"
    assert len(rows_of(setting.out)) == 2


# --- failures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FragileConfig:
    kind: str = "sound"


class Fragile(Vanilla):
    """Vanilla, but fails where its knob says: when built, at the warm-up, or at every prompt but the warm-up's."""

    Config = FragileConfig

    def __init__(self, target, config):
        super().__init__(target, config)
        if config.kind == "built":
            raise OSError("no weights")
        self.warm_up: list[int] = []

    def open(self, sequence, prompt):
        asked = sequence.context[:-1]
        self.warm_up = self.warm_up or asked
        if self.config.kind == "warm" or (self.config.kind == "asked" and asked != self.warm_up):
            raise ValueError("out of order")


def test_failing_variants_are_told_and_the_others_go_on(setting, add_method, capsys):
    add_method("fragile", Fragile)
    assert run_sweep(setting, "--grid", "kind=sound,built,warm,asked,other", method="fragile") == 1
    said = capsys.readouterr()
    rows = {row["kind"]: row for row in rows_of(setting.out)}
    assert rows["built"]["failure"] == "OSError: no weights"
    assert "in the warm-up: ValueError: out of order (test_sweep.py, line" in rows["warm"]["failure"]
    assert rows["asked"]["failure"].startswith("failed in every question, first with ValueError: out of order")
    for kind in ("built", "warm", "asked"):
        assert rows[kind]["speedup_decode"] == ""
        assert f"fragile:kind={kind} failed: {rows[kind]['failure']}" in said.err
    for kind in ("sound", "other"):  # what failed in every question takes none from the others
        assert float(rows[kind]["speedup_decode"]) > 0
        assert (rows[kind]["failure"], rows[kind]["audited"]) == ("", "4")
    page = (setting.out / "sweep.md").read_text()
    assert page.count("**failed**") == 3
    assert "- `fragile:kind=warm` fragile:kind=warm fails at its first answer, in the warm-up: ValueError" in page
    assert main(["sweep", str(setting.out)]) == 1


@pytest.fixture
def loads(monkeypatch):
    """The number format of every decoder that is loaded."""
    made, load = [], loading.load_decoder

    def spy(checkpoint, device, dtype, **options):
        made.append(dtype)
        return load(checkpoint, device, dtype, **options)

    monkeypatch.setattr(loading, "load_decoder", spy)
    return made


def test_the_model_is_loaded_once_whatever_fails(setting, add_method, loads):
    add_method("fragile", Fragile)
    grid = ("--grid", "kind=built,warm,sound,other")
    flags = ("--tasks", "qa", "--max-new-tokens", "4")
    assert run_sweep(setting, *grid, *flags, method="fragile") == 1
    assert loads == [torch.float32]
    run = read_run(setting.out)
    assert list(run.methods) == ["vanilla", "fragile:kind=sound", "fragile:kind=other"]
    assert run.config["method"] == [f"fragile:kind={kind}" for kind in ("warm", "sound", "other")]


def test_nothing_left_is_an_error(setting, add_method, capsys):
    add_method("fragile", Fragile)
    assert run_sweep(setting, "--grid", "kind=built", method="fragile") == 2
    assert (
        "no variant of the sweep is left; the last, fragile:kind=built: OSError: no weights" in capsys.readouterr().err
    )
    assert run_sweep(setting, "--grid", "kind=warm", method="fragile") == 2
    assert "no variant of the sweep is left" in capsys.readouterr().err


def test_many_variants_are_told_to_take_long_with_the_estimate(setting, add_method, monkeypatch, capsys):
    add_method("fragile", Fragile)
    flags = ("--grid", "kind=a,b,c", "--tasks", "qa", "--max-new-tokens", "4")
    assert run_sweep(setting, *flags, method="fragile") == 0
    assert "take long" not in capsys.readouterr().err
    monkeypatch.setattr(sweep, "MANY", 2)
    assert run_sweep(setting, *flags, method="fragile") == 0
    assert "WARNING: 3 variants take long, about " in capsys.readouterr().err


class Halting(Vanilla):
    """Vanilla, but interrupted at a prompt that a test names; its knob changes nothing."""

    Config = FragileConfig
    asked: ClassVar[list[list[int]]] = []
    halt_at: ClassVar[int] = -1  # number of prompts, over all variants

    def open(self, sequence, prompt):
        self.asked.append(sequence.context[:-1])
        if len(self.asked) == self.halt_at:
            raise KeyboardInterrupt


@pytest.fixture
def halting(add_method, monkeypatch):
    """A sweep over two values that is interrupted in the second of its three questions."""
    monkeypatch.setattr(Halting, "asked", [])
    add_method("halting", Halting)

    def halt_in_run(setting) -> int:
        ask = runner.ask

        def counted(*given):
            # After the warm-up, both variants answer the two turns of the first question.
            Halting.halt_at = len(Halting.asked) + 2 * 2 + 1
            return ask(*given)

        with monkeypatch.context() as patch:
            patch.setattr(runner, "ask", counted)
            status = run_sweep(setting, "--grid", "kind=a,b", method="halting")
        Halting.halt_at = -1
        Halting.asked.clear()
        return status

    return halt_in_run


def test_an_interrupted_run_goes_on_where_it_was(halting, setting, capsys):
    assert halting(setting) == 130
    before = read_turns(setting.out)
    assert {turn.question_id for turn in before} == {11}
    assert "the figures are those of the questions finished so far" in capsys.readouterr().err
    assert run_sweep(setting, "--grid", "kind=a,b", method="halting") == 0
    assert "going on with run" in capsys.readouterr().err
    turns = read_turns(setting.out)
    assert turns[: len(before)] == before
    assert {turn.question_id for turn in turns} == {11, 12, 13}
    assert len(read_run(setting.out).provenance["sessions"]) == 2
    assert [row["audited"] for row in rows_of(setting.out)] == ["4"] * 2


def test_an_interrupted_run_goes_on_however_its_folder_is_spelled(halting, setting, monkeypatch, capsys):
    assert halting(setting) == 130
    monkeypatch.chdir(setting.out.parent)
    assert run_sweep(setting, "--grid", "kind=a,b", "--out", setting.out.name, method="halting") == 0
    assert "going on with run" in capsys.readouterr().err
    assert {turn.question_id for turn in read_turns(setting.out)} == {11, 12, 13}


def test_a_run_of_other_settings_is_begun_anew(halting, setting, capsys):
    assert halting(setting) == 130
    first = read_run(setting.out).run_id
    assert run_sweep(setting, "--grid", "kind=a,b", "--tasks", "qa", method="halting") == 0
    assert "begun anew, the earlier run is set aside" in capsys.readouterr().err
    assert {turn.question_id for turn in read_turns(setting.out)} == {12}
    assert (setting.out / first / "turns.jsonl").is_file()
