"""The questions that are left to ask: handed out in order, and again where a worker was lost with one."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable

from bench.errors import UserError
from bench.run.plan import Asked

_MOST_LOST = 3  # workers that one question may cost: it is then likely to cost every further one


class Handout:
    """Any number of threads may take questions from it. Nothing is handed out before it is opened."""

    def __init__(self) -> None:
        self._left: deque[Asked] = deque()
        self._held = 0
        self._lost: Counter[Asked] = Counter()
        self._is_open = self._is_over = False
        self._changed = threading.Condition()

    def open(self, todo: Iterable[Asked]) -> None:
        """Begin to hand out."""
        with self._changed:
            self._left.extend(todo)
            self._is_open = True
            self._changed.notify_all()

    def take(self) -> Asked | None:
        """The next question, perhaps after a wait; None: all are answered, or it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or (self._is_open and (self._left or not self._held)))
            if self._is_over or not self._left:
                return None
            self._held += 1
            return self._left.popleft()

    def answered(self) -> None:
        """A question that was taken is answered."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()

    def give_back(self, asked: Asked, reason: str) -> None:
        """A question that was taken is the next to be handed out again, since its worker was lost.

        Raises:
            UserError: it has cost several workers.

        """
        with self._changed:
            self._held -= 1
            self._lost[asked] += 1
            self._left.appendleft(asked)
            self._changed.notify_all()
        if self._lost[asked] >= _MOST_LOST:
            raise UserError(
                f"question {asked.question.question_id} has ended {_MOST_LOST} workers, the last one with: {reason}; "
                "a worker may have too little memory: give fewer --workers, or leave a method or peer out"
            )

    def end(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
