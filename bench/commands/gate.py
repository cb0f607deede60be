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
from bench.commands import add_run_flags, compare, new_parser, say
from bench.errors import UserError
from bench.figures.rules import GateSettings, Rules

GATE_FILE = "gate.json"
GATES = Path("results/gates")
# Few enough that every question is asked at least once within the budget on two cores.
DEFAULTS: dict[str, Any] = {"method": ("all",), "peer": ("none",), "limit": 4, "max_new_tokens": 32}
_EPILOG = """\
With --base both commits answer the same questions in turns on this machine, block by block, until it is decided for
every method whether it got slower, or the budget is used up; counters (tokens per step, drafts, losslessness) must not
get worse either. Without --base counters are held against results/baselines, and speedups against the floor there.
Flags of a run have defaults of their own here: --method all --limit 4 --max-new-tokens 32; without --base those of the
baseline, or for a new one --limit 1.

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
    "--dtype",
    "--quantize",
    "--device",
    "--threads",
)


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser(
        "gate", "Tell whether this checkout is slower than another commit, or worse than its baseline.", _EPILOG
    )
    made.add_argument("--base", metavar="REV", default=None, help="branch, tag or commit to compare with")
    made.add_argument(
        "--plugin",
        type=Path,
        default=None,
        metavar="DIR",
        help="with --base: gate the commits of this repository, which holds installed methods, not of the bench",
    )
    for flag, settings in config.flags(GateSettings):
        made.add_argument(flag, **settings)
    made.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="DIR",
        help="with --base: folder for both sides' records (default: results/gates/<time>)",
    )
    made.add_argument(
        "--baseline",
        type=Path,
        default=None,
        metavar="DIR",
        help="without --base: another baseline than the model's in results/baselines",
    )
    made.add_argument("--counters", action="store_true", help="without --base: leave the speedups' floor aside")
    made.add_argument(
        "--update-baseline",
        action="store_true",
        help="make a new baseline of this checkout, after showing the difference",
    )
    made.add_argument("--slow-down", action="append", default=[], metavar="METHOD=SHARE", help=argparse.SUPPRESS)
    add_run_flags(made, _RUN_FLAGS)
    compare.add_rules(made)
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    rules = compare.rules_of(options)
    names = [flag[2:].replace("-", "_") for flag in _RUN_FLAGS]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    without = {
        "--baseline": options.baseline,
        "--counters": options.counters,
        "--update-baseline": options.update_baseline,
    }
    with_base = {"--plugin": options.plugin, "--slow-down": options.slow_down, "--out": options.out}
    misplaced = [flag for flag, value in (without if options.base is not None else with_base).items() if value]
    if misplaced:
        how = "without --base" if options.base is not None else "with --base REV"
        raise UserError(f"{' and '.join(misplaced)}: only {how}")
    if options.base is not None:
        return _against_commit(given, options, rules)
    return _against_baseline(given, options, rules)


def _against_baseline(given: dict[str, Any], options: Namespace, rules: Rules) -> int:
    from bench.gate import baseline

    folder = options.baseline or baseline.folder_of(given)
    if not options.update_baseline:
        return compare.show(baseline.check(folder, given, rules, say, counters_only=options.counters), options)
    now = baseline.measure(given, say)
    difference = baseline.difference(folder, now, rules, say)
    if difference is not None:
        compare.show(difference, options)
    baseline.write(folder, now)
    print(f"written: {folder}")
    return 0


def _against_commit(given: dict[str, Any], options: Namespace, rules: Rules) -> int:
    from bench.figures.records import write_json
    from bench.gate.checkout import checked_out, here
    from bench.gate.gate import run_gate

    out = (options.out or GATES / f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}").absolute()
    fixed = {"questions": _questions_file(given.get("questions", "mini")), "out": str(out / "scratch")}
    settings = config.from_flags(DEFAULTS | given | fixed, "laptop")
    slower = tuple(map(_share, options.slow_down))
    asked = GateSettings(**config.given(options, GateSettings), rules=rules, slower=slower)
    with checked_out(options.base, options.plugin, say) as base:
        compared = run_gate(settings, asked, base, here(options.plugin), out, say)
    write_json(out / GATE_FILE, compared)
    status = compare.show(compared, options)
    print(f"records of both sides: {out}")
    return status


def _questions_file(source: str) -> str:
    """A file that both sides can read: base must be asked what new would be, whatever its own mini set is."""
    from bench import questions

    if source == "official":
        return str(questions.fetch_official())
    return str((questions.MINI if source == "mini" else Path(source).expanduser()).absolute())


def _share(text: str) -> tuple[str, float]:
    label, _, share = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if label and 0 < float(share) < math.inf:
            return label, float(share)
    raise UserError(f"--slow-down {text!r} is not METHOD=SHARE, as in kangaroo=0.05")
