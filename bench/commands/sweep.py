"""sweep: a method over the product of some knobs' values."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from bench import config
from bench.commands import new_parser, say, tell_written
from bench.errors import UserError

_SWEEPS = """\
examples:
  python run_bench.py sweep --grid threshold=0,0.2,0.4,0.6,0.8 --grid gamma=2,4,6,8 --limit 2
  python run_bench.py sweep --grid train.exit_layer=1,2,3,5,8 --train-tokens 50000 --out results/runs/exit-layers
  python run_bench.py sweep results/runs/exit-layers      # redraw from the records

Trained weights are kept in the run's folder: the same command with the same --out goes on where it was interrupted.
Exit status as of a run; 1 as well if a variant failed."""


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser("sweep", "Measure a method over the product of some knobs' values, all in one run.", _SWEEPS)
    made.add_argument("run_dir", type=Path, nargs="?", help="an existing sweep's folder: redraw it")
    made.add_argument(
        "--grid",
        action="append",
        metavar="NAME=V,V,...",
        help="a knob of the method, or a setting of its training (train.exit_layer, train.architecture, ...), with the "
        "values to try; may be repeated",
    )
    for name, what in (("tokens", "tokens of answers"), ("epochs", "passes over them")):
        default = config.SWEEP_TRAINING[name]
        text = f"{what} for each training (default: {default}); --grid train.{name}=... tries several"
        made.add_argument(f"--train-{name}", type=int, default=default, metavar="N", help=text)
    for flag, options in config.flags(config.RunConfig):
        made.add_argument(flag, **(options | ({"help": "the method to sweep"} if flag == "--method" else {})))
    made.add_argument("--preset", choices=list(config.PRESETS), default=None, help="settings by name, as for run")
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    given = dict(vars(options))
    run_dir, grids, preset = given.pop("run_dir"), given.pop("grid"), given.pop("preset")
    training = {name: given.pop(f"train_{name}") for name in config.SWEEP_TRAINING}
    if run_dir is not None:
        if grids or any(value is not None for value in given.values()):
            raise UserError(f"{run_dir} is redrawn without further flags; to sweep into a folder, name it with --out")
        return _redraw_sweep(run_dir)
    asked = {name: value for name, value in given.items() if value is not None}
    settings = config.from_flags({"peer": ("none",)} | asked, preset or "laptop")
    from bench.sweep import sweep

    left, paths = sweep.run(settings, grids or [], training, log=say)
    if not paths:
        print("interrupted before the first question was through: there is nothing to report", file=sys.stderr)
        return 130
    return _show_sweep(left.folder, paths)


def _redraw_sweep(run_dir: Path) -> int:
    from bench.report.sweep_page import write_sweep

    return _show_sweep(run_dir, write_sweep(run_dir))


def _show_sweep(run_dir: Path, paths: Sequence[Path]) -> int:
    from bench.figures import metrics
    from bench.figures.records import read_records
    from bench.report.markdown import table_text
    from bench.report.sweep_page import measured, read_sweep, table

    swept, (record, turns) = read_sweep(run_dir), read_records(run_dir)
    summary, points = measured(swept, record, turns)
    print(table_text(table(swept, points, sampled=summary.sampling is not None)))
    tell_written(paths)
    failed = [point for point in points if point.failure]
    for point in failed:
        print(f"{point.variant.label} failed: {point.failure}", file=sys.stderr)
    if not record.complete:
        print("interrupted: the figures are of the questions finished until then", file=sys.stderr)
        return 130
    lossy = metrics.not_lossless(record, turns)
    if lossy:
        print(f"NOT LOSSLESS: {', '.join(lossy)}; see the divergences in {run_dir}", file=sys.stderr)
    return 1 if failed or lossy else 0
