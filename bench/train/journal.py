"""A journal of finished conversations: a file of one JSON object per line, to which lines are only appended.

A process killed at any moment loses no finished conversation. Truncated lines are skipped.
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
    answers: list[tuple[int, int]]  # (begin, end) of the model's own tokens, rising

    @property
    def answer_tokens(self) -> int:
        """The number of tokens that the model chose."""
        return sum(end - begin for begin, end in self.answers)

    def to_line(self) -> str:
        """Return the conversation as a line of JSON."""
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Conversation | None:
        """Return the conversation in a line; None if the line is damaged."""
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
        """Return the conversations of all complete lines."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return [found for line in text.splitlines() if (found := Conversation.from_line(line))]

    @contextmanager
    def appending(self) -> Iterator[Any]:
        """Yield a function that appends a conversation and flushes it.

        Raises:
            UserError: another process is appending, or the cache cannot be written.

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
        """End a truncated last line, so that new conversations begin on a line of their own."""
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
