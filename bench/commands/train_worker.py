"""train-worker: a process that writes conversations or computes states for a training; see `bench.train.desk`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from bench.commands import new_parser, say
from bench.commands.worker import work

if TYPE_CHECKING:
    from bench.run.workers.desk import Desk


def parser() -> ArgumentParser:
    """The command's arguments."""
    return new_parser("train-worker", "A worker of a training; started by `--workers` and useless by itself.")


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    return work("train-worker is started by a training", _desk)


def _desk() -> Desk:
    from bench.train.desk import TrainDesk

    return TrainDesk(say)
