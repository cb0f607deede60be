"""Walks through a counted trie, as SuffixDecoding drafts (arXiv 2411.04975, section 4.2): likely continuations of a
string, with the estimated probability of each token, a product of relative counts."""

from __future__ import annotations

import heapq
import itertools
from typing import NamedTuple

from bench.drafting.indexes.trie import Place, SuffixTrie
from bench.drafting.tree import ROOT


class Walk(NamedTuple):
    """A continuation: a path or a tree."""

    tokens: list[int]
    parents: list[int]  # ROOT: it follows the string
    chances: list[float]  # that it and all before it follow


def path(trie: SuffixTrie, place: Place, most: int, least: float) -> Walk:
    """Follow the most frequent token, up to `most` times, while the estimated probability is at least `least`."""
    tokens: list[int] = []
    chances: list[float] = []
    chance = 1.0
    while len(tokens) < most and (following := trie.children(place)):
        child = following[0]
        chance *= child.count / trie.count(place)
        if chance < least:
            break
        place = child.place
        tokens.append(child.token)
        chances.append(chance)
    return Walk(tokens, list(range(-1, len(tokens) - 1)), chances)


def tree(trie: SuffixTrie, place: Place, most: int, least: float, depth: int) -> Walk:
    """Take the `most` most probable tokens of all, at most `depth` in a row; of equal ones the first to be reached."""
    made = Walk([], [], [])
    heap: list[tuple[float, int, int, int, int, Place]] = []  # -probability, order, parent, depth, token, place
    order = itertools.count()

    def grow(parent: int, level: int, place: Place, chance: float) -> None:
        whole = trie.count(place)
        for child in trie.children(place) if level < depth else ():
            if (reached := chance * child.count / whole) < least:
                break
            heapq.heappush(heap, (-reached, next(order), parent, level + 1, child.token, child.place))

    grow(ROOT, 0, place, 1.0)
    while heap and len(made.tokens) < most:
        negative, _, parent, level, token, place = heapq.heappop(heap)
        made.tokens.append(token)
        made.parents.append(parent)
        made.chances.append(-negative)
        grow(len(made.tokens) - 1, level, place, -negative)
    return made
