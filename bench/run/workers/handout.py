"""The work that is left: handed out in order, and again where a worker was lost with it."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from bench.errors import UserError

Item = TypeVar("Item", bound=Hashable)
_MOST_LOST = 3  # workers that one item may cost: it is then likely to cost every further one


class Handout(Generic[Item]):
    """Items of work, such as the questions of a run. Any number of threads may take some."""

    def __init__(self, name: Callable[[Item], str], remedy: str):
        """`name`: of an item, for readers; `remedy`: what to do where workers have too little memory."""
        self._name, self._remedy = name, remedy
        self._left: deque[Item] = deque()
        self._held = 0
        self._lost: Counter[Item] = Counter()
        self._is_closed = self._is_over = False
        self._changed = threading.Condition()

    def add(self, todo: Iterable[Item]) -> None:
        """Hand these out, too."""
        with self._changed:
            self._left.extend(todo)
            self._changed.notify_all()

    def close(self) -> None:
        """There will be no more: who finds nothing left is done, once nobody holds what may come back."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self) -> Item | None:
        """The next item, perhaps after a wait; None: all are done, or it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._left or (self._is_closed and not self._held))
            if self._is_over or not self._left:
                return None
            self._held += 1
            return self._left.popleft()

    def done(self) -> None:
        """An item that was taken is done."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()

    def give_back(self, item: Item, reason: str) -> None:
        """An item that was taken is the next to be handed out again, since its worker was lost.

        Raises:
            UserError: it has cost several workers.

        """
        with self._changed:
            self._held -= 1
            self._lost[item] += 1
            self._left.appendleft(item)
            self._changed.notify_all()
        if self._lost[item] >= _MOST_LOST:
            raise UserError(
                f"{self._name(item)} has ended {_MOST_LOST} workers, the last one with: {reason}; a worker may have "
                f"too little memory: {self._remedy}"
            )

    def end(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
