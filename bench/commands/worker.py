"""What the commands of workers share: they are asked through the standard input until it ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bench.errors import UserError

if TYPE_CHECKING:
    from bench.run.workers.desk import Desk


def work(started: str, made: Callable[[], Desk]) -> int:
    """Answer requests at a desk, which is made once there is one; returns the exit status.

    Raises:
        UserError: the first line is no request; `started` says who sends these.

    """
    first = sys.stdin.readline()
    try:
        json.loads(first)["do"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{started}, which says what to do; it was told {first[:80]!r} ({error})") from error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who started us decides
    from bench.run.workers import lines

    out = lines.answers()
    lines.serve(made().answer, _until_they_end(first), out)
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
