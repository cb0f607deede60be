"""Progress on standard error: a bar on a terminal, elsewhere a line every 15 seconds, so that logs stay short."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from bench.text import visible

T = TypeVar("T")
Log = Callable[[str], None]  # told a line of progress
LINE_EVERY_S = 15.0
_SHAPE = "{desc} {percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left  {postfix}"


class Progress:
    """How much of a piece of work is done."""

    def at(self, what: str) -> None:
        """Show what is worked on now."""

    def add(self, done: float) -> None:
        """Count work as done, in units of the total."""


class _Bar(Progress):
    def __init__(self, bar: tqdm[None]):
        self.bar = bar

    def at(self, what: str) -> None:
        self.bar.set_postfix_str(visible(what))

    def add(self, done: float) -> None:
        self.bar.update(done)


class _Lines(Progress):
    def __init__(self, total: float, what: str):
        self.total, self.what, self.done = total, what, 0.0
        self.begin_s = self.told_s = time.monotonic()

    def add(self, done: float) -> None:
        self.done += done
        now_s = time.monotonic()
        if now_s - self.told_s >= LINE_EVERY_S and 0 < self.done < self.total:
            self.told_s, gone_s = now_s, now_s - self.begin_s
            gone, left = map(tqdm.format_interval, (gone_s, gone_s * (self.total / self.done - 1)))
            print(f"{self.what} {self.done / self.total:.0%}: {gone} elapsed, {left} left", file=sys.stderr)


@contextmanager
def progress(total: float, what: str, *, keep: bool = False) -> Iterator[Progress]:
    """Show the progress of the work within. `keep`: a bar stays on the terminal afterwards."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":  # a dumb terminal cannot overwrite a line
        with tqdm(total=total, desc=what, bar_format=_SHAPE, dynamic_ncols=True, leave=keep, file=sys.stderr) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(total, what)


def weighed(items: Iterable[T], total: float, what: str, weight: Callable[[T], float]) -> Generator[T, None, None]:
    """Yield the items, and show how much of their total weight is done."""
    with progress(total, what) as shown:
        for item in items:
            yield item
            shown.add(weight(item))
