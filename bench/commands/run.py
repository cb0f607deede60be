"""run (the default): measure methods against vanilla decoding."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import methods
from bench import config
from bench.commands import new_parser, say, tell_written

_COMMANDS = """\
other commands (each has its own --help):
  report RUN_DIR     redraw tables and plots from a run's records
  sweep              one run over the product of some knobs' values, or of some settings of training
  train METHOD       train a method's weights (train kangaroo) for a model, on its own answers to prompts of all kinds
  list               methods with their knobs, tasks, models
  generate PROMPT    vanilla and a method side by side on your own prompt, streamed
  export RUN_DIR     a run as answer files in Spec-Bench's format
  compare BASE NEW   what got better or worse between runs of the same questions
  gate --base REV    did this checkout get slower than another commit?
  history RUN_DIR..  speedup and CR over commits
  bench-engine       what passes cost on this device, and how close vanilla is to the memory's limit
  project            what a published acceptance would be worth at this device's costs
  cache list|clean   what was downloaded, and how to be rid of it

examples:
  python run_bench.py --method kangaroo --tasks all
  python run_bench.py --method kangaroo --method kangaroo:paper --tasks all
  python run_bench.py --method kangaroo:threshold=0,gamma=4 --tasks qa,rag --limit 4
  python run_bench.py --preset spec-bench --model lmsys/vicuna-7b-v1.3 --method kangaroo:weights=FOLDER,exit_layer=2

Vanilla decoding always runs as the baseline. Exit status: 0 fine, 1 a lossless method's output was not vanilla's or a
method failed in every question, 2 a mistake in the command, 130 interrupted (what was done until then is kept)."""


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser(
        "",
        "Measure decoding methods against vanilla decoding on the same device: speedup, compression rate, CTAR.\n"
        f"Methods: {', '.join(methods.names())}.",
        _COMMANDS,
    )
    for flag, options in config.flags(config.RunConfig):
        made.add_argument(flag, **options)
    presets = "; ".join(f"{name}: {_spell(values) or 'the defaults'}" for name, values in config.PRESETS.items())
    made.add_argument("--preset", choices=list(config.PRESETS), default=None, help=f"settings by name: {presets}")
    made.add_argument(
        "--resume",
        type=Path,
        default=None,
        metavar="RUN_DIR",
        help="go on with a run that was killed or interrupted, under the settings that it was begun with",
    )
    return made


def _spell(values: dict[str, object]) -> str:
    return ", ".join(f"--{key.replace('_', '-')} {value}" for key, value in values.items())


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    folder, preset = given.pop("resume", None), given.pop("preset", None)
    from bench.figures import metrics
    from bench.figures.summary import read_summary
    from bench.report import terminal_table, write_report
    from bench.run import resume, runner

    resumed = None if folder is None else (folder, resume.begun(folder))
    if resumed is None:
        settings = config.from_flags(given, preset or "laptop")
    else:
        settings = resume.settings(resumed[1], (config.PRESETS[preset] if preset else {}) | given)
    left = runner.run(settings, say, resumed)
    record, folder = left.record, left.folder
    if not left.turns:
        print("interrupted before the first question was through: there is nothing to report", file=sys.stderr)
        return 130
    paths = write_report(folder, left.plan.plots)
    print(terminal_table(read_summary(folder)))
    tell_written(paths)
    if not record.complete:
        print("interrupted: the figures are of the questions finished until then;", file=sys.stderr)
        print(f"go on with: python run_bench.py --resume {folder}", file=sys.stderr)
        return 130
    failed = metrics.not_lossless(record, left.turns)
    if failed:
        print(f"NOT LOSSLESS: {', '.join(failed)}; see the divergences in {folder}", file=sys.stderr)
    dead = metrics.failed_throughout(record, left.turns)
    for label, error in dead.items():
        print(f"{label} failed in every question, first with: {error}", file=sys.stderr)
    return 1 if failed or dead else 0
