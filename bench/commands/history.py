"""history: speedup and CR over commits."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench.commands import new_parser, tell_written
from bench.files import user_path


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser("history", "Show speedup and CR of runs of the same questions over the commits that made them.")
    made.add_argument("run_dirs", type=user_path, nargs="+", metavar="RUN_DIR", help="folders of runs")
    made.add_argument("--out", type=user_path, default="plots/history", metavar="DIR", help="(default: %(default)s)")
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.report import history
    from bench.report.terminal import print_table

    points = history.read_history(options.run_dirs)
    print_table(history.table(points))
    tell_written(history.write_history(points, options.out))
    return 0
