"""Conversations on the disk as they end: a file of one JSON object a line, to which lines are only ever added.

Killed at any moment, it keeps every conversation that had ended. A line that was cut short is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.errors import UserError
from bench.files import writing
from bench.train.prompts import KINDS


@dataclass(frozen=True)
class Conversation:
    """One prompt and its answers: token ids, chat template included."""

    kind: str  # one of prompts.KINDS
    template: int  # a hash: prompts of one template are alike
    tokens: list[int]
    answers: list[tuple[int, int]]  # (begin, end) of what the model chose, rising

    @property
    def answer_tokens(self) -> int:
        """How many tokens the model chose."""
        return sum(end - begin for begin, end in self.answers)

    def to_line(self) -> str:
        """The line that stands for it."""
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Conversation | None:
        """What a line stands for; None if it is damaged."""
        try:
            made = cls(**json.loads(line))
            ends = [place for answer in made.answers for place in answer]
            is_whole = ends == sorted(ends) and ends[0] > 0 and ends[-1] <= len(made.tokens)
            is_whole &= all(type(number) is int for number in (made.template, *made.tokens, *ends))
            return made if is_whole and made.kind in KINDS and all(len(a) == 2 for a in made.answers) else None
        except (ValueError, TypeError, IndexError, RecursionError):
            return None


class Journal:
    """The conversations of one recipe, in the order in which they ended."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[Conversation]:
        """All whole lines; none where there is no file yet."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return [found for line in text.splitlines() if (found := Conversation.from_line(line))]

    @contextmanager
    def appending(self) -> Iterator[Any]:
        """Yields a function that adds a conversation, which is on the disk when it returns.

        Raises:
            UserError: another process is adding to it; the disk is full or the cache cannot be written.

        """
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise UserError(
                    f"another process is writing conversations to {self.path}: wait for it, or stop it "
                    "(scripts/harvest.sh stop)"
                ) from error
        try:
            with writing(self.path.parent), self.path.open("ab+") as file:
                self._end_cut_line(file)

                def add(made: Conversation) -> None:
                    with writing(self.path.parent):
                        file.write(made.to_line().encode() + b"\n")
                        file.flush()

                yield add
        finally:
            lock.release()

    @staticmethod
    def _end_cut_line(file: Any) -> None:
        """What is added after a line that was cut short begins on a line of its own."""
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
