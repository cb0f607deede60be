"""Base and new answer the same questions by turns until it is clear whether a method got slower."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.config import RunConfig
from bench.errors import UserError
from bench.figures.comparable import check_comparable
from bench.figures.compare import DECODE, PREFILL, compare
from bench.figures.comparison import Budget, Comparison, Metric, Sequential
from bench.figures.metrics import OVERALL, ordered_tasks
from bench.figures.records import RUN_FILE, TURNS_FILE, Turn, write_json, write_turns
from bench.figures.rules import GateSettings
from bench.figures.verdicts import BETTER, SAME, UNKNOWN, WORSE, decode_units, prefill_units, settle
from bench.gate import sequential
from bench.gate.checkout import Checkout
from bench.gate.measured import measured_by
from bench.gate.side import Side, first_request
from bench.models import checkpoints
from bench.progress import Log
from methods import BASELINE

Key = tuple[str, str]  # method, metric
Where = dict[str, int]  # question, turn, round
SIDES = ("base", "new")
PAIRS_FILE = "gate-pairs.json"
VERDICTS = {sequential.WORSE: WORSE, sequential.FINE: SAME, sequential.UNDECIDED: UNKNOWN}
UNITS = {DECODE: decode_units, PREFILL: prefill_units}
_WARM_UP = -1  # the round that is not counted


class Gate:
    """Two sides, their records, and for each method a test of decoding and one of the prefill."""

    def __init__(
        self, base: Side, new: Side, settings: GateSettings, out: Path, clock: Callable[[], float] = time.monotonic
    ):
        """Raises UserError if the sides do not run the same things."""
        self.sides = {side.name: side for side in (base, new)}
        self.settings, self.out, self.clock = settings, out, clock
        check_comparable(base.run, new.run, settings.rules)
        if base.questions != new.questions:
            raise UserError("base and new read the same questions differently: take a newer --base")
        self.questions = base.questions
        self.labels = [label for label in base.run.methods if label in new.run.methods]
        self.tests = sequential.new_tests(self.labels, settings.rules, settings.alarm)
        tasks = ordered_tasks(question["task"] for question in self.questions)
        self.logs: dict[Key, dict[str, list[float]]] = {key: {task: [] for task in tasks} for key in self.tests}
        self.turns: dict[str, list[Turn]] = {name: [] for name in SIDES}
        self.blocks: list[dict[str, Any]] = []  # seconds and log ratios of each, for simulations
        self.round_blocks = 0  # blocks after which every question has been asked

    def run(self) -> None:
        """Ask block after block until every method is decided and every question asked, or the budget is spent."""
        budget_s = 60 * self.settings.budget_min
        self._ask(self.questions[0], 0, _WARM_UP)
        start_s = self.clock()
        with tqdm(total=round(budget_s), desc="gate", unit="s", dynamic_ncols=True) as bar:
            for block_s in self._blocks():
                used_s = self.clock() - start_s
                bar.update(min(round(used_s), bar.total) - bar.n)
                # The last look may spend all false alarms that are left.
                last = used_s + 1.2 * block_s > budget_s
                self._look(1.0 if last else used_s / budget_s)
                bar.set_postfix_str(self._state())
                if last or (self._decided() and len(self.blocks) >= self.round_blocks):
                    break
        self._write()

    def _look(self, used: float) -> None:
        for key, test in self.tests.items():
            test.look(list(self.logs[key].values()), used)

    def _decided(self) -> bool:
        """Return whether all tests are; a method without times is decided by its failures."""
        return all(
            test.verdict != sequential.UNDECIDED or not any(self.logs[key].values()) for key, test in self.tests.items()
        )

    def _state(self) -> str:
        parts = []
        for label in self.labels:
            test = self.tests[label, DECODE]
            change = f" {math.expm1(test.change):+.1%}" if test.change is not None else ""
            parts.append(f"{label}{change} {test.verdict}")
        return ", ".join(parts)

    def _blocks(self) -> Iterator[float]:
        """Ask one question of each task again and again; yields the seconds that each such block took."""
        by_task: dict[str, list[dict[str, Any]]] = {}
        for question in self.questions:
            by_task.setdefault(question["task"], []).append(question)
        self.round_blocks = max(map(len, by_task.values()))
        for number in itertools.count():
            for place in range(self.round_blocks):
                start_s, seen = self.clock(), self._counts()
                for questions in by_task.values():
                    if place < len(questions):
                        self._ask(questions[place], place, number)
                block_s = self.clock() - start_s
                self.blocks.append({"seconds": round(block_s, 3), "logs": self._since(seen)})
                yield block_s

    def _counts(self) -> dict[tuple[str, str, str], int]:
        return {(*key, task): len(logs) for key, tasks in self.logs.items() for task, logs in tasks.items()}

    def _since(self, seen: dict[tuple[str, str, str], int]) -> list[dict[str, Any]]:
        """The log ratios that a block added."""
        return [
            {"method": method, "metric": metric, "task": task, "logs": [round(v, 6) for v in logs[start:]]}
            for (method, metric, task), start in seen.items()
            if len(logs := self.logs[method, metric][task]) > start
        ]

    def _ask(self, question: dict[str, Any], place: int, number: int) -> None:
        """Ask all turns of a question, each method on both sides by turns.

        Which side is first changes from turn to turn, from question to question and from round to round, and for every
        second method it is the other one: neither side is favoured in any method or question.
        """
        answered: dict[str, list[Turn]] = {name: [] for name in SIDES}
        for index in range(question["turns"]):
            where = {"question": question["id"], "turn": index, "round": number}
            for column, label in enumerate(self.labels):
                self._answer(label, where, SIDES[::-1] if (place + index + number + column) % 2 else SIDES)
            for name in SIDES:
                answered[name] += self.sides[name].audited(where)
            if any(turn.error is not None and turn.method == BASELINE for name in SIDES for turn in answered[name]):
                break  # the next turn would need this answer
        if number != _WARM_UP:
            self._keep(question["task"], answered)

    def _answer(self, label: str, where: Where, order: Sequence[str]) -> None:
        """Let both sides answer, a few steps by turns, so that whatever slows the machine hits both alike."""
        going = {name: self.sides[name].begin(label, where) for name in order}
        while any(going.values()):
            order = order[::-1]
            for name in order:
                going[name] = going[name] and self.sides[name].go_on()

    def _keep(self, task: str, answered: dict[str, list[Turn]]) -> None:
        for name in SIDES:
            self.turns[name] += answered[name]
        for label in self.labels:
            base, new = ([turn for turn in answered[name] if turn.method == label] for name in SIDES)
            if any(turn.error is not None for turn in (*base, *new)):
                continue
            for metric, units in UNITS.items():
                before, now = (_per_unit(turns, units) for turns in (base, new))
                if before and now:
                    self.logs[label, metric][task].append(math.log(now / before))

    def _write(self) -> None:
        """Write both sides as runs of their own, which `report` and `compare` read."""
        mark = uuid.uuid4().hex
        for name in SIDES:
            run = self.sides[name].run
            run.provenance["interleaved"] = mark
            run.complete = True
            run.run_id = f"{run.run_id}-{name}"
            write_json(self.out / name / RUN_FILE, run)
            write_turns(self.out / name / TURNS_FILE, self.turns[name])
        write_json(self.out / PAIRS_FILE, {"round_blocks": self.round_blocks, "blocks": self.blocks})

    def result(self) -> Comparison:
        """The comparison of the two runs, with the gate's own decisions on time."""
        base, new = ((self.sides[name].run, self.turns[name]) for name in SIDES)
        compared = compare(base, new, self.settings.rules)
        for (label, metric), test in self.tests.items():
            _decide(compared.methods[label].tasks[OVERALL].metrics[metric], test)
        asked, there = compared.questions, len(self.questions)
        if asked < there:
            compared.warnings.append(
                f"only {asked} of {there} questions could be asked within {self.settings.budget_min:g} minutes: for "
                "the others, counters and losslessness are unknown"
            )
        compared.gate = Budget(self.settings.alarm, self.settings.budget_min)
        settle(compared)
        return compared


def _decide(metric: Metric, test: sequential.SequentialTest) -> None:
    """Replace the verdict of a single look at the end by the gate's, which allows for its many looks."""
    better = test.verdict == sequential.FINE and metric.verdict == BETTER
    metric.verdict = BETTER if better else VERDICTS[test.verdict]
    metric.sequential = Sequential(test.pairs, *map(_ratio, (test.change, test.low, test.high)))


def _ratio(log: float | None) -> float | None:
    """New over base; None if it is unknown or unbounded."""
    return math.exp(log) if log is not None and math.isfinite(log) else None


def _per_unit(turns: list[Turn], units: Callable[[Turn], tuple[float, int]]) -> float | None:
    """Seconds per token of a question's turns; None without tokens."""
    seconds, tokens = (sum(column) for column in zip(*map(units, turns), strict=True)) if turns else (0.0, 0)
    return seconds / tokens if tokens else None


def run_gate(
    config: RunConfig, settings: GateSettings, base: Checkout, new: Checkout, out: Path, log: Log
) -> Comparison:
    """Start both sides, ask, decide; writes their records to `out`.

    Raises:
        UserError: a side cannot start, or ends early.

    """
    checkpoints.resolve(config.model, config.revision, log=log)  # a side is not given the time to download
    log("measuring forward-pass costs with base's code")
    with contextlib.closing(Side("base", base, first_request(config, {}, {}), out / "base.log")) as measuring:
        measured = measured_by(measuring.run)
    # Memory layout differs between a process that measured costs and one that was given them, and between the first and
    # the second process: about 1% of time. So both begin alike, and chance decides which is first.
    starts = {
        "base": (base, first_request(config, measured, {})),
        "new": (new, first_request(config, measured, dict(settings.slower))),
    }
    sides: dict[str, Side] = {}
    with contextlib.ExitStack() as closing:
        for name in random.SystemRandom().sample(SIDES, len(SIDES)):
            log(f"starting {name}")
            sides[name] = closing.enter_context(contextlib.closing(Side(name, *starts[name], out / f"{name}.log")))
        gate = Gate(sides["base"], sides["new"], settings, out)
        gate.run()
        return gate.result()
