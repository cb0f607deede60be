"""The one exception that users are meant to see, and what its message may need: a guess, and how we are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake that a user can correct. The message gives the value, the reason and a remedy.

    Caught once, in `bench.cli`, which prints it without a traceback and exits with status 2.
    """


def told(error: BaseException) -> str:
    """An error of somebody's method on one line: its kind, its message, and where it was raised."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def reason_of(error: BaseException) -> str:
    """An error on one line, with its kind where it was not meant for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def did_you_mean(word: str, possible: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" with the nearest of `possible`, or nothing if none is near."""
    import difflib

    close = difflib.get_close_matches(word, list(possible), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def program() -> str:
    """Return how this program is called here, for messages that give a command: it runs when it is pasted."""
    called = Path(sys.argv[0])
    if called.name == "roobench":
        return _spelled("roobench", called)
    is_package = called.name == "__main__.py" and called.parent.name in ("roobench", "bench")
    script = f"-m {called.parent.name}" if is_package else "run_bench.py"
    return f"{_spelled('python', Path(sys.executable))} {script}"


def _spelled(name: str, file: Path) -> str:
    """`name` if the shell finds this very file under it, else the file's path from here."""
    import shlex
    import shutil

    found, file = shutil.which(name), file.absolute()  # not resolved: an environment's `python` is a link
    if found is not None and Path(found).absolute() == file:
        return name
    inside = os.path.relpath(file)
    return shlex.quote(str(file) if inside.startswith(os.pardir) else inside)
