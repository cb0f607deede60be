"""Asks everything that a run has left to ask, in order, and keeps what comes; interrupted, what was finished."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from bench.progress import Log, progress
from bench.questions import Question
from bench.run import batches, environment
from bench.run.examiner import Examiner
from bench.run.plan import Asked, Plan
from bench.run.recorder import Recorder


def ask_all(examiner: Examiner, recorder: Recorder, log: Log) -> None:
    """Ask what the recorder has no turns of; the run is then complete, unless the user interrupts it.

    Raises:
        UserError: the folder cannot be written any more.

    """
    plan = recorder.plan
    todo = plan.todo({(turn.round, turn.question_id, turn.at) for turn in recorder.turns})
    total_s = sum(expected_s(plan, examiner, asked.question, asked.at) for asked in todo)
    log(announcement(recorder, len(todo), total_s))
    begin_s, examiner.others = time.perf_counter(), environment.OthersMeter()

    def note() -> None:
        recorder.note(time.perf_counter() - begin_s, examiner.others.share(), examiner.memory.facts())

    with interruptible(plan, log):
        with progress(total_s, "decoding", keep=True) as bar:
            for place, asked in enumerate(todo):
                number, question, backwards, at = asked
                if place == 0 or number != todo[place - 1].round:
                    examiner.forget()
                bar.at(name_of(asked))
                taking_part = plan.taking_part(question, examiner.contestants)
                asked_as = plan.as_asked(question, at)
                recorder.keep(examiner.ask(asked_as, number, taking_part, backwards=backwards, at=at))
                bar.add(expected_s(plan, examiner, question, at))
                note()
        batches.serve(examiner, recorder, log, note)
        recorder.record.complete = True
    recorder.save()


@contextlib.contextmanager
def interruptible(plan: Plan, log: Log) -> Iterator[None]:
    """Let Ctrl-C end what is within, and say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        log(f"interrupted: what is finished is kept; go on with {plan.go_on}")


def announcement(recorder: Recorder, left: int, about_s: float) -> str:
    """What is going to be asked, and how long it will take."""
    plan = recorder.plan
    asked = f"{len(plan.questions.questions)} questions of {len(plan.questions.tasks)} tasks"
    if len(plan.values) > 1:
        asked += f", each at {', '.join(f'{value:g}' for value in plan.values if value is not None)}"
    more = f", {left} left" if len(recorder.record.provenance["sessions"]) > 1 else ""
    return f"{asked}, {plan.config.rounds} round(s){more}: about {_minutes(about_s)}"


def name_of(asked: Asked) -> str:
    """A question for readers."""
    at = "" if asked.at is None else f" at {asked.at:g}"
    return f"{asked.question.task} {asked.question.question_id}{at}"


def expected_s(plan: Plan, examiner: Examiner, question: Question, at: float | None = None) -> float:
    """Estimated seconds of one round of the question at a value of the axis, by the warm-up's rates."""
    return sum(
        contestant.expected_s(length, plan.config.max_new_tokens) * (1 + 2 * (contestant.prober is not None))
        for contestant in plan.taking_part(question, examiner.contestants)
        for length in plan.prompt_lengths(question, examiner.loaded.chat, at)
        if length < examiner.context
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
