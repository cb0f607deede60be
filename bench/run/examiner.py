"""Asks all methods a question: prompts, limits, timing; then audits the answers and probes the draft models."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

import methods
from bench.config import RunConfig
from bench.drafting.loop import at_once, decoding, probe
from bench.drafting.method import Answer, SpeculativeMethod
from bench.engine.decoder import Decoder
from bench.errors import UserError, program
from bench.figures.records import Turn, prompt_digest
from bench.models.loading import Loaded, load_decoder, memory_errors
from bench.progress import Log
from bench.questions import Question
from bench.run import environment
from bench.run.audit import Auditor
from bench.run.contestants import Contestant, Fails, each_able, raising, sampler_of
from bench.run.memory import PeakMeter
from bench.run.plan import WARM_UP


class Warnings:
    """What is worth a warning, each once: told at once, and kept with the run's record."""

    def __init__(self, log: Log):
        self.log = log
        self.texts: list[str] = []

    def __call__(self, text: str) -> None:
        """Warn. A command is told as it runs here, and kept without this machine's path to it: records go elsewhere."""
        kept = text.replace(program(), "roobench")
        if kept not in self.texts:  # once for a cause, however many turns it meets
            self.texts.append(kept)
            self.log(f"WARNING: {text}")


@dataclass
class Examiner:
    """Asks contestants, turn by turn. The history of a second turn is vanilla's first answer, for all of them."""

    loaded: Loaded
    contestants: list[Contestant]
    config: RunConfig
    auditor: Auditor
    memory: PeakMeter
    warnings: Warnings
    at: float | None = None  # the value of the run's axis at which is being asked
    others: environment.OthersMeter = field(default_factory=environment.OthersMeter)  # of the session

    def __post_init__(self) -> None:
        self.sample(self.config.sampled_at[0])

    def sample(self, temperature: float) -> None:
        """Draw tokens at a temperature; 0: greedy decoding, whose answers are audited."""
        self.sampler = sampler_of(self.config, temperature)

    @property
    def context(self) -> int:
        """Positions that a conversation may take: the cache's, or fewer where the model was made for fewer."""
        return min(self.loaded.target.max_len, self.loaded.target.config.context)

    def limit(self, prompt: Sequence[int]) -> int:
        """The most tokens of an answer to a prompt; below 1: the prompt is too long."""
        return min(self.config.max_new_tokens, self.context - len(prompt))

    def stream(self, question_id: int, index: int, number: int) -> str:
        """What the random numbers of a turn in a round are seeded with."""
        return f"{self.config.seed}/{question_id}/{index}/{number}"

    def warm_up(self, fails: Fails = raising) -> None:
        """Let all decode a prompt of no task, which also gives the rates of estimates; those that fail are out.

        Of several temperatures at the highest, then at the lowest, at which forward passes are measured.
        """
        prompt, temperatures = self.loaded.chat.prompt([], WARM_UP), self.config.sampled_at
        for temperature in dict.fromkeys([max(temperatures), min(temperatures)]):
            self.sample(temperature)
            self.contestants = each_able(
                "warming up",
                self.contestants,
                lambda contestant: self._warmed(contestant, prompt),
                fails,
            )

    def _warmed(self, contestant: Contestant, prompt: list[int]) -> Contestant:
        with self.others.during(contestant.elsewhere_s):
            return contestant.warm_up(prompt, self.context, self.sampler)

    def forget(self) -> None:
        """Let methods drop what outlives a question, so that no round knows another's answers, nor the warm-up's."""
        for contestant in self.contestants:
            for method in (contestant.method, contestant.prober):
                if isinstance(method, SpeculativeMethod):
                    method.forget()

    def ask(
        self,
        question: Question,
        number: int,
        taking_part: Sequence[Contestant],
        *,
        backwards: bool,
        at: float | None = None,
    ) -> list[Turn]:
        """All turns of a question in round `number`, by all methods, up to the one in which vanilla fails.

        `at`: the value of the run's axis.
        """
        self.at = at
        self.sample(self.config.temperature_at(at))
        history: list[tuple[str, str]] = []
        records: list[Turn] = []
        for index, user in enumerate(question.turns):
            try:
                prompt = self.loaded.chat.prompt(history, user, question.system)
            except UserError as error:  # some chat templates refuse a second turn
                records += [self.begun(contestant, question, index, number, str(error)) for contestant in taking_part]
                break
            turns = {
                contestant.label: self.answer(contestant, question, index, number, prompt)
                for contestant in (reversed(taking_part) if backwards else taking_part)
            }
            vanilla = turns[methods.BASELINE]
            if vanilla.error is None and self.sampler is None:  # samples differ from one method to the next
                self.audit(turns, prompt)
                if number == 0:  # greedy drafts are the same in every round
                    self._probe(turns, prompt)
            records += [turns[contestant.label] for contestant in taking_part]
            if vanilla.error is not None:
                break  # the next turn would need this answer
            history.append((user, vanilla.text))
        return records

    def answer(self, contestant: Contestant, question: Question, index: int, number: int, prompt: list[int]) -> Turn:
        """One contestant's answer to a prompt, or why it failed."""
        return at_once(self.answering(contestant, question, index, number, prompt))

    def answering(
        self,
        contestant: Contestant,
        question: Question,
        index: int,
        number: int,
        prompt: list[int],
        pause_after: int = 0,
    ) -> Generator[object, None, Turn]:
        """`answer` with pauses, see `bench.drafting.loop.decoding`."""
        turn = self.begun(contestant, question, index, number)
        turn.prompt_tokens, turn.prompt_digest = len(prompt), prompt_digest(prompt)
        limit = self.limit(prompt)
        if limit < 1:
            turn.error = f"the prompt's {len(prompt)} tokens leave no room in the context of {self.context}"
            return turn
        if self.sampler is not None:
            self.sampler.seed(self.stream(question.question_id, index, number))
        # A turn with pauses waits in them for the other side of a gate, whose work would count as others'.
        try:
            with self.memory.of(contestant.label), self.others.during(contestant.elsewhere_s) as others:
                answer = yield from decoding(
                    contestant.method, prompt, limit, self.loaded.eos, self.sampler, pause_after
                )
        except Exception as error:  # any failure of a method is a result: recorded, and the run goes on
            turn.error = f"{type(error).__name__}: {error}"
            return turn
        turn.others_share = None if pause_after else others.turn_share()
        if not is_counted_right(answer):
            self.warnings(f"{contestant.label} counts passes that some answers cannot have: those counts are left out")
            answer = replace(answer, decode_passes=None, drafted=None, accepted=None)
        fill(turn, answer, self.loaded.eos)
        turn.text = self.loaded.chat.answer_text(turn.token_ids)
        return turn

    def begun(
        self, contestant: Contestant, question: Question, index: int, number: int, error: str | None = None
    ) -> Turn:
        """The record of a turn before its answer; `error`: why it cannot be asked."""
        what = question.question_id, question.task, question.category
        return Turn(contestant.label, *what, index, number, error=error, at=self.at)

    def audit(self, turns: dict[str, Turn], prompt: list[int]) -> None:
        """Give every answer that must be vanilla's its verdict, and every one that has another baseline."""
        vanilla = turns[methods.BASELINE]
        for contestant in self.contestants:
            turn, other = turns.get(contestant.label), turns.get(contestant.baseline or methods.BASELINE)
            if turn is None or turn is vanilla or turn.error is not None or other is None or other.error is not None:
                continue
            if not (contestant.method.lossless or contestant.baseline):
                continue
            try:
                with memory_errors("the audit's reference"):
                    turn.audit = self.auditor.compare(
                        prompt, turn.token_ids, other.token_ids, by_peer=contestant.is_peer
                    )
            except UserError as error:  # what was measured is worth more than this one verdict
                self.warnings(f"some answers of {turn.method} are not audited: {error}")

    def _probe(self, turns: dict[str, Turn], prompt: list[int]) -> None:
        """Forced drafts along vanilla's answer, where the run asks for them."""
        answer = turns[methods.BASELINE].token_ids
        for contestant in self.contestants:
            if contestant.prober is not None and turns[contestant.label].error is None:
                try:
                    turns[contestant.label].windows = probe(contestant.prober, prompt, answer, contestant.windows)
                except Exception as error:  # as in `answer`: a warning, and the run goes on
                    self.warnings(f"the window probe of {contestant.label} failed: {type(error).__name__}: {error}")


def auditor_of(loaded: Loaded, log: Log) -> Auditor:
    """An auditor; its reference for a lower precision is on the device of the target if it fits, else on the CPU."""
    target = loaded.target

    def on(device: torch.device) -> Decoder:
        return load_decoder(loaded.checkpoint, device, torch.float32, max_len=target.max_len, quantize=target.quantize)

    def reference() -> Decoder:
        try:
            return on(target.device)
        except UserError as error:
            if target.device.type == "cpu":
                raise
            log(f"the audit's float32 reference goes to the CPU: {error}")
            return on(torch.device("cpu"))

    return Auditor(target, reference)


def is_counted_right(answer: Answer) -> bool:
    """Whether a peer's counts can be those of its answer: each pass after the prefill gives a token or more.

    Another client of a server, or steps beyond the answer's end, may be among them.
    """
    passes, drafted, accepted = counts = answer.decode_passes, answer.drafted, answer.accepted
    if not all(count is None or (isinstance(count, int) and count >= 0) for count in counts):
        return False
    if drafted is not None and accepted is not None and accepted > drafted:
        return False
    decoded = len(answer.token_ids) - answer.first_tokens
    return passes is None or min(decoded, 1) <= passes <= decoded


def fill(turn: Turn, answer: Answer, eos: frozenset[int]) -> None:
    """Record an answer and its steps."""
    turn.token_ids = list(answer.token_ids)
    turn.prefill_s, turn.decode_s, turn.first_tokens = answer.prefill_s, answer.decode_s, answer.first_tokens
    turn.decode_passes, turn.drafted, turn.accepted = answer.decode_passes, answer.drafted, answer.accepted
    turn.finish = answer.finish(eos)
    turn.per_step_drafted = [step.drafted for step in answer.steps]
    turn.per_step_accepted = [step.accepted for step in answer.steps]
    turn.per_step_emitted = [len(step.emitted) for step in answer.steps]
    turn.per_step_depth = [step.depth for step in answer.steps]
    turn.per_step_calls = [step.calls for step in answer.steps]
    turn.per_step_s = [round(step.draft_s + step.verify_s, 6) for step in answer.steps]
    parts = [step.part for step in answer.steps]
    turn.per_step_part = parts if any(parts) else []
    scouts = [step.scouts for step in answer.steps]
    turn.per_step_scouts = scouts if any(scouts) else []
    turn.per_step_rejected = [step.rejected for step in answer.steps]
    turn.accepted_confidence = _rounded(x for step in answer.steps for x in step.accepted_confidence)
    turn.rejected_confidence = _rounded(x for step in answer.steps for x in step.rejected_confidence)
    turn.draft_s = sum(step.draft_s for step in answer.steps)
    turn.verify_s = sum(step.verify_s for step in answer.steps)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 3) for value in values]
