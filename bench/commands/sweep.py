"""sweep: a method over the product of some knobs' values."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import config, train_config
from bench.commands import add_training_flags, new_parser, refuse_given, say, tell_written
from bench.files import user_path

if TYPE_CHECKING:
    from bench.sweep.grid import Grid

_SWEEPS = """\
examples:
  python run_bench.py sweep --grid threshold=0,0.2,0.4,0.6,0.8 --grid gamma=2,4,6,8 --limit 2
  python run_bench.py sweep --grid train.exit_layer=1,2,3,5,8 --train-tokens 50000 --out results/runs/exit-layers
  python run_bench.py sweep results/runs/exit-layers      # redraw from the records

Trained weights are kept in the run's folder: the same command with the same --out goes on where it was interrupted.
Exit status as of a run; 1 as well if a variant failed."""


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser("sweep", "Measure a method over the product of some knobs' values, all in one run.", _SWEEPS)
    made.add_argument("run_dir", type=user_path, nargs="?", help="an existing sweep's folder: redraw it")
    made.add_argument(
        "--grid",
        action="append",
        metavar="NAME=V,V,...",
        help="a knob of the method, or a setting of its training (train.exit_layer, train.architecture, ...), with the "
        "values to try; may be repeated",
    )
    add_training_flags(made, "; --grid train.{}=... tries several")
    for flag, options in config.flags(config.RunConfig):
        if flag in config.AXES:
            continue
        made.add_argument(flag, **(options | ({"help": "the method to sweep"} if flag == "--method" else {})))
    made.add_argument("--preset", choices=list(config.PRESETS), help="settings by name, as for run")
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    run_dir = given.pop("run_dir", None)
    if run_dir is not None:
        refuse_given(given, f"{run_dir} is redrawn without further flags; to sweep into a folder, name it with --out")
        return _redraw_sweep(run_dir)
    grids, preset = given.pop("grid", []), given.pop("preset", None) or "laptop"
    training = {name: given.pop(f"train_{name}", None) for name in train_config.SWEEP_TRAINING}
    settings = config.from_flags({"peer": (config.NO_PEER,)} | given, preset)
    from bench.sweep import grid  # no torch yet: mistakes in the command are reported at once

    asked = {name: value for name, value in training.items() if value is not None}
    planned = grid.grid_of(settings, grids, train_config.SWEEP_TRAINING | asked)
    if not any(variant.training for variant in planned.variants):
        refuse_given([f"train_{name}" for name in asked], "nothing is trained without a --grid train.SETTING=...")
    try:
        return _carry_out(settings, planned)
    except KeyboardInterrupt:
        say(f"interrupted: go on with the same command and --out {planned.folder}")
        return 130


def _carry_out(settings: config.RunConfig, planned: Grid) -> int:
    from bench.sweep import sweep

    left, paths = sweep.run(settings, planned, log=say)
    if not paths:
        raise KeyboardInterrupt
    return _show_sweep(left.folder, paths)


def _redraw_sweep(run_dir: Path) -> int:
    from bench.report.sweep_page import write_sweep

    return _show_sweep(run_dir, write_sweep(run_dir))


def _show_sweep(run_dir: Path, paths: Sequence[Path]) -> int:
    from bench.figures import metrics
    from bench.figures.records import read_records
    from bench.report.sweep_page import measured, read_sweep, table
    from bench.report.terminal import print_table

    swept, (record, turns) = read_sweep(run_dir), read_records(run_dir)
    summary, points = measured(swept, record, turns)
    print_table(table(swept, points, sampled=summary.sampling is not None))
    tell_written(paths)
    failed = [point for point in points if point.failure]
    for point in failed:
        say(f"{point.variant.label} failed: {point.failure}")
    if not record.complete:
        say("interrupted: the figures are those of the questions finished so far")
        return 130
    lossy = metrics.not_lossless(record, turns)
    if lossy:
        say(f"NOT LOSSLESS: {', '.join(lossy)}; see the divergences in {run_dir}")
    return 1 if failed or lossy else 0
