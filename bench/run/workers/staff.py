"""Keeps workers going: a thread for each starts it, gives it work, and replaces it if it is lost.

What happens is put into one queue of events, which one process reads: the driver, which alone writes down what workers
answer.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self

from bench.errors import UserError
from bench.run.workers.handout import Handout, Item
from bench.run.workers.links import Hire, Link, LostWorkerError
from bench.run.workers.seats import Seat, Seats

_CLOSE_S = 20.0
_MOST_LOST = 3  # times in a row that a worker is replaced before it has done any work


@dataclass(frozen=True)
class Answered(Generic[Item]):
    """The worker at a place has answered about an item, perhaps not for the last time."""

    place: int
    item: Item
    answer: dict[str, Any]


@dataclass(frozen=True)
class Lost(Generic[Item]):
    """A worker has ended, perhaps with an item that goes to another; `for_good`: it is not replaced."""

    place: int
    reason: str
    item: Item | None
    for_good: bool


@dataclass(frozen=True)
class Failed:
    """The work cannot go on."""

    error: BaseException


class Staff(ABC, Generic[Item]):
    """All workers, from the start of the first to the end of the last."""

    remedy: ClassVar[str] = "give fewer --workers"  # where they have too little memory

    def __init__(self, hire: Hire, workers: int, threads: int, name: Callable[[Item], str]):
        """`threads`: of each worker, see `Seats`; `name`: of an item, for readers."""
        self.handout, self.seats = Handout(name, self.remedy), Seats(threads, workers)
        self.workers, self.left = workers, workers  # all places, and those that are not given up
        self._hire, self._name = hire, name
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._links: dict[int, Link] = {}
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._keep_going, args=(place,), daemon=True) for place in range(1, workers + 1)
        ]

    @abstractmethod
    def get_ready(self, place: int, link: Link) -> None:
        """Have a new worker do all that comes before its first item; in its thread."""

    @abstractmethod
    def ask(self, place: int, link: Link, item: Item) -> None:
        """Have a worker do an item, and tell what it answers; in its thread."""

    @property
    def is_over(self) -> bool:
        """Return whether all workers are being ended."""
        return self._is_over.is_set()

    def tell(self, event: Any) -> None:
        """Put an event into the queue."""
        self._events.put(event)

    def next_event(self) -> Any:
        """The next event, perhaps after a wait: `Answered`, `Lost`, or one that a subclass tells.

        Raises:
            UserError: a mistake of the user's, an item that costs worker after worker, or no worker is left.

        """
        event = self._events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Lost) and event.for_good:
            self.left -= 1
            if not self.left:
                raise UserError(
                    f"no worker is left, the last one ended with: {event.reason}; if memory is short, {self.remedy}"
                )
        return event

    def told(self, lost: Lost[Item], name: str) -> str:
        """What has happened to the worker of that name, for readers."""
        what = "" if lost.item is None else f" while it was at {self._name(lost.item)}, which goes to another"
        return f"worker {name} was lost{what}: {lost.reason}"

    def seat_of(self, place: int, link: Link) -> Seat:
        """The seat of a new worker, once all have said where they are."""
        return self.seats.take(place, link.ask(do="hello"))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._is_over.set()
            links = list(self._links.values())
        self.handout.end()
        self.seats.end()
        for link in links:
            link.end()
        for thread in self._threads:
            thread.join(_CLOSE_S)

    def _keep_going(self, place: int) -> None:
        """Have the worker at a place do items until there are none, with a new one for each that is lost."""
        losses = 0
        while not self.is_over:
            item = None
            try:
                with contextlib.closing(self._started(place)) as link:
                    self.get_ready(place, link)
                    while (item := self.handout.take()) is not None:
                        self.ask(place, link, item)
                        self.handout.done()
                        losses, item = 0, None
                return
            except LostWorkerError as lost:
                losses += 1
                if self.is_over or not self._goes_on(Lost(place, str(lost), item, losses >= _MOST_LOST)):
                    return
            except BaseException as error:
                self.tell(Failed(error))
                return

    def _started(self, place: int) -> Link:
        with self._lock:
            if self.is_over:
                raise LostWorkerError("it is over")
            link = self._links[place] = self._hire(place)
        return link

    def _goes_on(self, lost: Lost[Item]) -> bool:
        """Tell of a loss; return whether another worker is to be started in its place."""
        try:
            self.tell(lost)
            if lost.item is not None:
                self.handout.give_back(lost.item, lost.reason)
        except BaseException as error:
            self.tell(Failed(error))
            return False
        if lost.for_good:
            self.seats.give_up()
        return not lost.for_good
