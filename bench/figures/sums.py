"""Sums over pairs of turns, of which speedups are made."""

from __future__ import annotations

import numpy as np

from bench.figures import disturbed, stats
from bench.figures.records import Turn
from bench.figures.summary import Estimate

Pair = tuple[Turn, Turn]  # the method's turn, then vanilla's


def by_steady_steps(tasks: list[list[Pair]]) -> Estimate:
    """The ratio of sums in which each step takes the median time of its like within the turn."""
    steady = [[(disturbed.steady(turn), disturbed.steady(vanilla)) for turn, vanilla in task] for task in tasks]
    known = [[(turn, vanilla) for turn, vanilla in task if turn and vanilla] for task in steady]
    if list(map(len, known)) != list(map(len, tasks)):
        return Estimate()
    return stats.estimates([question_sums(task, prefilled=False) for task in known])["ratio_of_sums"]


def question_sums(paired: list[Pair], prefilled: bool) -> stats.Array:
    """Tokens and seconds of the method, then of vanilla, summed over each question's turns and rounds [questions, 4].

    With the prefill: all tokens and seconds. Without: what came with it is not counted.
    """
    sums = {question: np.zeros(4) for question in sorted({turn.question_id for turn, _ in paired})}
    for pair in paired:
        row = [
            (len(t.token_ids), t.prefill_s + t.decode_s) if prefilled else (t.decode_tokens, t.decode_s) for t in pair
        ]
        sums[pair[0].question_id] += np.array(row).ravel()
    return np.array(list(sums.values())).reshape(-1, 4)
