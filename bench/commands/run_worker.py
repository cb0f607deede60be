"""run-worker: a process that answers questions of a run, which starts it; see `bench.run.workers.run_desk`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from bench.commands import new_parser, say
from bench.commands.worker import work

if TYPE_CHECKING:
    from bench.run.workers.desk import Desk


def parser() -> ArgumentParser:
    """The command's arguments."""
    return new_parser("run-worker", "A worker of a run; started by `--workers` and useless by itself.")


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    return work("run-worker is started by a run", _desk)


def _desk() -> Desk:
    from bench.run.workers.run_desk import RunDesk

    return RunDesk(say)
