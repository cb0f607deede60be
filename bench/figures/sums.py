"""Sums over pairs of turns, of which speedups are made."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import numpy as np

from bench.figures import disturbed, stats
from bench.figures.records import Turn
from bench.figures.summary import Estimate

K = TypeVar("K", bound=Hashable)
Pair = tuple[Turn, Turn]  # the method's turn, then vanilla's


def by_steady_steps(tasks: list[list[Pair]]) -> Estimate:
    """The ratio of sums in which each step takes the median time of its like within the turn."""
    steady = [[(disturbed.steady(turn), disturbed.steady(vanilla)) for turn, vanilla in task] for task in tasks]
    known = [[(turn, vanilla) for turn, vanilla in task if turn and vanilla] for task in steady]
    if list(map(len, known)) != list(map(len, tasks)):
        return Estimate()
    return speedups(known, prefilled=False)["ratio_of_sums"]


def speedups(tasks: list[list[Pair]], prefilled: bool, *, turned: bool = False) -> dict[str, Estimate]:
    """Each estimator with its interval, over the pairs of some tasks. `turned`: vanilla's speed over the method's."""
    columns = [2, 3, 0, 1] if turned else [0, 1, 2, 3]
    sums = [question_sums(task, prefilled)[:, columns] for task in tasks]
    if len({turn.worker for task in tasks for turn, _ in task}) < 2:
        return stats.estimates(sums)
    splits = [worker_sums(task, prefilled) for task in tasks]
    by_worker = [stats.Split(split.sums[:, columns], split.questions, split.workers) for split in splits]
    return stats.estimates(sums, by_worker=by_worker)


def question_sums(paired: list[Pair], prefilled: bool) -> stats.Array:
    """Tokens and seconds of the method, then of vanilla, summed over each question's turns and rounds [questions, 4].

    With the prefill: all tokens and seconds. Without: what came with it is not counted.
    """
    found = _summed(paired, prefilled, lambda turn: turn.question_id)
    return np.array([found[question] for question in sorted(found)]).reshape(-1, 4)


def worker_sums(paired: list[Pair], prefilled: bool) -> stats.Split:
    """The same, by question and the worker that answered it: in several rounds a question may have several."""
    found = _summed(paired, prefilled, lambda turn: (turn.question_id, turn.worker))
    keys = sorted(found)
    sums = np.array([found[key] for key in keys]).reshape(-1, 4)
    return stats.Split(sums, [question for question, _ in keys], [worker for _, worker in keys])


def _summed(paired: list[Pair], prefilled: bool, key: Callable[[Turn], K]) -> dict[K, stats.Array]:
    sums: dict[K, stats.Array] = {}
    for pair in paired:
        row = [
            (len(t.token_ids), t.prefill_s + t.decode_s) if prefilled else (t.decode_tokens, t.decode_s) for t in pair
        ]
        sums[key(pair[0])] = sums.get(key(pair[0]), np.zeros(4)) + np.array(row).ravel()
    return sums
