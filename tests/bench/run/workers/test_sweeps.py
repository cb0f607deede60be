"""Sweeps by workers: every variant is measured as by one process, what fails is left out, and it goes on."""

from __future__ import annotations

import csv
import itertools
from dataclasses import asdict

import pytest

from bench.cli import main
from bench.config import RunConfig
from bench.errors import UserError
from bench.report.sweep_page import read_sweep
from bench.run import recorder
from bench.sweep import grid, sweep
from bench.train_config import SWEEP_TRAINING
from tests.tiny import records

TWO = ("--workers", "2", "--threads", "1")
METHOD = "layer-skip:stop=threshold,threshold=0"
LABELS = [f"{METHOD},exit_layer={layer}" for layer in (1, 2, 9)]  # of four

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture
def swept(setting, monkeypatch):
    """(folder, flags) -> the exit status of a sweep of which the last variant fails; figures are only noted."""
    monkeypatch.setattr("bench.report.sweep_figures.write_sweep_figures", lambda *given: [])
    base = ["--model", str(setting.model), "--questions", setting.questions, "--max-new-tokens", "8"]
    grid = ["--method", METHOD, "--grid", "exit_layer=1,2,9"]
    return lambda out, *flags: main(["sweep", *base, *grid, "--out", str(out), *flags])


def test_a_sweep_by_workers_is_that_of_one_process_and_goes_on_where_it_was_interrupted(
    setting, swept, answers, working, monkeypatch, capsys
):
    append, count = recorder.append_turns, itertools.count()

    def interrupted(path, turns, go_on):
        append(path, turns, go_on)
        if next(count) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "MANY", 1)
    monkeypatch.setattr(recorder, "append_turns", interrupted)
    assert swept(setting.out, *TWO) == 130
    said = capsys.readouterr().err
    assert f"WARNING: {LABELS[2]} fails and is left out: layer-skip: exit_layer=9 leaves no layers to verify" in said
    assert "WARNING: 2 variants take long, about 0 min" in said
    assert f"go on with the same command and --out {setting.out}" in said
    assert not working()
    assert len({turn.question_id for turn in records(setting.out)[1]}) == 1
    assert swept(setting.out, *TWO) == 1  # as one has failed
    alone = setting.out.parent / "alone"
    assert swept(alone, "--threads", "1") == 1
    (run, turns), (_, expected) = records(setting.out), records(alone)
    assert run.complete
    assert run.config["method"] == LABELS[:2]
    assert answers(turns) == answers(expected)
    assert set(run.workers) == {"1", "2"}
    assert len(run.provenance["sessions"]) == 2
    ours, theirs = (asdict(read_sweep(folder)) for folder in (setting.out, alone))
    assert ours == theirs
    with (setting.out / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert [row["audited"] for row in rows.values()] == ["4", "4", ""]


def test_a_sweep_of_which_nothing_is_left_is_an_error(setting, working, capsys):
    base = ["--model", str(setting.model), "--questions", setting.questions, "--out", str(setting.out)]
    assert main(["sweep", *base, "--method", METHOD, "--grid", "exit_layer=9", "--workers", "1"]) == 2
    assert (
        f"no variant of the sweep is left; the last, {LABELS[2]}: layer-skip: exit_layer=9" in capsys.readouterr().err
    )
    assert not working()


def test_trainings_of_a_sweep_have_its_workers():
    config = RunConfig(method=("kangaroo",), peer=("none",), workers=2, threads=1)
    (variant,) = grid.grid_of(config, ["train.exit_layer=1"], SWEEP_TRAINING).variants
    assert (variant.training.workers, variant.training.threads) == (2, 1)
    with pytest.raises(UserError, match=r"train.workers: no setting"):
        grid.grid_of(config, ["train.workers=1,2"], SWEEP_TRAINING)
