"""Methods whose drafts are right because they know transformers' answer, and a clock that only tests move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.drafting.sequence import Draft
from methods.vanilla import Vanilla
from tests.fakes import OneSequence


class Oracle(OneSequence):
    """Drafts a chain of the next `width` tokens of `answer_to(prompt)`, for as long as the answer has followed it."""

    width = 4
    answer_to: Callable[[list[int]], list[int]]

    def open(self, sequence, prompt):
        super().open(sequence, prompt)
        self.prompt_tokens = sequence.length

    def coming(self, room: int) -> list[int]:
        """What follows by the reference, at most `room` tokens."""
        answer = type(self).answer_to(self.context[: self.prompt_tokens])
        return answer[len(self.context) - self.prompt_tokens :][:room]

    def draft(self, room):
        return Draft(self.coming(min(room, self.width)))


class Sideways(Oracle):
    """Beside a wrong draft the two right ones: the accepted rows of the cache have to move."""

    def draft(self, room):
        right = self.coming(min(room, 2))
        if len(right) < 2:
            return Draft([])
        return Draft([(right[0] + 1) % 256, *right], parents=[-1, -1, 1])


def knowing(base: type[Oracle], setting: Any, hf_greedy: Callable[..., list[int]]) -> type[Oracle]:
    """A method of `base` that knows transformers' answers of the setting's model, 60 tokens without an end."""

    class Knowing(base):  # type: ignore[misc, valid-type]
        answer_to = staticmethod(lambda prompt: hf_greedy(setting.hf, prompt, 60))

    return Knowing


class Clock:
    """Seconds that pass only where a test says so; call it in place of `now_s`."""

    def __init__(self):
        self.now = 0.0

    def __call__(self, device: Any) -> float:
        return self.now


def timed(clock: Clock, prefill_s: float, step_s: float | Callable[[list[int]], float]) -> type[Vanilla]:
    """Vanilla whose prefill and steps take so many seconds of `clock`; a function of the prompt says how many."""

    class Timed(Vanilla):
        def open(self, sequence, prompt):
            clock.now += prefill_s
            self.step_s = step_s(sequence.context[:-1]) if callable(step_s) else step_s

        def propose(self, sequences, budgets):
            clock.now += self.step_s
            return super().propose(sequences, budgets)

    return Timed
