"""Draft trees from counted continuations, with equal beginnings merged (REST, arXiv 2311.08252)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.drafting.indexes import END
from bench.drafting.tree import ROOT


class CountedTree(NamedTuple):
    """A tree of drafts, parents before their children, siblings by falling count."""

    tokens: list[int]
    parents: list[int]
    counts: list[int]  # the continuations through each draft


def tree_of_continuations(rows: npt.NDArray[np.int32], most: int) -> CountedTree:
    """Return the tree of the `most` most counted beginnings of some continuations.

    `rows` [n, depth]: the continuations in sorted order, with END from their end on. With equal counts, shorter
    beginnings come first, then those that are first in `rows`. A beginning is thus never before its own beginnings.
    """
    # Rows with the same beginning are neighbours. By depth, then by row: the first rows of all beginnings.
    is_first = np.ones(rows.shape, bool)
    is_first[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    firsts = np.flatnonzero(is_first.T)
    counts = np.diff(firsts, append=rows.size)
    whole = rows.T.ravel()[firsts] != END
    firsts, counts = firsts[whole], counts[whole]
    ranks = (len(rows) - counts) * rows.size + firsts
    best = np.argpartition(ranks, most)[:most] if most < len(ranks) else np.arange(len(ranks))
    best = best[np.argsort(ranks[best])]

    tree, numbers = CountedTree([], [], counts[best].tolist()), {(): ROOT}
    for place in firsts[best].tolist():
        depth, row = divmod(place, len(rows))
        *before, token = rows[row, : depth + 1].tolist()
        numbers[*before, token] = len(tree.tokens)
        tree.tokens.append(token)
        tree.parents.append(numbers[tuple(before)])
    return tree
