"""What a worker does, wherever it runs: it is given its place, gets ready, and answers questions.

Every request and every answer is an object of JSON:

- `{"do": "hello"}` -> `{"host", "cores", "gpu"}`: where it is; `cores` are processors, those of one core together
- `{"do": "sit", "config", "cores", "threads"}` -> `{"machine"}`: it computes there from now on
- `{"do": "prepare", "begun"}` -> `{"run", "expected_s"}`: the model is loaded and all methods are warm. `begun` is a
  run's record with the knobs and costs to use; None: they are measured
- `{"do": "ask", "round", "question", "at", "backwards"}` -> `{"turns", "warnings", "others_share", "memory"}`

An answer `{"error"}` is a user's mistake, which ends the run. Any other exception ends the worker.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from typing import Any

import torch

from bench.config import RunConfig
from bench.errors import UserError
from bench.figures.machine import Machine
from bench.figures.records import Run, remembers_the_run
from bench.models import loading
from bench.models.loading import choose_device
from bench.progress import Log
from bench.run import cores, environment, runner, scheduler
from bench.run.examiner import Examiner
from bench.run.plan import Plan, fitted, of_worker
from bench.run.recorder import memory_of
from bench.typed_json import decode_value

Message = dict[str, Any]


class Desk:
    """A worker from within."""

    config: RunConfig
    plan: Plan
    examiner: Examiner
    others: environment.OthersMeter

    def __init__(self, log: Log):
        self.log = log
        self.round: int | None = None  # that is being asked
        self.warned = 0

    def answer(self, asked: Message) -> Message:
        """The answer to a request; a mistake of the user's is one, too."""
        try:
            return self._handle(asked)
        except UserError as error:
            return {"error": str(error)}

    def _handle(self, asked: Message) -> Message:
        match asked["do"]:
            case "hello":
                gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if torch.cuda.is_available() else ""
                return {"host": platform.node(), "cores": cores.physical_cores(), "gpu": gpu}
            case "sit":
                return {"machine": dataclasses.asdict(self._sit(asked))}
            case "prepare":
                return self._prepare(asked["begun"])
            case "ask":
                return self._ask(asked)
        raise AssertionError(f"a worker was asked to {asked['do']!r}")

    def _sit(self, asked: Message) -> Machine:
        """Keep to some cores; the memory is still empty, so that its bandwidth can be measured."""
        self.config = decode_value(RunConfig, asked["config"])
        cores.pin(asked["cores"])
        environment.OthersMeter.own = frozenset(asked["cores"])
        torch.set_num_threads(asked["threads"])
        return environment.describe_machine(choose_device(self.config.device), asked["threads"])

    def _prepare(self, recorded: Message | None) -> Message:
        begun = None if recorded is None else decode_value(Run, recorded)
        plan = of_worker(self.config, begun)
        if self.config.prompt_lengths:
            plan = fitted(plan, loading.find(self.config.model, self.config.revision, self.log))
        self.plan = plan
        self.examiner = runner.assemble(plan, runner.load(plan, self.log), self.log)
        for contestant in self.examiner.contestants:
            if remembers_the_run(memory_of(contestant.method)):
                raise UserError(
                    f"{contestant.label} remembers its answers to earlier questions, which workers share among "
                    "themselves: leave out its memory, or --workers"
                )
        record = runner.prepare(plan, self.examiner, self.log, begun=begun)
        self.warned, self.others = len(self.examiner.warnings.texts), environment.OthersMeter()
        expected_s = [
            [asked.question.question_id, asked.at, scheduler.expected_s(plan, self.examiner, asked.question, asked.at)]
            for asked in plan.todo(())
            if asked.round == 0
        ]
        return {"run": dataclasses.asdict(record), "expected_s": expected_s}

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
            "others_share": self.others.share(),
            "memory": self.examiner.memory.facts(),
        }
