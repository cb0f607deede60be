"""A worker of a run: it loads the model, warms up all methods, and answers questions.

Beside those of `desk`, it knows these requests:

- `{"do": "sit", "config", "cores", "threads"}` -> `{"machine"}`: where it computes from now on
- `{"do": "prepare", "begun", "of_sweep"}` -> `{"run", "expected_s", "failed"}`: the model is loaded and all methods are
  warm. `begun` is a run's record with the knobs and costs to use; None: they are measured. `failed`: variants of a
  sweep that are left out, and why
- `{"do": "ask", "round", "question", "at", "backwards"}` -> `{"turns", "warnings", "others_share", "memory"}`
"""

from __future__ import annotations

import dataclasses

from bench.config import RunConfig
from bench.errors import UserError, reason_of
from bench.figures.machine import Machine
from bench.figures.records import Run, remembers_the_run
from bench.models import loading
from bench.models.loading import choose_device
from bench.progress import Log
from bench.run import environment, runner, scheduler
from bench.run.examiner import Examiner
from bench.run.plan import Plan, fitted, of_worker
from bench.run.recorder import memory_of
from bench.run.workers.desk import Desk, Message
from bench.typed_json import decode_value


class RunDesk(Desk):
    """A worker of a run from within."""

    config: RunConfig
    plan: Plan
    examiner: Examiner

    def __init__(self, log: Log):
        super().__init__(log)
        self.round: int | None = None  # that is being asked
        self.warned = 0

    def handle(self, asked: Message) -> Message:
        """The answer to a request."""
        match asked["do"]:
            case "sit":
                return {"machine": dataclasses.asdict(self._sit(asked))}
            case "prepare":
                return self._prepare(asked["begun"], of_sweep=asked["of_sweep"])
            case "ask":
                return self._ask(asked)
        return super().handle(asked)

    def _sit(self, asked: Message) -> Machine:
        """Keep to some cores; the memory is still empty, so that its bandwidth can be measured."""
        self.config = decode_value(RunConfig, asked["config"])
        super().handle(asked)
        environment.OthersMeter.own = frozenset(asked["cores"])
        return environment.describe_machine(choose_device(self.config.device), asked["threads"])

    def _prepare(self, recorded: Message | None, *, of_sweep: bool) -> Message:
        begun = None if recorded is None else decode_value(Run, recorded)
        plan = of_worker(self.config, begun, of_sweep=of_sweep)
        failed: dict[str, str] = {}

        def fails(label: str, error: Exception) -> None:
            """A sweep goes on without variants that fail before its first question, unless others have them."""
            if not of_sweep or label not in self.config.method:
                raise error
            if begun is not None:
                raise UserError(f"{label} fails now, but the run was begun with it: {reason_of(error)}") from error
            failed[label] = reason_of(error)

        if self.config.prompt_lengths:
            plan = fitted(plan, loading.find(self.config.model, self.config.revision, self.log))
        self.plan = plan
        self.examiner = runner.assemble(plan, runner.load(plan, self.log), self.log, fails)
        for contestant in self.examiner.contestants:
            if remembers_the_run(memory_of(contestant.method)):
                raise UserError(
                    f"{contestant.label} remembers its answers to earlier questions, which workers share among "
                    "themselves: leave out its memory, or --workers"
                )
        record = runner.prepare(plan, self.examiner, self.log, fails, begun)
        self.warned, self.examiner.others = len(self.examiner.warnings.texts), environment.OthersMeter()
        expected_s = [
            [asked.question.question_id, asked.at, scheduler.expected_s(plan, self.examiner, asked.question, asked.at)]
            for asked in plan.todo(())
            if asked.round == 0
        ]
        return {"run": dataclasses.asdict(record), "expected_s": expected_s, "failed": failed}

    def _ask(self, asked: Message) -> Message:
        number, at = asked["round"], asked["at"]
        if number != self.round:
            self.round = number
            self.examiner.forget()
        question = self.plan.asked_by_id(asked["question"], at)
        assert question is not None, f"question {asked['question']} is not of this run"
        taking_part = self.plan.taking_part(question, self.examiner.contestants)
        turns = self.examiner.ask(question, number, taking_part, backwards=asked["backwards"], at=at)
        told = self.examiner.warnings.texts[self.warned :]
        self.warned += len(told)
        return {
            "turns": [dataclasses.asdict(turn) for turn in turns],
            "warnings": told,
            "others_share": self.examiner.others.share(),
            "memory": self.examiner.memory.facts(),
        }
