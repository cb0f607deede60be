"""Counted continuations as draft trees, against counts of all their beginnings."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from index_texts import random_text

from bench.drafting.indexes import END
from bench.drafting.indexes.counted_tree import tree_of_continuations
from bench.drafting.tree import ROOT, Tree


def paths(tree):
    """The tokens from the root to each draft."""
    found = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(() if parent == ROOT else found[parent]), token))
    return found


def rows_of(continuations, depth=None):
    """The continuations in sorted order, filled up with END."""
    depth = depth or max(map(len, continuations), default=0)
    filled = [[*continuation, *[END] * (depth - len(continuation))] for continuation in sorted(continuations)]
    return np.array(filled, np.int32).reshape(-1, depth)


def ranked(continuations):
    """All beginnings by falling count, then length, then order, with their counts."""
    counts = Counter(tuple(row[:length]) for row in continuations for length in range(1, len(row) + 1))
    return sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))


def test_the_most_counted_beginnings_are_kept_in_order():
    for seed in range(200):
        rng = random.Random(seed)
        rows = [random_text(rng, 10) for _ in range(rng.randint(0, 30)) for _ in range(rng.randint(1, 3))]
        rows += rng.choices(rows, k=len(rows))
        most = rng.randint(0, 40)
        tree = tree_of_continuations(rows_of(rows, rng.randint(10, 12)), most)
        assert list(zip(paths(tree), tree.counts, strict=True)) == ranked(rows)[:most]
        Tree(tree.parents)  # parents before their children
        assert len(set(zip(tree.parents, tree.tokens, strict=True))) == len(tree.tokens), "equal siblings"


def test_a_tree_of_one_sequence_is_a_chain():
    tree = tree_of_continuations(rows_of([[5, 6, 5]] * 4), 10)
    assert tree == ([5, 6, 5], [-1, 0, 1], [4, 4, 4])


def test_nothing_to_draft():
    assert tree_of_continuations(rows_of([], 4), 8) == ([], [], [])
    assert tree_of_continuations(rows_of([[]] * 3, 2), 8) == ([], [], [])
    assert tree_of_continuations(rows_of([[1]] * 3), 0) == ([], [], [])


def test_siblings_come_by_falling_count():
    assert tree_of_continuations(rows_of([[1, 2], [1, 3], [1, 3]]), 3) == ([1, 3, 2], [-1, 0, 0], [3, 2, 1])
