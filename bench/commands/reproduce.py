"""reproduce: what a method's paper shows, on a model of yours."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

import methods
from bench import config, train_config
from bench.commands import add_run_flags, add_training_flags, given_of, new_parser, refuse_given, say, tell_written
from bench.errors import program
from bench.files import user_path
from bench.text import visible

if TYPE_CHECKING:
    from bench.sweep.reproduction import Asked, Planned

INTERRUPTED = 130
_FLAGS = (
    *("--model", "--revision", "--peer", "--peer-limit", "--questions", "--tasks", "--limit", "--max-new-tokens"),
    *("--rounds", "--seed", "--dtype", "--quantize", "--device", "--threads"),
)
_EXAMPLES = """\
examples:
  python run_bench.py reproduce kangaroo --dry-run
  python run_bench.py reproduce kangaroo
  python run_bench.py reproduce kangaroo --train
  python run_bench.py reproduce kangaroo --model lmsys/vicuna-7b-v1.3 --knobs weights=FOLDER,exit_layer=2

Every part is a run or a sweep in a folder of its own. Interrupted, the same command goes on. Parts for which weights
must be trained need --train, and the report names what it leaves out. Exit status as of a run."""


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "reproduce",
        "Run what a method's paper shows, each table and figure as a run or a sweep, and write one report with the\n"
        "published values next to ours.",
        _EXAMPLES,
    )
    made.add_argument("method", help="whose paper")
    made.add_argument("--part", action="append", metavar="NAME", help="only this part; may be repeated (default: all)")
    made.add_argument("--train", action="store_true", help="also the parts for which weights must be trained")
    add_training_flags(made)
    made.add_argument(
        "--knobs",
        default="",
        metavar="KEY=VALUE,...",
        help="knobs for every variant of the method whose weights are not trained here, such as weights=FOLDER",
    )
    made.add_argument("--dry-run", action="store_true", help="list the parts with their commands, and run nothing")
    made.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help="folder of all parts and of the report (default: results/runs/reproduce-METHOD-MODEL)",
    )
    add_run_flags(made, _FLAGS)
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.sweep import reproduction  # no torch yet: mistakes in the command are reported at once

    training = {name: getattr(options, f"train_{name}") for name in train_config.SWEEP_TRAINING}
    training = {name: value for name, value in training.items() if value is not None}
    if not options.train:
        refuse_given([f"train_{name}" for name in training], "nothing is trained without --train")
    asked = reproduction.Asked(
        options.method,
        methods.recipe(options.method),
        config.frozen(given_of(options, _FLAGS)),
        options.knobs,
        options.train,
        training,
        options.part or (),
        options.out,
    )
    planned = reproduction.plan(asked)
    if options.dry_run:
        _show(planned)
        return 0
    return _carry_out(asked, planned)


def _show(planned: Sequence[Planned]) -> None:
    """List the parts, and the command of each."""
    from bench.report.model import table
    from bench.report.reproduction_page import status
    from bench.report.terminal import print_table

    rows = [[one.part.name, str(one.part.minutes), status(one.folder, one.state)[0]] for one in planned]
    print_table(table(["part", "minutes", "here"], rows, (0, 2)))
    print("\nMinutes: about, with the recipe's questions and the default model, on two cores.")
    for one in planned:
        print(visible(f"\n{one.part.name}: {one.part.shows}\n  {program()} {one.state.command}"))
        for label, reason in one.state.left_out.items():
            print(visible(f"  {label} is left out: {reason}"))


def _carry_out(asked: Asked, planned: Sequence[Planned]) -> int:
    """Carry out what is not done yet; the page is rewritten after every part."""
    from bench.report.reproduction_page import write_page
    from bench.sweep import reproduction

    made = reproduction.begin(asked, planned)
    todo, worst, paths = [one for one in planned if one.config is not None and not one.done], 0, []
    for number, one in enumerate(todo, 1):
        about = f"about {one.part.minutes} min with the default model on two cores"
        say(f"part {number} of {len(todo)}: {one.part.name} ({one.part.shows}), {about}")
        for label, reason in one.state.left_out.items():
            say(f"WARNING: {label} is left out: {reason}")
        worst = max(worst, _run_part(one))
        paths = write_page(asked.folder, made, asked.recipe)
        if worst == INTERRUPTED:
            say(f"interrupted: the same command goes on with {one.part.name}")
            break
    else:
        worst = max(worst, _finish(planned))
        paths = write_page(asked.folder, made, asked.recipe)
    if paths:
        tell_written(paths)
    return worst


def _run_part(one: Planned) -> int:
    """Run a part's command, or go on with its run; returns the exit status."""
    name, *given = one.arguments
    if name == "run" and one.begun:
        given = ["--resume", str(one.folder)]
    command = importlib.import_module(f"bench.commands.{name}")
    status: int = command.run(command.parser().parse_args(given))
    return status


def _finish(planned: Sequence[Planned]) -> int:
    """Draw the reports that a killed command has left undone; returns 1 if a finished part was not lossless."""
    from bench.figures import metrics
    from bench.figures.records import plots_of, read_records
    from bench.report import REPORT_FILE, write_report
    from bench.report.sweep_page import SWEEP_PAGE, write_sweep

    failed = []
    for one in (one for one in planned if one.done):
        record, turns = read_records(one.folder)
        failed += metrics.not_lossless(record, turns)
        if one.part.grid and not (one.folder / SWEEP_PAGE).is_file():
            write_sweep(one.folder)
        if not (one.folder / REPORT_FILE).is_file():
            write_report(one.folder, plots_of(one.folder, record.run_id))
    return 1 if failed else 0
