"""Resuming a run: its settings, its finished questions, and what must not have changed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import methods
from bench.config import RunConfig, flag_of, frozen
from bench.errors import UserError, program
from bench.figures.records import (
    BATCHES_FILE,
    TURNS_FILE,
    Run,
    Turn,
    alone_in,
    prompt_digest,
    read_records,
    read_run,
    read_turns,
    remembers_the_run,
    write_turns,
)
from bench.figures.waves import Block, read_blocks
from bench.models.chat import ChatFormat
from bench.questions import Question
from bench.typed_json import MismatchError, decode_value

# Older runs do not say these.
_NOT_ALWAYS_RECORDED = ("chat template", "tokenizer", "engines of peers")
_OF_MACHINE = ("device", "machine", "threads", "engine's weights")
Changes = dict[str, tuple[Any, Any]]  # what was, and what is now, by its name

# Where a run is computed: another number of workers, or another cluster, may go on with it.
_PLACES = ("workers", "ray", "mix_machines")
# What a run's figures depend on besides its settings. A commit may change without touching any of it: it is recorded.
_FIXED: dict[str, Callable[[Run], Any]] = {
    "model": lambda run: run.model.get("sha256"),
    "questions": lambda run: run.dataset.get("sha256"),
    "chat template": lambda run: run.model.get("chat_template_sha256"),
    "tokenizer": lambda run: run.model.get("tokenizer_sha256"),
    "number of questions": lambda run: run.dataset.get("questions"),
    "device": lambda run: run.machine.name,
    "machine": lambda run: run.machine.digest,
    "torch": lambda run: run.provenance.get("packages", {}).get("torch"),
    "transformers": lambda run: run.provenance.get("packages", {}).get("transformers"),
    "dtype": lambda run: run.dtype,
    "threads": lambda run: run.machine.threads,
    "engine's weights": lambda run: run.engine.get("weights"),
    "methods": lambda run: list(run.methods),
    "weights of methods": lambda run: {
        label: digests
        for label, info in run.methods.items()
        if (digests := {key: value for key, value in info.notes.items() if key.endswith("sha256")})
    },
    "engines of peers": lambda run: (
        {label: engine for label, info in run.methods.items() if (engine := info.notes.get("engine"))} or None
    ),
    "memory of methods": lambda run: {
        label: memory for label, info in run.methods.items() if (memory := info.notes.get("memory"))
    },
}


def begun(folder: Path) -> Run:
    """The run to go on with.

    Raises:
        UserError: no run there, or it is complete.

    """
    run = read_run(folder)
    if run.complete:
        raise UserError(f"{folder} is complete: there is nothing to resume; show it with: {program()} report {folder}")
    return run


@contextlib.contextmanager
def alone_with(folder: Path, run: Run | None) -> Iterator[None]:
    """Hold a folder in which `run`, read before a model was loaded, is to go on; None: a new run.

    Raises:
        UserError: another process holds it, or went on with the run since it was read.

    """
    with alone_in(folder):
        if run is not None and read_run(folder) != run:
            raise UserError(f"another process has gone on with {folder} meanwhile: give the same command again")
        yield


def settings(run: Run, given: Mapping[str, Any]) -> RunConfig:
    """The settings that the run was begun with; flags `given` with --resume may only repeat them, but for workers.

    Raises:
        UserError: a flag differs, with both values.

    """
    places = {name: value for name, value in given.items() if name in _PLACES}
    config = dataclasses.replace(recorded_settings(run), **places)
    _refuse(run, changed_flags(config, given))
    return config


def recorded_settings(run: Run) -> RunConfig:
    """The settings that the run was begun with.

    Raises:
        UserError: this version does not know one of them, or its value.

    """
    known = {item.name for item in dataclasses.fields(RunConfig)}
    if unknown := run.config.keys() - known:
        raise UserError(f"cannot repeat run {run.run_id}: this version does not know its {', '.join(sorted(unknown))}")
    try:
        return decode_value(RunConfig, run.config)
    except MismatchError as error:
        raise UserError(f"cannot repeat run {run.run_id}: its setting {error}") from error


def changed_flags(config: RunConfig, given: Mapping[str, Any]) -> Changes:
    """Flags that differ from the settings."""
    return {
        flag_of(key): (getattr(config, key), value)
        for key, value in frozen(given).items()
        if getattr(config, key) != value
    }


def listed(changed: Changes) -> str:
    """What was, and what is now."""
    return "; ".join(f"{what} was {before!r}, is now {now!r}" for what, (before, now) in changed.items())


def check_unchanged(run: Run, now: Mapping[str, Any]) -> None:
    """Refuse to go on where the run's figures would be of two things; `now` by the names of what must not change.

    Raises:
        UserError: model, questions, device, a library or weights are others, with both values.

    """
    _refuse(run, changes(run, now))


def changes(run: Run, now: Mapping[str, Any]) -> Changes:
    """What is not as the run's record has it; what that does not say is left out."""
    before = {what: _FIXED[what](run) for what in now}
    unknown = {what for what in _NOT_ALWAYS_RECORDED if before.get(what) is None}
    return {what: (before[what], now[what]) for what in now if what not in unknown and before[what] != now[what]}


def check_prompts(
    run: Run, folder: Path, asked_as: Callable[[int, float | None], Question | None], chat: ChatFormat
) -> None:
    """Refuse to go on where first prompts are not those of the finished turns: a template may write today's date.

    `asked_as` returns the question of an id as it is asked at a value of the run's axis.

    Raises:
        UserError: a prompt has changed, or the turns cannot be read.

    """
    if not (folder / TURNS_FILE).exists():
        return
    recorded = {(turn.question_id, turn.at): turn.prompt_digest for turn in read_turns(folder) if turn.turn == 0}
    for (identifier, at), before in recorded.items():
        question = asked_as(identifier, at)
        if (
            question
            and before
            and before != (now := prompt_digest(chat.prompt([], question.turns[0], question.system)))
        ):
            _refuse(run, {f"the prompt of question {identifier} (digest of its token ids)": (before, now)})


def facts(run: Run, *, of_machine: bool = True) -> dict[str, Any]:
    """All that must not change, of a run's record; without what belongs to its machine, if workers may differ in it."""
    return {what: of(run) for what, of in _FIXED.items() if of_machine or what not in _OF_MACHINE}


def _refuse(run: Run, changed: Changes) -> None:
    if changed:
        raise UserError(
            f"cannot resume run {run.run_id} under changed settings: {listed(changed)}; restore it, or begin a new run"
        )


def as_begun(variant: methods.Variant, run: Run) -> methods.Variant:
    """The variant with every knob as recorded, so that nothing is measured or chosen again."""
    info = run.methods.get(variant.label)
    if info is None:
        raise UserError(f"cannot resume run {run.run_id}: it has no method {variant.label!r}")
    if remembers_the_run(info.notes):
        raise UserError(
            f"cannot resume run {run.run_id}: {variant.label} has forgotten what it answered there; begin a new run"
        )
    try:
        return dataclasses.replace(variant, config=variant.method.repeated(variant.config, info.ran))
    except ValueError as error:
        raise UserError(f"cannot resume run {run.run_id}: {variant.label} does not take its knobs ({error})") from error


def finished_turns(folder: Path, asked: Sequence[Question], taking_part: Callable[[Question], list[str]]) -> list[Turn]:
    """The turns of all finished questions; what is torn or half done is removed from the file.

    `taking_part` names the methods that answer a question.
    """
    if not (folder / TURNS_FILE).exists():
        return []
    _, found = read_records(folder)
    by_question: dict[tuple[int, int, float | None], list[Turn]] = defaultdict(list)
    for turn in found:
        by_question[turn.round, turn.question_id, turn.at].append(turn)
    questions = {question.question_id: question for question in asked}
    for turn in found:
        question = questions.get(turn.question_id)
        if question is None or turn.turn >= len(question.turns):
            raise UserError(
                f"{folder / TURNS_FILE} answers turn {turn.turn} of question {turn.question_id}, which the run does "
                "not ask: mend the file"
            )
    kept = [
        turn
        for (_, identifier, _), turns in by_question.items()
        if _is_through(turns, questions[identifier], taking_part(questions[identifier]))
        for turn in turns
    ]
    write_turns(folder / TURNS_FILE, kept)  # as a whole: a torn last line goes, too
    return kept


def finished_blocks(folder: Path, labels: Sequence[str]) -> list[Block]:
    """The blocks that everybody answered in a batch; what is torn or half done is removed from the file."""
    blocks = read_blocks(folder, read_run(folder))
    by_place: dict[tuple[int, int, int], list[Block]] = defaultdict(list)
    for block in blocks:
        by_place[block.place].append(block)
    kept = [
        block for own in by_place.values() if sorted(block.method for block in own) == sorted(labels) for block in own
    ]
    if blocks or (folder / BATCHES_FILE).exists():
        write_turns(folder / BATCHES_FILE, kept)  # as a whole: a torn last line goes, too
    return kept


def _is_through(turns: list[Turn], question: Question, labels: list[str]) -> bool:
    """Everybody answered every turn once, or up to the one in which vanilla failed."""
    last = max(turn.turn for turn in turns)
    answered = sorted((turn.turn, turn.method) for turn in turns)
    if answered != sorted((index, label) for index in range(last + 1) for label in labels):
        return False
    failed = any(turn.turn == last and turn.method == methods.BASELINE and turn.error is not None for turn in turns)
    return failed or last == len(question.turns) - 1
