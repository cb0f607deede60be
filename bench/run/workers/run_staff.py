"""The workers of a run: each measures or takes over costs, waits until it is admitted, and is asked questions."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import ClassVar

from bench.figures.machine import Machine, Worker
from bench.figures.records import Run
from bench.run.plan import Asked, Plan
from bench.run.workers.kinds import Kinds
from bench.run.workers.links import Hire, Link
from bench.run.workers.staff import Answered, Staff
from bench.typed_json import decode_value

_LOOK_S = 0.2


@dataclass(frozen=True)
class Ready:
    """A worker can be asked, once it is `admitted`."""

    worker: Worker
    run: Run  # its record of it
    measured: Run  # that of the first worker of its kind
    expected_s: dict[tuple[int, float | None], float]  # by question and value of the axis
    failed: dict[str, str]  # variants of a sweep that cannot take part, and why
    admitted: threading.Event


class RunStaff(Staff[Asked]):
    """All workers of a run."""

    remedy: ClassVar[str] = "give fewer --workers, or leave a method or peer out"

    def __init__(self, plan: Plan, hire: Hire, workers: int):
        super().__init__(hire, workers, plan.config.threads, named)
        self._kinds = Kinds(plan.resumed, mixed=plan.config.mix_machines)
        self._config = dataclasses.replace(plan.config, workers=0, ray=None, mix_machines=False, out=None)
        self._of_sweep = plan.of_sweep

    def get_ready(self, place: int, link: Link) -> None:
        """Let a worker load the model and warm up, and wait until it is admitted."""
        seat = self.seat_of(place, link)
        sat = link.ask(do="sit", config=dataclasses.asdict(self._config), cores=seat.cores, threads=seat.threads)
        machine = decode_value(Machine, sat["machine"])
        kind = self._kinds.of(machine)
        ready = kind.prepared(lambda record: link.ask(do="prepare", begun=record, of_sweep=self._of_sweep))
        expected_s = {(question, at): seconds for question, at, seconds in ready["expected_s"]}
        worker = Worker(place, seat.host, machine, seat.cores, seat.gpu)
        run, measured = decode_value(Run, ready["run"]), decode_value(Run, kind.record)
        event = Ready(worker, run, measured, expected_s, ready["failed"], threading.Event())
        self.tell(event)
        while not (self.is_over or event.admitted.wait(_LOOK_S)):
            pass

    def ask(self, place: int, link: Link, item: Asked) -> None:
        """Ask it a question."""
        answer = link.ask(
            do="ask", round=item.round, question=item.question.question_id, at=item.at, backwards=item.backwards
        )
        self.tell(Answered(place, item, answer))


def named(asked: Asked) -> str:
    """A question for readers."""
    return f"question {asked.question.question_id}" + ("" if asked.at is None else f" at {asked.at:g}")
