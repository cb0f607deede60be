"""Draft trees from counted continuations, with equal beginnings merged (REST, arXiv 2311.08252, section 3.2)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.drafting.tree import ROOT

Row = tuple[Sequence[int], int]  # a continuation and its count


class CountedTree(NamedTuple):
    """A tree of drafts, parents before their children, siblings by falling count."""

    tokens: list[int]
    parents: list[int]
    counts: list[int]  # the continuations through each draft


def tree_of_continuations(continuations: Iterable[Row], most: int) -> CountedTree:
    """Return the tree of the `most` most counted beginnings of some token sequences.

    Counts of equal beginnings are added. Of equal counts the shorter beginning comes first, then the one listed first.
    Continuations may be of different lengths, empty ones as well. Best-first: only branches that are kept are split.
    """
    tree = CountedTree([], [], [])
    # Of each branch: its rank (its count, its depth, its first row), its token, its parent, and its rows.
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


Branch = tuple[tuple[int, int, int], int, int, list[tuple[int, Row]]]


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
