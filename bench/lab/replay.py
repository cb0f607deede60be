"""Replay: how a method that drafts from text alone would have done on the answers of a greedy run, without the model.

Under greedy decoding a lossless method emits the recorded answer, whatever it drafts. So the recorded answer decides
which drafts are accepted: the steps are those of a real run, one by one. What they would cost is predicted from the
costs that the run recorded, and labelled so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

import methods
from bench.drafting import costs as pass_costs
from bench.drafting.knobs import Costs
from bench.drafting.loop import Pass, speculate, stepping
from bench.drafting.method import Answer, SpeculativeMethod
from bench.drafting.sequence import Draft, Outcome, States, Step
from bench.drafting.sequence import Sequence as Text
from bench.drafting.verify import accept_greedy
from bench.errors import UserError, told
from bench.figures.axis import at_first, sampling
from bench.figures.metrics import vanilla_name
from bench.figures.records import Run, Turn, prompt_digest
from bench.figures.replayed import Replayed, costs_of, weighed
from bench.figures.summary import Hindsight
from bench.models.loading import Model, find, stands_for
from bench.progress import Log
from bench.questions import QuestionSet
from bench.questions import load as load_questions
from bench.run import resume
from bench.run.examiner import fill

_REMEDY = "give those of the run with --questions FILE and --model NAME"


class NotReplayableError(UserError):
    """A method needs more than the text."""


class _NotRecordedError(Exception):
    """A method asked for something that no record holds. The message says for what."""


class _NotRecorded:
    """In the place of something that no record holds."""

    def __init__(self, what: str):
        self._what = what

    def __getattr__(self, name: str) -> Any:
        raise _NotRecordedError(f"{self._what} ({name})")

    def __getitem__(self, place: Any) -> Any:
        raise _NotRecordedError(self._what)

    def __len__(self) -> int:
        raise _NotRecordedError(self._what)


class _Target(_NotRecorded):
    """In the place of the target: its dimensions, but no weights; and no costs unless they are given."""

    device = torch.device("cpu")
    sequences = 1

    def __init__(self, run: Run, model: Model):
        super().__init__("the target itself")
        self.name, self.config, self.max_len = model.checkpoint.name, model.config, _context(run, model)

    def new_cache(self, *given: Any) -> None:
        """Refuse what measuring costs begins with."""
        raise _NotRecordedError("costs of forward passes, and this run measured none")


class _Cache:
    """In the place of the target's cache: nothing is kept."""

    def keep_path(self, start: int, accepted: Sequence[int]) -> None:
        """Do nothing."""


_STATES = cast(States, _NotRecorded("the target's hidden states"))
_LOGITS = cast(torch.Tensor, _NotRecorded("the target's logits"))


@dataclass(frozen=True)
class Recorded:
    """A recorded answer."""

    turn: Turn
    prompt: list[int]
    limit: int  # tokens that it could have had


def _context(run: Run, model: Model) -> int:
    return min(run.engine.get("cache_positions", model.context), model.context)


def prepare(
    run: Run, turns: Iterable[Turn], model: str | None, questions: str | None, log: Log
) -> tuple[list[Recorded], Model]:
    """Return a run's answers, and its model without weights. `model`, `questions`: where they are now (None: as then).

    Raises:
        UserError: the run sampled, or its model or questions are not here.

    """
    if (drawn := sampling(run)) is not None:
        raise UserError(
            f"run {run.run_id} sampled (temperature {drawn.temperature}), and another method would have "
            "sampled other answers: replay a greedy run"
        )
    config = resume.recorded_settings(run)
    if config.prompt_lengths:
        raise UserError(f"run {run.run_id} padded its questions, and its prompts are not recorded: replay another run")
    turns = at_first(run, list(turns))
    found = find(model or config.model, config.revision if model is None else None, log)
    answers = list(recorded(run, turns, found, load_questions(questions or config.questions)))
    if not answers:
        raise UserError(f"run {run.run_id} has no answer of vanilla to replay on: complete it with --resume")
    return answers, found


def recorded(run: Run, turns: Iterable[Turn], model: Model, asked: QuestionSet) -> Iterator[Recorded]:
    """Yield vanilla's answers in the run's first round, in the order in which they were given.

    Prompts are not recorded: they are made again, and compared with the record.

    Raises:
        UserError: a question is missing, or its prompt is not the one that was recorded.

    """
    baseline, questions = vanilla_name(run), {question.question_id: question for question in asked.questions}
    answers = [turn for turn in turns if turn.method == baseline and turn.error is None]
    first = min((turn.round for turn in answers), default=0)
    texts: dict[tuple[int, int], str] = {}
    for turn in answers:
        if turn.round != first:
            continue
        place = f"question {turn.question_id}, turn {turn.turn + 1}"
        question = questions.get(turn.question_id)
        earlier = [texts.get((turn.question_id, before)) for before in range(turn.turn)]
        if question is None or turn.turn >= len(question.turns) or None in earlier:
            missing = f"no {place}" if question is None or turn.turn >= len(question.turns) else f"all before {place}"
            raise UserError(f"{asked.name} questions have {missing}, which run {run.run_id} recorded: {_REMEDY}")
        texts[turn.question_id, turn.turn] = model.chat.answer_text(turn.token_ids)
        history = zip(question.turns, map(str, earlier), strict=False)
        prompt = model.chat.prompt(history, question.turns[turn.turn], question.system)
        if len(prompt) != turn.prompt_tokens or (turn.prompt_digest and prompt_digest(prompt) != turn.prompt_digest):
            raise UserError(
                f"the prompt of {place} is not the one that run {run.run_id} recorded ({len(prompt)} tokens now, "
                f"{turn.prompt_tokens} then): questions, tokenizer or chat template have changed; {_REMEDY}"
            )
        limit = len(turn.token_ids)
        if turn.finish == "eos":  # it could have gone on
            limit = max(limit, min(run.config.get("max_new_tokens", limit), _context(run, model) - len(prompt)))
        yield Recorded(turn, prompt, limit)


def replay(run: Run, model: Model, answers: Sequence[Recorded], variant: methods.Variant) -> Replayed:
    """Return a method's steps on recorded answers.

    Raises:
        NotReplayableError: the method needs more than text, or its output is not vanilla's, or it fails.
        UserError: a file of the method is not here, or it does not take the knobs that the run recorded.

    """
    if needs := _needs(variant):
        raise _refusal(variant.label, needs)
    known = run.methods.get(variant.label)
    costs, _ = costs_of(run, variant.label)
    target = cast(Any, _Target(run, model))
    stands_for(target, model.checkpoint)
    if costs is not None:
        unit = 1 - costs["rest"]  # in vanilla steps with bookkeeping, see `bench.run.contestants`
        verify = tuple(sorted((int(n), cost / unit) for n, cost in costs["verify"].items()))
        pass_costs.give(target, Costs.parse(str(Costs(0.0, (0.0,), verify))))  # rounded as a run's own
    try:
        config = variant.config if known is None else variant.method.repeated(variant.config, known.ran, lenient=True)
    except ValueError as error:
        raise UserError(f"{variant.label} does not take the knobs that run {run.run_id} recorded: {error}") from error
    try:
        method = variant.method(target, config)
        assert isinstance(method, SpeculativeMethod)
        if not method.lossless:
            raise _NotRecordedError("answers of its own, because it is not lossless")
        method.forget()
        turns = [along(method, variant.label, answer) for answer in answers]
    except _NotRecordedError as error:
        raise _refusal(variant.label, str(error)) from error
    except UserError:
        raise
    except Exception as error:  # of somebody's method; or of a library that was given the stand-in for a tensor
        raise NotReplayableError(
            f"{variant.label} fails on recorded answers: {told(error)}; what reads hidden states or logits cannot be "
            "replayed: measure it in a run"
        ) from error
    return weighed(variant.label, method.memory, turns, run, [answer.turn for answer in answers])


def _refusal(label: str, needs: str) -> NotReplayableError:
    return NotReplayableError(
        f"{label} cannot be replayed: it needs {needs}, not text alone; replay takes lossless methods that "
        "draft from the text alone: measure this one in a run"
    )


def _needs(variant: methods.Variant) -> str:
    """Return what a method is known to need before it is made; "" if nothing."""
    if variant.is_peer:
        return "its own loop"
    trained = [name for name in variant.names if methods.training_module(name)]
    return f"the target's hidden states for its draft model ({', '.join(trained)})" if trained else ""


def along(method: SpeculativeMethod, label: str, answer: Recorded) -> Turn:
    """Return the turn with the method's steps; `decode_s` is the time that they took here."""
    old, ids = answer.turn, answer.turn.token_ids
    sequence = Text([*answer.prompt, ids[0]], len(answer.prompt), cast(Any, _Cache()))
    method.open(sequence, _STATES)
    eos = frozenset(ids[-1:]) if old.finish == "eos" else frozenset()
    found, verify = Answer(ids[:1], 0.0, 0.0), _recorded_choices(ids, len(answer.prompt))

    def advance(budget: int) -> list[Step]:
        return speculate(method, [sequence], [budget], verify)

    start_s = time.perf_counter()
    found.steps.extend(stepping(advance, sequence, found.token_ids, answer.limit, eos))
    found.decode_s = time.perf_counter() - start_s
    turn = Turn(label, old.question_id, old.task, old.category, old.turn, old.round, old.prompt_tokens)
    fill(turn, found, eos)
    assert turn.token_ids == ids
    return turn


def _recorded_choices(ids: Sequence[int], prompt: int) -> Pass:
    """Return a verification whose choices are the recorded answer; beyond its end, which is cut off, the last token."""

    def verify(method: SpeculativeMethod, sequences: Sequence[Text], drafts: Sequence[Draft]) -> list[Outcome]:
        (sequence,), (draft,) = sequences, drafts
        ahead, proposed = ids[len(sequence.context) - prompt :], draft.proposed
        # Only rows along the answer are asked for their choice, and what they choose depends on their depth alone.
        choices = [ahead[depth] if depth < len(ahead) else ids[-1] for depth in proposed.tree.depths]
        accepted = accept_greedy(proposed.tokens, proposed.tree, choices)
        return [Outcome(draft, accepted, choices[accepted[-1] + 1 if accepted else 0], _STATES, _LOGITS)]

    return verify


def as_json(run: Run, found: Sequence[Replayed], best: Mapping[str, Hindsight]) -> dict[str, Any]:
    """Return everything, for programs. Times are this machine's."""
    by_label = {one.label: dataclasses.asdict(one) for one in found}
    return {"run_id": run.run_id, "costs": costs_of(run)[0], "methods": by_label, "hindsight": dict(best)}
