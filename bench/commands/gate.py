"""gate: did a commit cost speed?"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from bench import config
from bench.commands import COMPUTE_FLAGS, add_run_flags, compare, given_of, new_parser, refuse_given, say
from bench.errors import UserError
from bench.figures.rules import GateSettings, Rules
from bench.files import check_writable, user_path

GATE_FILE = "gate.json"
GATES = Path("results/gates")
# Few enough that every question is asked at least once within the budget on two cores.
DEFAULTS: dict[str, Any] = {"peer": (config.NO_PEER,), "limit": 4, "max_new_tokens": 32}
_EPILOG = """\
With --base both commits answer the same questions in turns on this machine, block by block, until it is decided for
every method whether it got slower, or the budget is used up; counters (tokens per step, drafts, losslessness) must not
get worse either. Without --base, counters are compared with results/baselines, and speedups with the floor there.
Flags of a run have defaults of their own here: --peer none --limit 4 --max-new-tokens 32; without --base those of the
baseline, or for a new one --method all --limit 1. With more methods than one or two, give more than ten minutes.

exit status: 0 nothing got worse, 1 something did (with --strict also: inconclusive), 2 it cannot be compared

examples:
  python run_bench.py gate --base origin/main
  python run_bench.py gate --base HEAD~1 --method kangaroo --budget-min 5 --markdown pr.md
  python run_bench.py gate                          # counters and floor of the committed baseline
  python run_bench.py gate --update-baseline        # show the difference, then take this commit's figures
  roobench gate --base origin/main --plugin . --method mine    # a repository that holds a method alone"""
_RUN_FLAGS = (
    "--method",
    "--model",
    "--revision",
    "--questions",
    "--tasks",
    "--limit",
    "--max-new-tokens",
    "--seed",
    *COMPUTE_FLAGS,
)
# What means nothing with --base, and without it.
_WITHOUT_BASE = ("--baseline", "--counters", "--update-baseline")
_WITH_BASE = ("--plugin", "--slow-down", "--out", "--budget-min", "--alarm")


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "gate", "Tell whether this checkout is slower than another commit, or worse than its baseline.", _EPILOG
    )
    made.add_argument("--base", metavar="REV", help="branch, tag or commit to compare with")
    made.add_argument(
        "--plugin",
        type=user_path,
        metavar="DIR",
        help="with --base: gate the commits of this repository, which holds installed methods, not of the bench",
    )
    for flag, settings in config.flags(GateSettings):
        made.add_argument(flag, **settings)
    made.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help="with --base: folder for both sides' records (default: results/gates/<time>)",
    )
    made.add_argument(
        "--baseline",
        type=user_path,
        metavar="DIR",
        help="without --base: another baseline than the model's in results/baselines",
    )
    switch: dict[str, Any] = {"action": "store_const", "const": True}
    made.add_argument("--counters", **switch, help="without --base: ignore the floor of the speedups")
    made.add_argument(
        "--update-baseline", **switch, help="make a new baseline of this checkout, after showing the difference"
    )
    made.add_argument("--slow-down", action="append", metavar="METHOD=SHARE", help=argparse.SUPPRESS)
    add_run_flags(made, _RUN_FLAGS)
    compare.add_rules(made)
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    rules, given = compare.rules_of(options), given_of(options, _RUN_FLAGS)
    compare.check_outputs(options)
    if options.base is None:
        refuse_given(given_of(options, _WITH_BASE), "only with --base REV")
        return _against_baseline(given, options, rules)
    refuse_given(given_of(options, _WITHOUT_BASE), "only without --base")
    return _against_commit(given, options, rules)


def _against_baseline(given: dict[str, Any], options: Namespace, rules: Rules) -> int:
    from bench.run import plan  # no torch yet: mistakes in the command are reported at once

    plan.check(config.from_flags({"method": (), "peer": (config.NO_PEER,)} | given, "laptop"))
    from bench.gate import baseline

    folder = options.baseline or baseline.folder_of(given)
    if not options.update_baseline:
        return compare.show(baseline.check(folder, given, rules, say, counters_only=bool(options.counters)), options)
    now = baseline.measure(given, say)
    difference = baseline.difference(folder, now, rules, say)
    if difference is not None:
        compare.show(difference, options)
    baseline.write(folder, now)
    print(f"written: {folder}")
    return 0


def _against_commit(given: dict[str, Any], options: Namespace, rules: Rules) -> int:
    from bench.figures.records import write_json
    from bench.run import plan  # no torch yet: mistakes in the command are reported at once

    out = (options.out or GATES / f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}").absolute()
    check_writable(out)
    fixed = {"questions": _questions_file(given.get("questions", "mini")), "out": str(out / "scratch")}
    settings = config.from_flags(DEFAULTS | given | fixed, "laptop")
    slower = tuple(map(_share, options.slow_down or ()))
    asked = GateSettings(**config.given(options, GateSettings), rules=rules, slower=slower)
    plan.check(settings)
    from bench.gate.checkout import checked_out, here
    from bench.gate.gate import run_gate

    with checked_out(options.base, options.plugin, say) as base:
        compared = run_gate(settings, asked, base, here(options.plugin), out, say)
    write_json(out / GATE_FILE, compared)
    status = compare.show(compared, options)
    print(f"records of both sides: {out}")
    return status


def _questions_file(source: str) -> str:
    """A file that both sides can read: base must be asked what new is, whatever its own mini set is."""
    from bench import questions

    if source == "official":
        return str(questions.fetch_official())
    return str((questions.MINI if source == "mini" else user_path(source)).absolute())


def _share(text: str) -> tuple[str, float]:
    label, _, share = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if label and 0 < float(share) < math.inf:
            return label, float(share)
    raise UserError(f"--slow-down {text!r} is not METHOD=SHARE, as in kangaroo=0.05")
