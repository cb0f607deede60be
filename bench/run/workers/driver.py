"""A run by workers, as the process that the user started sees it: plan, admit workers, write down what they answer.

It loads no model. It is the only one that writes records, so that they are whole questions, each once, whoever is
killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from bench.errors import UserError
from bench.figures.facts import MemoryFacts
from bench.figures.records import Run, Turn
from bench.models import loading
from bench.models.chat import ChatFormat
from bench.models.loading import Model
from bench.progress import Log, progress
from bench.run import environment, resume
from bench.run.examiner import Warnings
from bench.run.memory import merged
from bench.run.plan import Asked, Plan, fitted
from bench.run.recorder import Recorder, continued
from bench.run.runner import open_records
from bench.run.scheduler import announcement, interruptible, name_of
from bench.run.workers import local
from bench.run.workers.kinds import measured_of
from bench.run.workers.links import Hire
from bench.run.workers.run_staff import Ready, RunStaff
from bench.run.workers.staff import Answered, Lost
from bench.typed_json import decode_value

# Told before the first question: the variants of a sweep that cannot take part, with the reasons, and the seconds that
# the questions are expected to take.
Begins = Callable[[dict[str, str], float], None]


def carry_out(plan: Plan, log: Log = print, begins: Begins = lambda failed, about_s: None) -> Recorder:
    """Carry out a run with workers and leave its records in its folder; interrupted, what was done.

    Raises:
        UserError: as `runner.carry_out`; or workers are on unlike machines, or too many were lost.

    """
    config = plan.config
    _check_servers(plan)
    model = loading.find(config.model, config.revision, log)
    if config.prompt_lengths:
        plan = fitted(plan, model)
    if plan.resumed is not None:
        resume.check_prompts(plan.resumed, plan.folder, plan.asked_by_id, model.chat)
    with (
        resume.alone_with(plan.folder, plan.resumed),
        _hiring(plan, model) as (hire, workers),
        RunStaff(plan, hire, workers) as staff,
    ):
        log(f"starting {workers} worker{'s' if workers > 1 else ''}, each with a model of its own")
        return Driver(plan, model.chat, staff, log).run(begins)


@contextlib.contextmanager
def _hiring(plan: Plan, model: Model) -> Iterator[tuple[Hire, int]]:
    """How to start workers, and how many."""
    if plan.config.ray is None:
        with local.hiring(plan.config.device, plan.config.workers) as hire:
            yield hire, plan.config.workers
        return
    from bench.run.workers import on_ray

    with on_ray.hiring(plan.config, model, plan.go_on) as found:
        yield found


def _check_servers(plan: Plan) -> None:
    """Refuse to let several workers wait for one server, each in the other's time."""
    for variant in plan.variants:
        if getattr(variant.config, "url", "") and plan.config.workers != 1:
            raise UserError(
                f"{variant.label} is one server, which several workers would ask at the same time: leave it out, or "
                "give --workers 1"
            )


class Driver:
    """One session of a run."""

    def __init__(self, plan: Plan, chat: ChatFormat, staff: RunStaff, log: Log):
        self.plan, self.chat, self.staff, self.log = plan, chat, staff, log
        self.warnings = Warnings(log)
        self.names: dict[int, str] = {}  # of the workers that are at work, by place
        self.ready: list[Ready] = []  # workers that wait for the first question
        self.expected_s: dict[tuple[int, float | None], float] = {}
        self.shares: dict[int, float] = {}  # by place, of its processors, used by others
        self.memory: MemoryFacts = {}
        self.opened: Recorder | None = None  # once all workers are ready

    @property
    def recorder(self) -> Recorder:
        """The run's files."""
        assert self.opened is not None
        return self.opened

    def run(self, begins: Begins) -> Recorder:
        """Ask what is left, once all workers are ready."""
        while len(self.ready) < self.staff.left:
            self._take_next()
        first, *others = sorted(self.ready, key=lambda ready: ready.worker.place)
        self._begin(first, begins)
        for ready in (first, *others):
            self._admit(ready)
        recorder = self.recorder
        todo = self.plan.todo({(turn.round, turn.question_id, turn.at) for turn in recorder.turns})
        with interruptible(self.plan, self.log):
            self._ask(todo)
            recorder.record.complete = True
        recorder.save()
        return recorder

    def _begin(self, first: Ready, begins: Begins) -> None:
        """Open the records, without the variants of a sweep that fail."""
        self.expected_s = first.expected_s
        failed = {label: reason for ready in self.ready for label, reason in ready.failed.items()}
        begins(failed, sum(map(self._expected_s, self.plan.todo(()))) / self.staff.left)
        able = tuple(label for label in self.plan.config.method if label not in failed)
        self.plan = dataclasses.replace(self.plan, config=dataclasses.replace(self.plan.config, method=able))
        self.opened = open_records(self.plan, self._record(first), self.chat, self.log)

    def _ask(self, todo: Collection[Asked]) -> None:
        total_s = sum(map(self._expected_s, todo))
        workers = len(self.names)
        by = f", by {workers} worker{'s' if workers > 1 else ''}"
        self.log(announcement(self.recorder, len(todo), total_s / workers) + by)
        begin_s, left = time.perf_counter(), len(todo)
        self.staff.handout.add(todo)
        self.staff.handout.close()
        with progress(total_s, "decoding", keep=True) as bar:
            while left:
                answered = self._take_next()
                if answered is not None:
                    left -= 1
                    bar.at(name_of(answered.item))
                    bar.add(self._expected_s(answered.item))
                    self._note(time.perf_counter() - begin_s)

    def _take_next(self) -> Answered[Asked] | None:
        """Wait for what happens next, and do what there is to do; returns an answer."""
        try:
            event: Ready | Lost[Asked] | Answered[Asked] = self.staff.next_event()
        except UserError as error:
            raise self._with_remedy(error) from error
        match event:
            case Lost():
                self._lose(event)
            case Ready():
                self.ready.append(event) if self.opened is None else self._admit(event)
            case Answered():
                self._keep(event)
                return event
        return None

    def _lose(self, lost: Lost[Asked]) -> None:
        self.warnings(self.staff.told(lost, self.names.pop(lost.place, str(lost.place))))
        if self.opened is not None:
            session = self.opened.record.provenance["sessions"][-1]
            session["lost"] = session.get("lost", 0) + 1

    def _with_remedy(self, error: UserError) -> UserError:
        """A mistake of the user's with the command that goes on, where something was asked before it."""
        if self.opened is None or self.plan.go_on in str(error):
            return error
        return UserError(f"{error}; what was finished is kept: go on with {self.plan.go_on}")

    def _record(self, first: Ready) -> Run:
        """The run's record as its first worker tells it, with what only this process knows."""
        plan, run = self.plan, first.measured if self.plan.resumed is None else first.run
        for text in (*plan.warnings, *run.provenance["warnings"], *self.staff.seats.warnings):
            self.warnings(text)
        run.run_id, run.command = plan.run_id, environment.command_line()
        run.config = run.config | dataclasses.asdict(plan.config) | {"threads": run.machine.threads}
        software, session = environment.describe_software(), run.provenance["sessions"][-1]
        for told in (run.provenance, session):
            told["commit"], told["dirty"] = software["commit"], software["dirty"]  # a worker's code may be a copy
            told["load_1min"] = software["load_1min"]
        run.provenance["warnings"], session["warnings"] = self.warnings.texts, list(self.warnings.texts)
        session["workers"] = self.staff.workers
        if (begun := plan.resumed) is None:
            return run
        resume.check_unchanged(begun, self._facts(run))
        return continued(begun, run, self.warnings)

    def _facts(self, run: Run) -> dict[str, Any]:
        """What must be alike in all workers and sessions."""
        return resume.facts(run, of_machine=not self.plan.config.mix_machines)

    def _admit(self, ready: Ready) -> None:
        """Name a worker in the record, before any turn of its own is there, and let it begin."""
        record, worker = self.recorder.record, ready.worker
        if changed := resume.changes(record, self._facts(ready.run)):
            raise UserError(
                f"worker {worker.place} on {worker.host} would measure something else: {resume.listed(changed)}; "
                "let all workers have the same"
            )
        same = (name for name, other in record.workers.items() if other.is_same(worker))
        name = next(same, str(len(record.workers) + 1))
        record.workers.setdefault(name, worker)
        if worker.machine.kind != record.machine.kind:
            record.kinds.setdefault(worker.machine.kind, measured_of(ready.measured))
        self.names[worker.place] = name
        for text in ready.run.provenance["warnings"]:
            self.warnings(text)
        self.recorder.save()
        ready.admitted.set()

    def _keep(self, answered: Answered[Asked]) -> None:
        name, answer = self.names[answered.place], answered.answer
        machine = self.recorder.record.workers[name].machine.digest
        turns = decode_value(list[Turn], answer["turns"])
        for turn in turns:
            turn.worker, turn.machine = name, machine
        self.recorder.keep(turns)
        for text in answer["warnings"]:
            self.warnings(text)
        self.shares[answered.place] = answer["others_share"]
        self.memory = merged(self.memory, answer["memory"])

    def _note(self, wall_s: float) -> None:
        self.recorder.note(wall_s, sum(self.shares.values()) / len(self.shares), self.memory)

    def _expected_s(self, asked: Asked) -> float:
        return self.expected_s[asked.question.question_id, asked.at]
