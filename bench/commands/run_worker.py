"""run-worker: a process that answers questions of a run, which starts it; see `bench.run.workers.desk`."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from bench.commands import new_parser, say
from bench.errors import UserError


def parser() -> ArgumentParser:
    """The command's arguments."""
    return new_parser("run-worker", "A worker of a run; started by `--workers` and useless by itself.")


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    first = sys.stdin.readline()
    try:
        json.loads(first)["do"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"run-worker is started by a run, which says what to do; it was told {first[:80]!r} ({error})"
        ) from error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who started us decides
    from bench.run.workers import desk, lines

    out = lines.answers()
    lines.serve(desk.Desk(say).answer, _until_they_end(first), out)
    return 0


def _until_they_end(first: str) -> Iterator[str]:
    """The lines of the standard input. Where they end, so does this process at once: whoever asks is gone."""
    found: queue.SimpleQueue[str] = queue.SimpleQueue()
    found.put(first)

    def read() -> None:
        for line in sys.stdin:
            found.put(line)
        os._exit(0)  # in the midst of an answer that nobody will read

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield found.get()
