"""run (the default): measure methods against vanilla decoding."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

import methods
from bench import config
from bench.commands import new_parser, refuse_given, say, tell_written
from bench.errors import UserError, program
from bench.files import user_path

if TYPE_CHECKING:
    from bench.run.plan import Plan
    from bench.run.recorder import Recorder

_COMMANDS = """\
other commands (each has its own --help):
  report RUN_DIR     redraw tables and plots from a run's records
  sweep              one run over the product of some knobs' values, or of some settings of training
  reproduce METHOD   what the method's paper shows, on your model, with the published values next to ours
  train METHOD       train a method's weights (train kangaroo) for a model, on its own answers to prompts of all kinds
  list               methods with their knobs, tasks, models
  generate PROMPT    vanilla and a method side by side on your own prompt, streamed
  export RUN_DIR     a run as answer files in Spec-Bench's format
  compare BASE NEW   what got better or worse between runs of the same questions
  gate --base REV    did this checkout get slower than another commit?
  history RUN_DIR..  speedup and CR over commits
  publish RUNS..     one static site over many runs and machines; --check: can these records be?
  bench-engine       what forward passes cost on this device, and how close vanilla is to the memory's limit
  project            what a published acceptance would be worth at this device's costs
  cache list|clean   what was downloaded or made, and how to remove it

examples:
  python run_bench.py --method kangaroo --tasks all
  python run_bench.py --method kangaroo --method kangaroo:paper --tasks all
  python run_bench.py --method pld+kangaroo --method hf-prompt-lookup --peer none --limit 4
  python run_bench.py --method kangaroo --peer openai:url=http://localhost:8000/v1,name=vllm --peer-limit 0
  python run_bench.py --method kangaroo:threshold=0,gamma=4 --tasks qa,rag --limit 4
  python run_bench.py --preset spec-bench --model lmsys/vicuna-7b-v1.3 --method kangaroo:weights=FOLDER,exit_layer=2

Vanilla decoding always runs as the baseline. Exit status: 0 fine, 1 a lossless method's output was not vanilla's or a
method failed in every question or in a batch, 2 a mistake in the command, 130 interrupted (finished questions are
kept)."""


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "",
        "Measure decoding methods against vanilla decoding on the same device: speedup, compression rate, CTAR.\n"
        f"Methods and peers: {', '.join([methods.ALL, *methods.names()])}.",
        _COMMANDS,
    )
    for flag, options in config.flags(config.RunConfig):
        made.add_argument(flag, **options)
    presets = "; ".join(f"{name}: {_spell(values) or 'the defaults'}" for name, values in config.PRESETS.items())
    made.add_argument("--preset", choices=list(config.PRESETS), help=f"settings by name: {presets}")
    made.add_argument(
        "--resume",
        type=user_path,
        metavar="RUN_DIR",
        help="go on with a run that was killed or interrupted, with its own settings",
    )
    made.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object instead of the tables: the run's folder, and the methods that failed",
    )
    return made


def _spell(values: dict[str, object]) -> str:
    return ", ".join(f"{config.flag_of(key)} {value}" for key, value in values.items())


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    folder, preset, as_json = given.pop("resume", None), given.pop("preset", None), given.pop("json")
    from bench.run import plan, resume  # no torch yet: mistakes in the command are reported at once

    resumed = None if folder is None else (folder, resume.begun(folder))
    if resumed is None:
        settings = config.from_flags(given, preset or "laptop")
    else:
        settings = resume.settings(resumed[1], (config.PRESETS[preset] if preset else {}) | given)
    planned = plan.make_plan(settings, resumed)
    if not any(variant.is_peer for variant in planned.variants):
        refuse_given(given.keys() & {"peer_limit"}, "no peer takes part: leave it out, or name one with --peer")
    with plan.in_own_folder(planned) as own:
        try:
            return _carry_out(own, as_json)
        except KeyboardInterrupt:
            say(f"interrupted: {_how_to_go_on(own)}")
            return 130


def _carry_out(planned: Plan, as_json: bool) -> int:
    from bench.figures import metrics
    from bench.report import write_report
    from bench.report.conclusion import conclusion

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # what a method prints is no JSON
        left = _ask(planned)
    record, folder = left.record, left.folder
    if not left.turns:
        raise KeyboardInterrupt
    paths = write_report(folder, planned.plots)
    failed = metrics.not_lossless(record, [*left.turns, *(turn for block in left.blocks for turn in block.turns)])
    dead = metrics.failed_throughout(record, left.turns)
    fallen = {block.method: block.error for block in reversed(left.blocks) if block.error is not None}
    if as_json:
        print(
            json.dumps(
                {"folder": str(folder), "complete": record.complete, "not_lossless": failed, "failed": fallen | dead}
            )
        )
    else:
        print(conclusion(folder))
        tell_written(paths)
    if not record.complete:
        say("interrupted: the figures are those of the questions finished so far;")
        say(_how_to_go_on(planned))
        return 130
    if failed:
        say(f"NOT LOSSLESS: {', '.join(failed)}; see the divergences in {folder}")
    for label, error in dead.items():
        say(f"{label} failed in every question, first with: {error}")
    for label, error in fallen.items():
        say(f"{label} failed in batches, first with: {error}")
    return 1 if failed or dead or fallen else 0


def _ask(planned: Plan) -> Recorder:
    """Ask all questions, by workers or in this process."""
    if planned.config.by_workers:
        from bench.run.workers import driver

        return driver.carry_out(planned, say)
    from bench.run import runner
    from bench.run.cores import on_free_cores

    if planned.resumed is None:
        settings, warnings = on_free_cores(planned.config)
        planned = dataclasses.replace(planned, config=settings, warnings=(*planned.warnings, *warnings))
    return runner.carry_out(planned, say)


def _how_to_go_on(planned: Plan) -> str:
    """The command that goes on from what an interrupted run has left."""
    from bench.figures.records import read_run

    folder, record = planned.folder, None
    with contextlib.suppress(UserError):
        record = read_run(folder)
    if record is None or record.run_id != planned.run_id:  # none yet, or an earlier one
        return "nothing is recorded yet; run the same command again"
    if record.complete:
        return f"all questions are answered; write the report with: {program()} report {shlex.quote(str(folder))}"
    return f"go on with: {planned.go_on}"
