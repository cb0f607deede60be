"""Acceptance: greedy and typical by hand; sampled by going through every draw and every coin of small vocabularies, so
that the distribution of what is emitted is known exactly, and by chi-square on real draws.

Seeds are fixed, so a test passes always or never; a p-value below RARE would be chance once in 10,000 choices of them.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from bench.drafting.tree import chain_of, tree_of
from bench.drafting.verify import accept_greedy, accept_typical

RARE = 1e-4


# --- greedy ----------------------------------------------------------------------------------------------------------


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
def test_of_a_chain_the_longest_matching_prefix_is_kept(drafts, choices, accepted):
    tree = chain_of(len(drafts))
    assert accept_greedy(drafts, tree, choices) == list(range(accepted))
    assert accept_greedy(tuple(drafts), tree, tuple(choices)) == list(range(accepted))


# Drafts 0 and 1 follow the root, 2 and 3 draft 0, 4 and 5 draft 1, 6 draft 5.
PARENTS = [-1, -1, 0, 0, 1, 1, 5]
DRAFTS = [7, 8, 1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    ("choices", "path"),
    [
        #    root, after each draft
        ([9, 1, 1, 0, 0, 0, 3, 0], []),  # every draft would be right but for those of the first level
        ([7, 2, 2, 0, 0, 0, 3, 0], [0, 3]),
        ([7, 1, 2, 0, 0, 0, 3, 0], [0, 2]),
        ([7, 3, 2, 0, 0, 0, 3, 0], [0]),
        ([8, 2, 2, 0, 0, 0, 3, 0], [1, 5, 6]),  # the choice after draft 0 does not matter
        ([8, 2, 2, 0, 0, 0, 4, 0], [1, 5]),
        ([8, 2, 1, 0, 0, 3, 3, 0], [1, 4]),
        ([8, 2, 0, 0, 0, 3, 3, 0], [1]),
    ],
)
def test_of_a_tree_the_path_of_the_targets_choices_is_kept(choices, path):
    assert accept_greedy(DRAFTS, tree_of(PARENTS), choices) == path


def test_every_random_tree_keeps_what_a_walk_by_tokens_keeps():
    rng = random.Random(5)
    lengths = Counter()
    for _ in range(300):
        parents = [rng.randint(-1, draft - 1) for draft in range(12)]
        drafts, choices = [rng.randrange(3) for _ in parents], [rng.randrange(3) for _ in range(13)]
        path: list[int] = []
        node = -1
        while True:
            following = [i for i in range(12) if parents[i] == node and drafts[i] == choices[node + 1]]
            if not following:
                break
            node = following[0]
            path.append(node)
        lengths[len(path)] += 1
        assert accept_greedy(drafts, tree_of(parents), choices) == path
    assert set(lengths) >= {0, 1, 2, 3}


@pytest.mark.parametrize("choices", [[], [7], [7, 8, 9]])
def test_there_is_one_choice_more_than_drafts(choices):
    with pytest.raises(AssertionError):
        accept_greedy([7], chain_of(1), choices)


# --- typical ---------------------------------------------------------------------------------------------------------

SURE = [0.97, 0.01, 0.01, 0.01]  # exp(-H) = 0.8457
EVEN = [0.25, 0.25, 0.25, 0.25]  # exp(-H) = 0.25
HALF = [0.5, 0.5, 0.0, 0.0]  # exp(-H) = 0.5
SKEW = [0.6, 0.2, 0.15, 0.05]  # exp(-H) = 0.352
ONE = [0.0, 1.0, 0.0, 0.0]  # exp(-H) = 1


@pytest.mark.parametrize(
    ("p", "epsilon", "delta", "plausible"),
    [
        (SURE, 0.3, 0.5, [0]),  # 0.3
        (SURE, 0.3, 0.01, [0, 1, 2, 3]),  # 0.0085
        (SURE, 0.009, 0.5, [0, 1, 2, 3]),  # 0.009
        (EVEN, 0.3, 0.5, [0, 1, 2, 3]),  # 0.125
        (EVEN, 0.3, 1.1, []),  # 0.275
        (HALF, 0.09, 0.3, [0, 1]),  # 0.09
        (HALF, 0.5, 10.0, []),  # 0.5, and 0.5 is not more
        (HALF, 0.0, 0.3, [0, 1]),  # 0, and the impossible is not more
        (SKEW, 0.9, 0.5, [0, 1]),  # 0.176
        (SKEW, 0.14, 0.5, [0, 1, 2]),  # 0.14
        (SKEW, 0.9, 0.4, [0, 1, 2]),  # 0.141
        (ONE, 0.9, 0.3, [1]),  # 0.3
        (ONE, 0.9, 2.0, [1]),  # 0.9
    ],
)
def test_a_draft_is_typical_if_it_is_probable_enough_for_the_entropy(p, epsilon, delta, plausible):
    target = torch.tensor([p, EVEN])
    kept = [accept_typical([token], chain_of(1), target, epsilon, delta) for token in range(4)]
    assert kept == [[0] if token in plausible else [] for token in range(4)]


def typical(parents: list[int], drafts: list[int], rows: dict[int, list[float]]) -> list[int]:
    """At (0.3, 0.5); `rows`: the target's probabilities after the drafts named, -1 the root; after others EVEN."""
    target = torch.tensor([rows.get(row, EVEN) for row in range(-1, len(parents))])
    return accept_typical(drafts, tree_of(parents), target, 0.3, 0.5)


def test_the_longest_typical_path_is_kept():
    assert typical([], [], {}) == []
    assert typical([-1, 0, 1], [0, 1, 2], {}) == [0, 1, 2]
    assert typical([-1, 0, 1], [0, 1, 2], {0: SURE}) == [0]  # what follows an implausible draft does not count
    # 0.6 at the root beats 0.2, but the path through the second goes on.
    assert typical([-1, -1, 0, 1], [0, 1, 1, 1], {-1: SKEW, 0: SURE}) == [1, 3]
    assert typical([-1, -1, 1, 2], [0, 1, 0, 0], {-1: SKEW}) == [1, 2, 3]


def test_of_paths_equally_long_the_most_probable_is_kept():
    assert typical([-1, -1], [1, 0], {-1: SKEW}) == [1]
    assert typical([-1, -1], [0, 1], {-1: SKEW}) == [0]
    # 0.6 * 0.25 against 0.2 * 0.97: the whole path counts, not its beginning.
    assert typical([-1, -1, 0, 1], [0, 1, 3, 0], {-1: SKEW, 1: SURE}) == [1, 3]
    assert typical([-1, -1, 0, 1], [0, 1, 3, 0], {-1: SKEW}) == [0, 2]
