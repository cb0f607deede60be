"""How the driver speaks to a worker: a request there, an answer back, until one of them ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from bench.errors import UserError


class LostWorkerError(Exception):
    """A worker has ended; the message says how."""


class Link(ABC):
    """One worker as the driver sees it. A thread of its own asks it."""

    def ask(self, **asked: Any) -> dict[str, Any]:
        """The answer to a request, see `desk`.

        Raises:
            UserError: a mistake of the user's, as the worker tells it.
            LostWorkerError: the worker has ended.

        """
        answer = self.request(asked)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    @abstractmethod
    def request(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The same, whatever the answer is."""

    @abstractmethod
    def end(self) -> None:
        """End the worker at once, from any thread; a request that waits raises LostWorkerError."""

    def close(self) -> None:
        """End the worker and let go of all that belongs to it, when nobody asks it any more."""
        self.end()


Hire = Callable[[int], Link]  # start the worker at a place, from 1
