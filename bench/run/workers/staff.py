"""Keeps the workers of a run going: a thread for each starts it, asks it, and replaces it if it is lost.

What happens is put into one queue of events, which the run's driver reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bench.config import RunConfig
from bench.figures.machine import Machine, Worker
from bench.figures.records import Run, Turn
from bench.run.plan import Asked
from bench.run.workers.handout import Handout
from bench.run.workers.kinds import Kinds
from bench.run.workers.links import Hire, Link, LostWorkerError
from bench.run.workers.seats import Seats
from bench.typed_json import decode_value

_CLOSE_S = 20.0
_MOST_LOST = 3  # times in a row that a worker is replaced before it has answered a question


@dataclass(frozen=True)
class Ready:
    """A worker can be asked, once it is `admitted`."""

    worker: Worker
    run: Run  # its record of it
    measured: Run  # that of the first worker of its kind
    expected_s: dict[tuple[int, float | None], float]  # by question and value of the axis
    admitted: threading.Event


@dataclass(frozen=True)
class Answered:
    """The worker at a place has answered a question."""

    place: int
    asked: Asked
    turns: list[Turn]
    more: dict[str, Any]  # see `desk`


@dataclass(frozen=True)
class Lost:
    """A worker has ended, perhaps with a question that goes to another; `for_good`: it is not replaced."""

    place: int
    reason: str
    asked: Asked | None
    for_good: bool


@dataclass(frozen=True)
class Failed:
    """The run cannot go on."""

    error: BaseException


Event = Ready | Answered | Lost | Failed


class Staff:
    """All workers of a run, from the start of the first to the end of the last."""

    def __init__(self, config: RunConfig, begun: Run | None, hire: Hire, workers: int):
        """`config`: the run's; `begun`: its record if it goes on."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.handout, self.workers = Handout(), workers
        self.seats = Seats(config.threads, workers)
        self._hire, self._kinds = hire, Kinds(begun, mixed=config.mix_machines)
        self._config = dataclasses.replace(config, workers=0, ray=None, mix_machines=False, out=None)
        self._links: dict[int, Link] = {}
        self._waiting: list[threading.Event] = []
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._keep_going, args=(place,), daemon=True) for place in range(1, workers + 1)
        ]

    def __enter__(self) -> Staff:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_over.set()
            links = list(self._links.values())
        self.handout.end()
        self.seats.end()
        for link in links:
            link.end()
        for admitted in self._waiting:
            admitted.set()
        for thread in self._threads:
            thread.join(_CLOSE_S)

    def _keep_going(self, place: int) -> None:
        """Let the worker at a place answer questions until there are none, with a new one for each that is lost."""
        losses = 0
        while not self._is_over.is_set():
            asked = None
            try:
                with contextlib.closing(self._started(place)) as link:
                    self._get_ready(place, link)
                    while (asked := self.handout.take()) is not None:
                        self._ask(place, link, asked)
                        losses, asked = 0, None
                return
            except LostWorkerError as lost:
                losses += 1
                if self._is_over.is_set() or not self._goes_on(Lost(place, str(lost), asked, losses >= _MOST_LOST)):
                    return
            except BaseException as error:
                self.events.put(Failed(error))
                return

    def _started(self, place: int) -> Link:
        with self._lock:
            if self._is_over.is_set():
                raise LostWorkerError("the run is over")
            link = self._links[place] = self._hire(place)
        return link

    def _goes_on(self, lost: Lost) -> bool:
        """Tell of a loss; return whether another worker is to be started in its place."""
        try:
            self.events.put(lost)
            if lost.asked is not None:
                self.handout.give_back(lost.asked, lost.reason)
        except BaseException as error:
            self.events.put(Failed(error))
            return False
        if lost.for_good:
            self.seats.give_up()
        return not lost.for_good

    def _get_ready(self, place: int, link: Link) -> None:
        """Let a worker load the model and warm up, and wait until it is admitted."""
        hello = link.ask(do="hello")
        seat = self.seats.take(place, hello)
        sat = link.ask(do="sit", config=dataclasses.asdict(self._config), cores=seat.cores, threads=seat.threads)
        machine = decode_value(Machine, sat["machine"])
        kind = self._kinds.of(machine)
        ready = kind.prepared(lambda record: link.ask(do="prepare", begun=record))
        expected_s = {(question, at): seconds for question, at, seconds in ready["expected_s"]}
        worker = Worker(place, seat.host, machine, seat.cores, seat.gpu)
        run, measured = decode_value(Run, ready["run"]), decode_value(Run, kind.record)
        event = Ready(worker, run, measured, expected_s, threading.Event())
        self._waiting.append(event.admitted)
        self.events.put(event)
        event.admitted.wait()

    def _ask(self, place: int, link: Link, asked: Asked) -> None:
        answer = link.ask(
            do="ask",
            round=asked.round,
            question=asked.question.question_id,
            at=asked.at,
            backwards=asked.backwards,
        )
        turns = decode_value(list[Turn], answer.pop("turns"))
        self.events.put(Answered(place, asked, turns, answer))
        self.handout.answered()
