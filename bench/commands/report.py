"""report: redraw a run from its records, or table answer files."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from bench.commands import new_parser, tell_written
from bench.errors import UserError


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser(
        "report",
        "Redraw tables, pages and plots of a run from its records; or table answer files in Spec-Bench's format, the\n"
        "baseline's first, of any harness (`export` writes ours). Needs no model and no torch.",
    )
    made.add_argument(
        "run_dir",
        type=Path,
        nargs="+",
        metavar="RUN_DIR | FILE",
        help="folder with run.json and turns.jsonl, like results/runs/<run id>; or two answer files or more",
    )
    made.add_argument("--plots", type=Path, default=None, metavar="DIR", help="folder for the plots")
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    from bench.records import plots_of, read_run
    from bench.report import terminal_table, write_report

    run_dir: Path = options.run_dir[0]
    if run_dir.is_file():
        return _report_answers(options.run_dir)
    if len(options.run_dir) > 1:
        raise UserError(f"report takes one run, not {len(options.run_dir)}: give one folder, or answer files")
    paths = write_report(run_dir, options.plots or plots_of(run_dir, read_run(run_dir).run_id))
    print(terminal_table(json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))))
    tell_written(paths)
    return 0


def _report_answers(files: Sequence[Path]) -> int:
    """Answer files of any harness, the baseline's first."""
    from bench.foreign import foreign_summary
    from bench.report import terminal_table

    if len(files) < 2:
        raise UserError(f"{files[0]} alone cannot be compared: give the baseline's answer file first, then a method's")
    summary = foreign_summary(files[0], files[1:])
    print(terminal_table(summary))
    for name, entry in summary["methods"].items():
        equal = entry["tasks"]["overall"]["text_equal"]
        if entry["kind"] != "vanilla":
            print(f"\n{name}: text equal to the baseline's in {equal['equal']} of {sum(equal.values())} questions")
    print("\n" + "\n".join(f"- {sentence}" for sentence in summary["limits"]))
    return 0
