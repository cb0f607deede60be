"""The command line: finds the command and runs it. `UserError`, Ctrl-C and the ends of pipes are handled once, here."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import bench
from bench.errors import UserError
from bench.text import shortened, visible, without_credentials

# Name -> module of `bench.commands`, imported when it is used.
COMMANDS = {
    "run": "run",
    "report": "report",
    "compare": "compare",
    "gate": "gate",
    "history": "history",
    "publish": "publish",
    "gate-side": "gate_side",
    "run-worker": "run_worker",
    "train-worker": "train_worker",
    "sweep": "sweep",
    "reproduce": "reproduce",
    "generate": "generate",
    "export": "export",
    "train": "train",
    "bench-engine": "bench_engine",
    "project": "project",
    "replay": "replay",
    "list": "listing",
    "cache": "cache",
}
INTERRUPTED = 130  # as shells report SIGINT
NO_READER = 141  # and SIGPIPE
_STREAMS = ("stdin", "stdout", "stderr")
_OMP_SPINS = "20000"  # pauses of the processor, 25 to 50 ns each
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        _bound_spinning()
        _open_closed_streams()
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except UserError as error:
        return _end(2, f"error: {without_credentials(' '.join(str(error).splitlines()))}")
    except KeyboardInterrupt:
        return _end(INTERRUPTED, "interrupted")
    except BrokenPipeError:  # who read has seen enough
        return _end(NO_READER)
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        return _end(2, f"error: cannot write the output: {error.strerror}; free space, or write it elsewhere")
    return status


def command(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"bench.commands.{COMMANDS[name]}")


def _run(given: list[str]) -> int:
    if given[:1] in (["--version"], ["-V"]):
        print(f"roobench {bench.__version__}")
        return 0
    name = given.pop(0) if given and given[0] in COMMANDS else "run"
    chosen = command(name)
    try:
        options = chosen.parser().parse_args(given)
    except SystemExit:
        sys.stdout.flush()  # --help, into a pipe perhaps
        raise
    with _terminated_as_interrupted():
        status: int = chosen.run(options)
    return status


def _bound_spinning() -> None:
    """Let waiting OpenMP threads sleep after half a millisecond. libgomp reads this when torch is imported.

    By default they spin for several: longer than a slice of the scheduler's, on a core that the thread they wait for
    may need. Between forward passes less than this goes by, so that an undisturbed run never waits for one to wake.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _OMP_SPINS)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: records are kept, temporary files are not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _open_closed_streams() -> None:
    """Put nothing in the place of a stream that the caller closed, before a file of ours gets its number."""
    for number, name in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123


def _end(status: int, message: str = "") -> int:
    """Print what is left to say, where that is still possible."""
    with contextlib.suppress(OSError):
        if message:
            print(visible(shortened(message)), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # else it would be tried once more at the very end, and end in a traceback
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
