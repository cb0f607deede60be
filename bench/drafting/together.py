"""Drafting for several sequences at once: each drafts as if alone, and what all ask for is answered together."""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from typing import TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
Result = TypeVar("Result")


def in_step(
    drafting: Many[Generator[Asked, Answered, Result]], answer: Callable[[list[Asked]], Many[Answered]]
) -> list[Result]:
    """Run generators in lock-step and return what they return.

    Each yields what it asks for, such as the input of a draft model. What all those ask that still go on is answered in
    one call.
    """
    results: dict[int, Result] = {}
    waiting: dict[int, Asked] = {}

    def go_on(number: int, given: Answered | None) -> None:
        try:
            one = drafting[number]
            waiting[number] = next(one) if given is None else one.send(given)
        except StopIteration as ended:
            results[number] = ended.value

    for number in range(len(drafting)):
        go_on(number, None)
    while waiting:
        numbers, asked = list(waiting), list(waiting.values())
        waiting.clear()
        for number, given in zip(numbers, answer(asked), strict=True):
            go_on(number, given)
    return [results[number] for number in range(len(drafting))]
