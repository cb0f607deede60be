"""The batches of a run (`--batch`): after its questions were asked one by one, they are answered so many at once.

Every answer is held against vanilla's of the questions one by one, whose prompts it repeats. Methods are made once more
for each batch size, because what drafts are worth depends on what passes of so many sequences cost. They answer block
after block of questions, in an order that is reversed from one block to the next; a block ends with a drain.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import methods
from bench.drafting.batch import Batch, Request, Slots, decode_batch
from bench.drafting.method import SpeculativeMethod
from bench.drafting.sampling import Sampler
from bench.engine.joined import for_batch
from bench.errors import UserError, told
from bench.figures.records import BatchInfo, Turn, over, prompt_digest
from bench.figures.waves import Block
from bench.models.loading import memory_errors, stands_for
from bench.progress import Log, progress
from bench.run import environment
from bench.run.contestants import Contestant, StepTimes, costs_of, line_up, sampler_of
from bench.run.examiner import Examiner, fill
from bench.run.plan import WARM_UP
from bench.run.recorder import Recorder

_PER_SLOT = 3  # turns of a block for each slot, about: fewer are a larger share of drain, more are fewer clusters
_WARM_UPS = 2
_WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Item:
    """A turn to answer: vanilla's record of it, alone, and its prompt."""

    alone: Turn
    prompt: list[int]


def serve(examiner: Examiner, recorder: Recorder, log: Log, note: Callable[[], None]) -> None:
    """Answer all turns of the run in batches of each size, as far as the recorder has no blocks of them.

    `note` is called after each block.

    Raises:
        UserError: the folder cannot be written any more, or a method cannot be made for a batch.

    """
    if not (sizes := sorted(recorder.plan.config.batch)):
        return
    items = _items(examiner, recorder)
    done = {block.place for block in recorder.blocks}
    for size in sizes:
        if left := [place for place in _places(items, size) if place not in done]:
            log(f"decoding in batches of {size}: {len(left)} blocks of questions")
            _serve(_Stage.of(examiner, recorder, size), recorder, items, left, note)


def _serve(
    stage: _Stage,
    recorder: Recorder,
    items: dict[int, list[Item]],
    left: Sequence[tuple[int, int, int]],
    note: Callable[[], None],
) -> None:
    """Answer the blocks that are left of one batch size."""
    with progress(len(left) * len(stage.contestants), f"batches of {stage.slots.count}", keep=True) as bar:
        for size, number, block in left:
            if block == 0 or (size, number, block) == left[0]:
                stage.forget()
            asked = _blocks(items[number], size)[block]
            taking_part = stage.contestants if (block + number) % 2 == 0 else stage.contestants[::-1]
            found = {}
            for contestant in taking_part:
                bar.at(contestant.label)
                found[contestant.label] = stage.answer(contestant, (size, number, block), asked)
                bar.add(1)
            recorder.keep_blocks([found[contestant.label] for contestant in stage.contestants])
            note()


def _items(examiner: Examiner, recorder: Recorder) -> dict[int, list[Item]]:
    """By round, the turns that vanilla has answered, in the order of the questions."""
    alone = {
        (turn.round, turn.question_id, turn.turn): turn
        for turn in recorder.turns
        if turn.method == methods.BASELINE and turn.error is None
    }
    found: dict[int, list[Item]] = {}
    for number, question, *_ in recorder.plan.todo(()):
        history: list[tuple[str, str]] = []
        for index, user in enumerate(question.turns):
            turn = alone.get((number, question.question_id, index))
            if turn is None:
                break
            prompt = examiner.loaded.chat.prompt(history, user, question.system)
            assert prompt_digest(prompt) == turn.prompt_digest, f"question {question.question_id} has another prompt"
            found.setdefault(number, []).append(Item(turn, prompt))
            history.append((user, turn.text))
    return found


def _blocks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in blocks of nearly one size, at least as many as there are slots."""
    count = max(1, min(round(len(items) / (_PER_SLOT * size)), len(items) // size))
    edges = [len(items) * i // count for i in range(count + 1)]
    return [items[low:high] for low, high in itertools.pairwise(edges)]


def _places(items: dict[int, list[Item]], size: int) -> Iterator[tuple[int, int, int]]:
    """Batch size, round and number of every block."""
    for number, own in items.items():
        yield from ((size, number, block) for block in range(len(_blocks(own, size))))


@dataclass
class _Stage:
    """Everybody made ready for one batch size."""

    examiner: Examiner
    contestants: list[Contestant]
    slots: Slots

    @classmethod
    def of(cls, examiner: Examiner, recorder: Recorder, size: int) -> _Stage:
        """Make and warm up all methods for a batch size, with the knobs that an earlier session measured for it."""
        loaded, record = examiner.loaded, recorder.record
        target = for_batch(loaded.target, size)
        stands_for(target, loaded.checkpoint)
        known = record.batches.get(str(size))
        chosen = [_variant(one, known) for one in examiner.contestants if not one.is_peer]
        stage = cls(examiner, line_up(chosen, dataclasses.replace(loaded, target=target), 0), Slots(target, size))
        if target.graphs is not None:
            target.graphs.reopen()
        times = stage.warm_up()
        if target.graphs is not None:
            target.graphs.close()
        if known is None:
            record.batches[str(size)] = stage.infos(times)
            recorder.save()
        return stage

    def infos(self, times: dict[str, StepTimes]) -> dict[str, BatchInfo]:
        """What is recorded of everybody at this batch size; `times`: of the warm-up's waves."""
        found = {}
        for contestant in self.contestants:
            vanilla = None if contestant.label == methods.BASELINE else times[methods.BASELINE]
            costs = None
            if self.examiner.sampler is None:  # nothing that is timed here samples
                costs = costs_of(_method(contestant), times[contestant.label], vanilla)
            found[contestant.label] = BatchInfo(contestant.method.measured, costs)
        return found

    def forget(self) -> None:
        """Let methods drop what outlives a question."""
        for contestant in self.contestants:
            if isinstance(contestant.method, SpeculativeMethod):
                contestant.method.forget()

    def warm_up(self) -> dict[str, StepTimes]:
        """Let everybody fill the batch with a prompt of no task, never counted; returns the times of waves."""
        times = {}
        prompt = self.examiner.loaded.chat.prompt([], WARM_UP)
        limit = min(_WARM_UP_TOKENS, self.examiner.context - len(prompt))
        for contestant in self.contestants:
            for _ in range(_WARM_UPS):
                requests = [Request(prompt, limit, self._sampler()) for _ in range(self.slots.count)]
                try:
                    with memory_errors(f"method {contestant.label} in a batch of {self.slots.count}"):
                        batch = decode_batch(_method(contestant), requests, self.slots, frozenset())
                except UserError:
                    raise
                except Exception as error:
                    raise UserError(
                        f"{contestant.label} fails in a batch of {self.slots.count}, in the warm-up: {told(error)}"
                    ) from error
            times[contestant.label] = _wave_times(batch)
        return times

    def answer(self, contestant: Contestant, place: tuple[int, int, int], items: Sequence[Item]) -> Block:
        """One contestant's answers to a block, or why it failed."""
        examiner, (size, number, block) = self.examiner, place
        made = Block(contestant.label, size, number, block)
        eos, others = examiner.loaded.eos, environment.OthersMeter()
        try:
            with examiner.memory.of(contestant.label):
                batch = decode_batch(_method(contestant), [self._request(item) for item in items], self.slots, eos)
        except Exception as error:  # any failure of a method is a result: recorded, and the run goes on
            made.error = f"{type(error).__name__}: {error}"
            return made
        made.others_share = others.turn_share()
        for item, served in zip(items, batch.served, strict=True):
            turn = dataclasses.replace(_blank(item.alone), method=contestant.label)
            fill(turn, served.answer, eos)
            # Times are of all sequences together: the waves have them. The rest is as alone, where it is recorded.
            turn.per_step_s, turn.per_step_rejected = [], []
            turn.accepted_confidence, turn.rejected_confidence = [], []
            self._audit(contestant, turn, item)
            made.turns.append(turn)
            made.first_waves.append(served.first_wave)
        made.live = [wave.live for wave in batch.waves]
        for name in ("wall_s", "draft_s", "verify_s"):
            setattr(made, name, [round(getattr(wave, name), 6) for wave in batch.waves])
        return made

    def _sampler(self) -> Sampler | None:
        """A sampler of one sequence; None: greedy decoding."""
        return sampler_of(self.examiner.config, self.examiner.config.temperature)

    def _request(self, item: Item) -> Request:
        """The turn as it was asked for alone, with the same stream of random numbers."""
        examiner, turn = self.examiner, item.alone
        sampler = self._sampler()
        if sampler is not None:
            sampler.seed(examiner.stream(turn.question_id, turn.turn, turn.round))
        return Request(item.prompt, examiner.limit(item.prompt), sampler)

    def _audit(self, contestant: Contestant, turn: Turn, item: Item) -> None:
        """Hold a greedy answer against vanilla's to the same prompt alone, vanilla's own too."""
        examiner = self.examiner
        if examiner.sampler is not None or not contestant.method.lossless:
            return
        try:
            with memory_errors("the audit's reference"):
                turn.audit = examiner.auditor.compare(item.prompt, turn.token_ids, item.alone.token_ids)
        except UserError as error:  # what was measured is worth more than this one verdict
            examiner.warnings(f"some answers of {turn.method} are not audited: {error}")


def _variant(contestant: Contestant, known: dict[str, BatchInfo] | None) -> methods.Variant:
    """The contestant's variant: as asked for, so that it measures for the batch; or as it ran before."""
    variant = methods.parse(contestant.label)
    if known is None:
        return variant
    ran = over(contestant.method.knobs(), known[contestant.label].measured)
    return dataclasses.replace(variant, config=variant.method.repeated(variant.config, ran))


def _wave_times(batch: Batch) -> StepTimes:
    """A mean wave."""
    waves, answers = batch.waves, [served.answer for served in batch.served]
    draft_s = sum(wave.draft_s for wave in waves)
    rest_s = sum(wave.wall_s - wave.verify_s for wave in waves) - draft_s
    calls = sum(max(one.steps[n].calls for one in answers if n < len(one.steps)) for n in range(len(waves)))
    total_s = sum(wave.wall_s for wave in waves)
    return StepTimes(total_s / len(waves), rest_s / len(waves), draft_s / calls if calls else 0.0)


def _method(contestant: Contestant) -> SpeculativeMethod:
    assert isinstance(contestant.method, SpeculativeMethod)
    return contestant.method


def _blank(turn: Turn) -> Turn:
    """A record of the same turn without an answer."""
    kept = ("method", "question_id", "task", "category", "turn", "round", "prompt_tokens", "prompt_digest")
    return Turn(**{name: getattr(turn, name) for name in kept})
