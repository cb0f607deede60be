"""Which cores each worker gets: those of a machine are shared equally by the workers on it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from bench.errors import UserError


@dataclass(frozen=True)
class Seat:
    """A worker's place: its host, the processors that it keeps to, its threads, and its GPU if it has one."""

    host: str
    cores: list[int]
    threads: int
    gpu: str


class Seats:
    """Gives each worker its cores once it is known how many workers there are on each machine."""

    def __init__(self, threads: int, workers: int):
        """`threads`: of each worker; 0: as many as all of them can have."""
        self.threads, self.warnings = threads, list[str]()
        self._chosen, self._expected, self._is_settled = bool(threads), workers, False
        self._places: dict[str, list[int]] = {}  # of each host, in the order of their cores
        self._cores: dict[str, list[list[int]]] = {}
        self._changed = threading.Condition()

    def take(self, place: int, hello: dict[str, Any]) -> Seat:
        """The seat of the worker at a place, from what it says of its machine; waits until all have said it.

        Raises:
            UserError: a machine has fewer cores than workers.

        """
        host = hello["host"]
        with self._changed:
            known = self._places.setdefault(host, [])
            if place not in known:
                known.append(place)
            self._cores[host] = hello["cores"]
            self._changed.notify_all()
            self._changed.wait_for(lambda: sum(map(len, self._places.values())) >= self._expected)
            if not self._is_settled:
                self._settle()
            return self._seat(host, self._places[host].index(place), hello["gpu"])

    def give_up(self) -> None:
        """One worker less will come."""
        with self._changed:
            self._expected -= 1
            self._changed.notify_all()

    def end(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._expected = 0
            self._changed.notify_all()

    def _settle(self) -> None:
        """Fix the threads of all workers, on the first one's behalf."""
        for places in self._places.values():
            places.sort()
        for host, places in self._places.items():
            cores, workers = len(self._cores[host]), len(places)
            if not self._chosen and workers > cores:
                raise UserError(
                    f"{_many(workers, 'worker')} cannot have {_many(cores, 'core')} on {host}: give fewer --workers, "
                    "or --threads 1 to let them share cores, which makes their times unreliable"
                )
            if workers > 1 and workers * self.threads > cores:
                self.warnings.append(
                    f"{_many(workers, 'worker')} of {_many(self.threads, 'thread')} share {_many(cores, 'core')} on "
                    f"{host}: they slow each other down, by turns"
                )
        shares = [len(self._cores[host]) // len(places) for host, places in self._places.items()]
        self.threads = self.threads or max(1, min(shares))
        self._is_settled = True

    def _seat(self, host: str, number: int, gpu: str) -> Seat:
        cores = self._cores[host]
        width = min(self.threads, len(cores))
        taken = {(number * width + each) % len(cores) for each in range(width)}
        return Seat(host, sorted(one for core in taken for one in cores[core]), self.threads, gpu)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
