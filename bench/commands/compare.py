"""compare: a run with others of the same questions."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import config
from bench.commands import new_parser
from bench.errors import UserError
from bench.figures.rules import Rules
from bench.files import check_output, user_path

if TYPE_CHECKING:
    from bench.figures.comparison import Comparison
    from bench.figures.records import Records

_EPILOG = """\
exit status: 0 nothing got worse, or it is inconclusive (then 1 with --strict), 1 something got worse, 2 the runs cannot
be compared. Speedups of separate runs are inconclusive if a machine was busy, the machines differ, or a method measured
other forward-pass costs and drafted differently; the command of a gate, which compares the code itself, is then shown.

examples:
  python run_bench.py compare results/runs/BASE results/runs/NEW
  python run_bench.py compare BASE NEW --markdown pr.md --junit junit.xml"""

_KINDS = {"markdown": "for a pull request", "json": "for programs", "junit": "for CI's test view"}


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "compare",
        "Show what got better or worse between runs of the same questions, or between two answer files of one method\n"
        "in Spec-Bench's format. No model, no torch.",
        _EPILOG,
    )
    made.add_argument("base", type=user_path, help="folder of the run to compare with, or an answer file")
    made.add_argument(
        "new", type=user_path, nargs="+", help="folder of the run to judge; more of them are judged one by one"
    )
    add_rules(made)
    return made


def add_rules(made: ArgumentParser) -> None:
    """Add the flags that `gate` has too."""
    for flag, settings in config.flags(Rules):
        made.add_argument(flag, **settings)
    made.add_argument("--strict", action="store_true", help="exit with 1 if the comparison is inconclusive")
    for kind, what in _KINDS.items():
        made.add_argument(f"--{kind}", type=user_path, metavar="FILE", help=f"also write the comparison {what}")


def check_outputs(options: Namespace) -> None:
    """Refuse files that cannot be written, before anything is measured."""
    for kind in _KINDS:
        check_output(getattr(options, kind), f"--{kind}")


def rules_of(options: Namespace) -> Rules:
    """The rules that were given."""
    return Rules(**config.given(options, Rules))


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.figures.records import read_records
    from bench.spec_bench.compare_answers import compare_answers

    rules, files = rules_of(options), [path.is_file() for path in (options.base, *options.new)]
    check_outputs(options)
    if any(files) and not all(files):
        raise UserError("a run cannot be compared with an answer file: give two runs, or answer files (`export`)")
    if all(files):
        found = [compare_answers(options.base, new, rules) for new in options.new]
    else:
        base = read_records(options.base)
        found = [_compared(base, read_records(new), rules) for new in options.new]
    return max(show(compared, options, number) for number, compared in enumerate(found))


def _compared(base: Records, new: Records, rules: Rules) -> Comparison:
    """The comparison, with the way out where it is inconclusive."""
    from bench.figures.comparable import remedy
    from bench.figures.compare import compare
    from bench.figures.verdicts import UNKNOWN

    compared = compare(base, new, rules)
    if compared.verdict == UNKNOWN and not compared.interleaved:
        compared.warnings.append(remedy(base[0], new[0]))
    return compared


def show(compared: Comparison, options: Namespace, number: int = 0) -> int:
    """Print and write a comparison; returns the exit status."""
    from bench.figures.records import atomic_writer, write_json
    from bench.figures.verdicts import UNKNOWN, WORSE
    from bench.report import compare_page

    print(compare_page.terminal(compared))
    texts = {"markdown": compare_page.markdown, "junit": compare_page.junit}
    for kind in _KINDS:
        path: Path | None = getattr(options, kind)
        if path is None:
            continue
        if number:  # several runs are judged: a file each
            path = path.with_stem(f"{path.stem}-{number + 1}")
        if kind == "json":
            write_json(path, compared)
        else:
            with atomic_writer(path) as file:
                file.write(texts[kind](compared))
        print(f"written: {path}")
    if compared.verdict == UNKNOWN:
        print(f"WARNING: inconclusive{_remedy(compared)}", file=sys.stderr)
        return int(options.strict)
    return int(compared.verdict == WORSE)


def _remedy(compared: Comparison) -> str:
    if compared.gate is None:
        return ": give more questions, a quieter machine, or a gate"
    budget = f"{compared.gate.budget_min:g} minutes"
    return f" within {budget}: give more with --budget-min, fewer methods, or a quieter machine"
