"""Draft trees from counted continuations, with equal beginnings merged (REST, arXiv 2311.08252)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.drafting.tree import ROOT

Row = tuple[Sequence[int], int]  # a continuation and its count
# A rank (-count, depth, first row), a token, its parent, and its numbered rows.
Branch = tuple[tuple[int, int, int], int, int, list[tuple[int, Row]]]


class CountedTree(NamedTuple):
    """A tree of drafts, parents before their children, siblings by falling count."""

    tokens: list[int]
    parents: list[int]
    counts: list[int]  # the continuations through each draft


def tree_of_continuations(continuations: Iterable[Row], most: int) -> CountedTree:
    """Return the tree of the `most` most counted beginnings of some token sequences.

    The counts of equal beginnings add up. With equal counts, shorter beginnings come first, then those listed first.
    Continuations may differ in length and may be empty. Best-first search: only branches that are kept are split.
    """
    tree = CountedTree([], [], [])
    heap = _branches(list(enumerate(continuations)), 0, ROOT)
    heapq.heapify(heap)
    while heap and len(tree.tokens) < most:
        (count, depth, _), token, parent, rows = heapq.heappop(heap)
        for branch in _branches(rows, depth + 1, len(tree.tokens)):
            heapq.heappush(heap, branch)
        tree.tokens.append(token)
        tree.parents.append(parent)
        tree.counts.append(-count)
    return tree


def _branches(rows: list[tuple[int, Row]], depth: int, parent: int) -> list[Branch]:
    """Return the branches into which numbered rows part at a depth."""
    groups: dict[int, list[tuple[int, Row]]] = {}
    for row in rows:
        sequence = row[1][0]
        if len(sequence) > depth:
            groups.setdefault(sequence[depth], []).append(row)
    return [
        ((-sum(count for _, (_, count) in group), depth, group[0][0]), token, parent, group)
        for token, group in groups.items()
    ]
