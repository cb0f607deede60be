"""Greedy acceptance, every case by hand."""

from __future__ import annotations

import pytest

from bench.engine.verify import accept_greedy


@pytest.mark.parametrize(
    ("drafts", "choices", "accepted"),
    [
        ([], [7], 0),
        ([7], [7, 1], 1),
        ([7], [8, 7], 0),
        ([7, 8, 9], [7, 8, 9, 1], 3),
        ([7, 8, 9], [7, 8, 1, 9], 2),
        ([7, 8, 9], [7, 1, 9, 9], 1),  # a match behind a mismatch follows another text, and does not count
        ([7, 8, 9], [1, 8, 9, 9], 0),
        ([0, 0], [0, 0, 0], 2),
    ],
)
def test_the_longest_matching_prefix_is_kept(drafts, choices, accepted):
    assert accept_greedy(drafts, choices) == accepted
    assert accept_greedy(tuple(drafts), tuple(choices)) == accepted


@pytest.mark.parametrize("choices", [[], [7], [7, 8, 9]])
def test_there_is_one_choice_more_than_drafts(choices):
    with pytest.raises(AssertionError):
        accept_greedy([7], choices)
