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
from bench.figures.machine import Machine
from bench.figures.records import read_run, read_turns, write_json, write_turns
from bench.figures.summary import OVERALL, Cell, Dataset, Estimate, Summary
from bench.models import loading
from bench.report.markdown import table_text
from bench.report.sweep_figures import draw, places, published_curve
from bench.report.sweep_page import Axis, Point, Sweep, Variant, csv_rows, measured, read_sweep, table
from bench.run import runner
from bench.sweep import grid, sweep
from bench.train import loop, prompts, training
from bench.train.writer import Recipe
from methods.kangaroo.training import AdapterTrainer
from methods.vanilla import Vanilla
from tests.tiny import run_bench, short_prompt

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


def test_a_run_of_other_settings_is_begun_anew(halting, setting, capsys):
    assert halting(setting) == 130
    first = read_run(setting.out).run_id
    assert run_sweep(setting, "--grid", "kind=a,b", "--tasks", "qa", method="halting") == 0
    assert "begun anew, the earlier run is set aside" in capsys.readouterr().err
    assert {turn.question_id for turn in read_turns(setting.out)} == {12}
    assert (setting.out / first / "turns.jsonl").is_file()


# --- training --------------------------------------------------------------------------------------------------------


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


# --- table -----------------------------------------------------------------------------------------------------------


def swept(
    method: str, *axes: Axis, low: float | None = 0.05, failed: tuple[str, ...] = ()
) -> tuple[Sweep, list[Point]]:
    """A sweep whose i-th variant is (1 + i / 100) times as fast as vanilla, CR twice that; bars: -low, +0.1."""
    points = []
    for i, values in enumerate(itertools.product(*(axis.values for axis in axes))):
        label = f"{method}:{','.join(f'{a.name}={v}' for a, v in zip(axes, values, strict=True))}"
        speed = 1 + i / 100
        estimate = Estimate(speed, None if low is None else speed - low, low and speed + 0.1)
        counts = {"identical": 3, "numerical": 1, "different": 0}
        rates = {"compression_rate": 2 * speed, "draft_time_share": 0.25}
        cell = Cell(speedup_decode=estimate, speedup_total=Estimate(speed - 0.01), lossless=counts, **rates)
        variant = Variant(label, values, agreement=0.4 if axes[0].name.startswith("train.") else None)
        points.append(Point(variant, None, None, "broke") if values == failed else Point(variant, cell, 2_000_000))
    return Sweep(method, list(axes), [point.variant for point in points]), points


SUMMARY = Summary(
    run_id="r",
    model="tiny",
    dataset=Dataset("mini", None, 3),
    device=Machine(name="Abacus"),
    dtype="float32",
    methods={},
)


def test_table_shows_intervals_where_there_are_some():
    text = table_text(table(*swept("kangaroo", Axis("gamma", ("2", "4")))))
    assert "| 2 | 1.00x | 0.95-1.10 | 0.99x | 2.00 | 0.25 | 2.0M | 3 identical, 1 numerical |" in text
    assert "| 4 | **1.01x** | 0.96-1.11 | 1.00x | 2.02 |" in text
    text = table_text(table(*swept("kangaroo", Axis("gamma", ("2", "4")), low=None)))
    assert "| 2 | 1.00x | - | 0.99x |" in text
    assert "agreement" not in text
    assert "| agreement |" in table_text(table(*swept("kangaroo", Axis("train.ffn", ("2", "4")))))


def test_csv_has_full_precision_and_leaves_the_undefined_empty():
    heading, first, second = csv_rows(*swept("kangaroo", Axis("gamma", ("2", "4")), failed=("4",)))
    row = dict(zip(heading, first, strict=True))
    assert (row["speedup_decode"], row["speedup_decode_low"], row["speedup_decode_high"]) == (1.0, 0.95, 1.1)
    assert (row["identical"], row["audited"]) == (3, 4)
    row = dict(zip(heading, second, strict=True))
    assert (row["gamma"], row["failure"]) == ("4", "broke")
    assert {row[key] for key in ("speedup_decode", "compression_rate", "identical", "agreement")} == {""}


def test_no_value_in_the_csv_is_a_formula():
    _, row = csv_rows(*swept("kangaroo", Axis("weights", ("=1+1",))))
    assert row[:2] == ["'=1+1", "kangaroo:weights==1+1"]


def test_variant_that_is_in_no_record_was_not_run(setting):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    run, turns = read_run(setting.out), read_turns(setting.out)
    asked = Sweep("kangaroo", [Axis("gamma", ("1",))], [Variant("kangaroo:gamma=1", ("1",))])
    _, (point,) = measured(asked, run, turns)
    assert (point.overall, point.failure) == (None, "was not run")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1, "method": "x", "axes": [{}]}', '{"schema": 2}'])
def test_a_damaged_record_is_told(content, tmp_path):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json (is not a sweep's record|has schema 2; this version reads 1)"):
        read_sweep(tmp_path)


def test_record_is_read_as_written(tmp_path):
    axes = [Axis("train.ffn", ("0", "8")), Axis("gamma", ("2",))]
    variants = [Variant("kangaroo:x", ("0", "2"), {"tokens": 3}, 0.5), Variant("kangaroo:y", ("8", "2"))]
    written = Sweep("kangaroo", axes, variants, {"kangaroo:y": "broke"})
    write_json(tmp_path / "sweep.json", written)
    assert read_sweep(tmp_path) == written


def test_interrupted_run_is_told_on_the_page(setting):
    assert run_sweep(setting, "--grid", "gamma=1,3") == 0
    run, turns = read_run(setting.out), read_turns(setting.out)
    run.complete = False
    write_json(setting.out / "run.json", run)
    write_turns(setting.out / "turns.jsonl", turns[:-3])
    assert main(["sweep", str(setting.out)]) == 130
    assert "**The run was interrupted**" in (setting.out / "sweep.md").read_text()


# --- figures ---------------------------------------------------------------------------------------------------------


def publish(folder: Path, *ablations: dict) -> Path:
    folder.mkdir()
    result = {"method": "kangaroo", "label": "Kangaroo", "model": "Vicuna-7B", "hardware": "a V100", "settings": ""}
    result |= {"speedup": {}, "compression_rate": {}, "ctar": {}}
    value = {"schema": 1, "source": "Some paper", "citation": "X: Y", "url": "https://example.org", "benchmark": "Z"}
    value |= {"definitions": {}, "results": [result], "ablations": list(ablations), "notes": []}
    (folder / "some.json").write_text(json.dumps(value))
    return folder


def gammas(*points: dict) -> dict:
    ablation = {"method": "kangaroo", "model": "Vicuna-7B", "what": "gamma", "read_off_a_figure": True}
    return ablation | {"points": list(points)}


GRID = gammas(
    *(
        {"gamma": gamma, "threshold": eta, "compression_rate": 2 + eta, "speedup": 1 + gamma / 10 + eta}
        for gamma in (4, 6)
        for eta in (0.0, 0.5)
    ),
    {"gamma": 8, "threshold": 0.6, "compression_rate": 2.0, "speedup": 1.5},
)


def test_published_curves_are_one_for_every_other_setting(tmp_path):
    folder = publish(tmp_path / "published", GRID)
    curves = published_curve("kangaroo", "threshold", folder)
    assert [(c.source, c.where, c.others) for c in curves] == [
        ("Some paper, read off a plot", "Vicuna-7B, a V100", "gamma=4"),
        ("Some paper, read off a plot", "Vicuna-7B, a V100", "gamma=6"),
    ]
    assert curves[0].points == [(0.0, pytest.approx(1.4), 2.0), (0.5, pytest.approx(1.9), 2.5)]
    assert [c.others for c in published_curve("kangaroo", "gamma", folder)] == ["threshold=0.0", "threshold=0.5"]
    assert published_curve("medusa", "gamma", folder) is None
    assert published_curve("kangaroo", "beam", folder) is None
    assert published_curve("kangaroo", "gamma", tmp_path / "absent") is None


def test_published_adapters_are_one_curve_whatever_their_size(tmp_path):
    points = [{"adapter": name, "extra_parameters": n, "speedup": 1.5 - n / 10} for n, name in enumerate("abc")]
    folder = publish(tmp_path / "published", gammas(*points))
    (curve,) = published_curve("kangaroo", "train.architecture", folder)
    assert curve.points == [("a", 1.5, None), ("b", 1.4, None), ("c", 1.3, None)]
    assert curve.label == "Vicuna-7B, a V100"


def test_what_the_paper_says_is_found():
    curves = published_curve("kangaroo", "train.exit_layer")
    assert {curve.where.split(",")[0] for curve in curves} == {"Vicuna-7B-v1.3", "Vicuna-13B-v1.3"}
    assert (2, 1.5, 2.02) in curves[0].points
    assert len(published_curve("kangaroo", "threshold")) == 3
    assert len(published_curve("kangaroo", "train.architecture")) == 1


def figures(published: Path, *axes: Axis, method: str = "kangaroo", **options):
    found, points = swept(method, *axes, **options)
    return draw(found, SUMMARY, points, published)


def curves_of(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines if line.get_label()[0] != "_"}


def legends_of(figure) -> list[list[str]]:
    return [
        [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]
        for part in figure.subfigs
        for legend in part.legends
    ]


def test_one_knob_is_a_line_with_intervals_beside_vanilla(tmp_path):
    (figure,) = figures(tmp_path, Axis("gamma", ("2", "4", "8"))).values()
    speed, rate = figure.axes
    assert curves_of(speed)["kangaroo"] == [(2, 1.0), (4, 1.01), (8, 1.02)]
    assert curves_of(rate)["kangaroo"] == [(2, 2.0), (4, 2.02), (8, 2.04)]
    (bars,) = speed.collections
    assert [path.vertices[:, 1].tolist() for path in bars.get_paths()] == [
        pytest.approx([1 + i / 100 - 0.05, 1 + i / 100 + 0.1]) for i in range(3)
    ]
    assert legends_of(figure) == [["", "kangaroo", "vanilla"]]
    assert (speed.get_xlabel(), speed.get_ylabel()) == ("gamma", "decode speedup")


def test_two_knobs_are_lines_of_each_over_the_other_and_a_heat_map(tmp_path):
    axes = Axis("threshold", ("0", "0.5")), Axis("gamma", ("2", "4", "8"))
    drawn = figures(tmp_path, *axes, failed=("0.5", "4"))
    assert list(drawn) == ["sweep_threshold_by_gamma", "sweep_gamma_by_threshold", "sweep_heat_map"]
    lines = curves_of(drawn["sweep_gamma_by_threshold"].axes[0])
    assert [y for _, y in lines["threshold=0"]] == [1.0, 1.01, 1.02]
    (_, first), (_, gap), (_, last) = lines["threshold=0.5"]
    assert (first, last) == (1.03, 1.05)
    assert gap != gap  # what failed is a gap
    assert [x for x, _ in lines["threshold=0"]] == pytest.approx([2, 4, 8], abs=0.1)
    speed = drawn["sweep_heat_map"].axes[0]
    shown = {tuple(text.get_position()): text.get_text() for text in speed.texts}
    assert shown == {(0, 0): "1.00", (0, 1): "1.01", (0, 2): "1.02", (1, 0): "1.03", (1, 1): "failed", (1, 2): "1.05"}
    assert speed.images[0].get_array()[2, 0] == 1.02
    assert [text.get_text() for text in speed.get_xticklabels()] == ["0", "0.5"]
    assert [text.get_text() for text in speed.get_yticklabels()] == ["2", "4", "8"]


def test_of_more_knobs_the_others_are_held_at_the_fastest(tmp_path):
    axes = Axis("gamma", ("2", "4")), Axis("nodes", ("9",)), Axis("beam", ("1", "2")), Axis("threshold", ("0", "0.5"))
    drawn = figures(tmp_path, *axes)
    assert list(drawn) == ["sweep_gamma_by_beam", "sweep_beam_by_gamma", "sweep_heat_map"]
    texts = [text.get_text() for text in drawn["sweep_heat_map"].axes[0].texts]
    assert texts == ["1.01", "1.05", "1.03", "1.07"]  # threshold 0.5's
    said = [text.get_text() for part in drawn["sweep_heat_map"].subfigs for text in part.texts]
    assert any("at threshold=0.5, the fastest" in text for text in said)


def test_what_was_published_is_drawn_apart_dashed_and_named(tmp_path):
    drawn = figures(publish(tmp_path / "published", GRID), Axis("threshold", ("0", "0.3", "0.6")))
    (figure,) = drawn.values()
    ours, theirs = figure.axes[:2], figure.axes[2:]
    assert len(theirs) == 2
    assert all(set(curves_of(axes)) == {"kangaroo", "vanilla"} for axes in ours)
    for axes in theirs:
        names = {f"Vicuna-7B, a V100, gamma={gamma}" for gamma in (4, 6)}
        assert set(curves_of(axes)) == names
        assert {line.get_linestyle() for line in axes.lines if line.get_label() in names} == {"--"}
        assert not any(axes.get_shared_x_axes().joined(axes, own) for own in ours)
        assert not any(axes.get_shared_y_axes().joined(axes, own) for own in ours)
    assert [line.get_linestyle() for line in ours[0].lines if line.get_label() == "kangaroo"] == ["-"]
    assert legends_of(figure)[1] == [
        "Some paper, read off a plot",
        "Vicuna-7B, a V100, gamma=4",
        "Vicuna-7B, a V100, gamma=6",
    ]
    assert curves_of(theirs[1])["Vicuna-7B, a V100, gamma=6"] == [(0.0, 2.0), (0.5, 2.5)]


def test_words_are_not_joined_by_lines(tmp_path):
    points = [{"adapter": name, "speedup": 1.5} for name in ("attention", "mlp")]
    folder = publish(tmp_path / "published", gammas(*points))
    (figure,) = figures(folder, Axis("train.architecture", ("paper", "paper-mlp"))).values()
    speed, _, theirs = figure.axes  # no CR was published
    for axes, name in ((speed, "kangaroo"), (theirs, "Vicuna-7B, a V100")):
        (line,) = [line for line in axes.lines if line.get_label() == name]
        assert line.get_linestyle() == "None"
        assert len(line.get_xydata()) == 2
    assert [text.get_text() for text in theirs.get_xticklabels()] == ["attention", "mlp"]


def test_no_two_lines_look_alike(tmp_path):
    drawn = figures(tmp_path, Axis("gamma", ("2", "4")), Axis("nodes", tuple(map(str, range(1, 16)))))
    lines = [line for line in drawn["sweep_gamma_by_nodes"].axes[0].lines if line.get_label().startswith("nodes")]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines) == 15


def test_fewer_than_two_points_are_no_figure(tmp_path):
    assert figures(tmp_path, Axis("gamma", ("2",))) == {}
    assert figures(tmp_path, Axis("gamma", ("2", "4")), failed=("4",)) == {}


def test_values_stand_where_they_are_unless_their_labels_would_overlap():
    assert places(["0", "0.2", "0.8"]) == [0, 0.2, 0.8]
    assert places(["8", "2"]) == [8, 2]
    assert places(["1024", "2048", "16384", "49152", "0"]) == [0, 1, 2, 3, 4]
    assert places(["chain", "auto"]) == [0, 1]
    assert places(["1", "nan"]) == [0, 1]
