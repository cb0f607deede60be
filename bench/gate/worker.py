"""One side of a gate from within: a run of its own code that answers when it is asked to. See `protocol`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import time
from collections.abc import Generator
from typing import Any

import bench
import methods
from bench.config import RunConfig
from bench.drafting.method import SpeculativeMethod
from bench.errors import UserError
from bench.figures.records import Turn
from bench.gate.measured import with_knobs
from bench.gate.protocol import PROTOCOL
from bench.gate.slow_down import slow_down
from bench.run import runner
from bench.run.contestants import Contestant

# An answer's steps that one side takes before it is the other's turn. A shared machine's speed wanders within seconds:
# whole answers of 32 tokens in turns differed by 4% (standard deviation) where no code did, four steps in turns by 2%.
STEPS = 4
_SETTLE_S = 0.005  # threads that wait for work spin for milliseconds, which would disturb the other side


class Worker:
    """A run that is told what to ask."""

    def __init__(self, config: RunConfig, measured: dict[str, Any], slower: dict[str, float]):
        """`measured`: what the other side measured when it began, to be used here too."""
        knobs = functools.partial(with_knobs, measured=measured)
        plan = runner.make_plan(config, adapt=knobs)
        self.examiner = runner.assemble(plan, runner.load(plan, _tell), _tell)
        self.variants = plan.variants
        self.questions = {question.question_id: question for question in plan.questions.questions}
        self.contestants = {contestant.label: contestant for contestant in self.examiner.contestants}
        _slow_down(self.contestants, slower)
        self.history: dict[tuple[int, int], list[tuple[str, str]]] = {}  # by question and round: what was said so far
        self.round: int | None = None  # the one that is being asked
        self.open: dict[str, Turn] = {}  # answers to the turn that is being asked
        self.going: Generator[object, None, Turn]  # the answer under way
        self.record = runner.prepare(plan, self.examiner, _tell)

    def handle(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line."""
        match asked["do"]:
            case "hello":
                return {
                    "protocol": PROTOCOL,
                    "files": {"bench": bench.__file__}
                    | {variant.label: inspect.getfile(variant.method) for variant in self.variants},
                    "run": dataclasses.asdict(self.record),
                    "questions": [
                        {"id": q.question_id, "task": q.task, "turns": len(q.turns)} for q in self.questions.values()
                    ],
                }
            case "answer":
                return {"going": self._begin(asked) and self._go_on()}
            case "go on":
                return {"going": self._go_on()}
            case "close":
                return {"turns": self._close(asked)}
        raise UserError(f"the gate's worker was asked to {asked['do']!r}: base and new speak different protocols")

    def _begin(self, asked: dict[str, Any]) -> bool:
        """Begin an answer; whether there is something to answer: some chat templates refuse a second turn."""
        contestant, question = self.contestants[asked["label"]], self.questions[asked["question"]]
        if asked["round"] != self.round:
            self.round = asked["round"]
            self.examiner.forget()
        place = (contestant, question, asked["turn"], asked["round"])
        try:
            prompt = self._prompt(asked)
        except UserError as error:
            self.open[contestant.label] = self.examiner.begun(*place, str(error))
            return False
        self.going = self.examiner.answering(*place, prompt, pause_after=STEPS)
        return True

    def _go_on(self) -> bool:
        """Answer until the next pause; whether there is more to come."""
        try:
            next(self.going)
        except StopIteration as ended:
            turn: Turn = ended.value
            self.open[turn.method] = turn
            return False
        finally:
            time.sleep(_SETTLE_S)
        return True

    def _close(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """Everybody has answered the turn: audit, and go on with vanilla's answer."""
        vanilla, question = self.open[methods.BASELINE], self.questions[asked["question"]]
        if vanilla.error is None:
            self.examiner.audit(self.open, self._prompt(asked))
            self._said(asked).append((question.turns[asked["turn"]], vanilla.text))
        turns = [dataclasses.asdict(turn) for turn in self.open.values()]
        self.open = {}
        return turns

    def _said(self, asked: dict[str, Any]) -> list[tuple[str, str]]:
        return self.history.setdefault((asked["question"], asked["round"]), [])

    def _prompt(self, asked: dict[str, Any]) -> list[int]:
        question = self.questions[asked["question"]]
        history = self._said(asked)[: asked["turn"]]
        return self.examiner.loaded.chat.prompt(history, question.turns[asked["turn"]], question.system)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _slow_down(contestants: dict[str, Contestant], slower: dict[str, float]) -> None:
    """Make methods do more work in each step, in proportion, so that the gate itself can be tested."""
    for label, share in slower.items():
        contestant = contestants.get(label)
        if contestant is None or not isinstance(contestant.method, SpeculativeMethod):
            raise UserError(f"--slow-down {label}: the gate has no such method of ours")
        slow_down(contestant.method, share)
