"""publish: a static site over many runs, an index for programs, and checks of contributed runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench.commands import new_parser, say, tell_written
from bench.errors import UserError
from bench.files import check_writable, user_path

_EXAMPLES = """\
exit status: with --check, 1 if a run is not plausible; 2 if a run cannot be read or the site cannot be written.

examples:
  python run_bench.py publish results/runs/* --out site
  python run_bench.py publish --check results/contributed/my-machine
  python run_bench.py publish --index --out results"""
_COMMITTED = (Path("results/reference"), Path("results/contributed"))


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "publish",
        "Write one static site over runs of many models and machines: a leaderboard, history over commits, curves\n"
        "over batch sizes, a page a method, and every run's report. No model, no torch, no network, no server.",
        _EXAMPLES,
    )
    made.add_argument(
        "runs",
        type=user_path,
        nargs="*",
        metavar="RUNS",
        help="folders of runs, like results/runs/RUN_ID, or folders above them (default: the runs that come with the "
        "project, in results/reference and results/contributed)",
    )
    made.add_argument(
        "--out", type=user_path, default=Path("site"), metavar="DIR", help="folder of the site (default: %(default)s)"
    )
    only = made.add_mutually_exclusive_group()
    only.add_argument("--index", action="store_true", help="write index.json alone, into the folder of --out")
    only.add_argument("--check", action="store_true", help="write nothing; say what is not plausible in the records")
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    folders = options.runs or _committed()
    if options.check:
        return _check(folders)
    from bench.report import site

    check_writable(options.out)
    if options.index:
        tell_written([site.write_index(folders, options.out)])
    else:
        tell_written(site.write_site(folders, options.out, say))
    return 0


def _committed() -> list[Path]:
    """The folders of the project's own runs that have any.

    Raises:
        UserError: there are none here.

    """
    from bench.figures.records import RUN_FILE

    found = [folder for folder in _COMMITTED if any(folder.rglob(RUN_FILE))]
    if not found:
        places = " and ".join(map(str, _COMMITTED))
        raise UserError(f"no runs are given, and none are in {places}: give folders like results/runs/RUN_ID")
    return found


def _check(folders: list[Path]) -> int:
    """Print what is wrong with each run, a sentence a line."""
    from bench.figures.plausible import check_folder, read_known, runs_below
    from bench.text import visible

    known, bad = read_known(), 0
    for folder in runs_below(folders):
        sentences = check_folder(folder, known)
        bad += bool(sentences)
        print(visible(f"{folder}: {'plausible' if not sentences else ''}".rstrip()))
        for sentence in sentences:
            print(visible(f"  {sentence}"))
    if bad:
        print(f"{bad} run{'s are' if bad > 1 else ' is'} not plausible", file=sys.stderr)
    return int(bad > 0)
