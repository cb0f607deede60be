"""Counted continuations as draft trees, against counts of all their beginnings."""

from __future__ import annotations

import random
from collections import Counter

from index_texts import random_text

from bench.drafting.indexes.counted_tree import tree_of_continuations
from bench.drafting.tree import ROOT, Tree


def paths(tree):
    """The tokens from the root to each draft."""
    found = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(() if parent == ROOT else found[parent]), token))
    return found


def ranked(continuations):
    """All beginnings by falling count, then length, then first appearance, with their counts."""
    counts, first = Counter(), {}
    for row, (sequence, count) in enumerate(continuations):
        for length in range(1, len(sequence) + 1):
            beginning = tuple(sequence[:length])
            counts[beginning] += count
            first.setdefault(beginning, row)
    return sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), first[item[0]]))


def test_the_most_counted_beginnings_are_kept_in_order():
    for seed in range(200):
        rng = random.Random(seed)
        rows = [(random_text(rng, 10), rng.randint(1, 3)) for _ in range(rng.randint(0, 30))]
        most = rng.randint(0, 40)
        tree = tree_of_continuations(rows, most)
        assert list(zip(paths(tree), tree.counts, strict=True)) == ranked(rows)[:most]
        Tree(tree.parents)  # parents before their children
        assert len(set(zip(tree.parents, tree.tokens, strict=True))) == len(tree.tokens), "equal siblings"


def test_a_tree_of_one_sequence_is_a_chain():
    tree = tree_of_continuations([([5, 6, 5], 4)], 10)
    assert tree == ([5, 6, 5], [-1, 0, 1], [4, 4, 4])


def test_nothing_to_draft():
    assert tree_of_continuations([], 8) == ([], [], [])
    assert tree_of_continuations([([], 3)], 8) == ([], [], [])
    assert tree_of_continuations([([1], 3)], 0) == ([], [], [])


def test_it_takes_what_is_given_once():
    assert tree_of_continuations(iter([((1, 2), 1), ((1, 3), 2)]), 3) == ([1, 3, 2], [-1, 0, 0], [3, 2, 1])
