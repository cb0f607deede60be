"""Lookahead's pool of n-grams and its window, which finds them (arXiv 2402.02057, section 3). Pure: no torch, no costs.

The rules are those of the authors' code, which the paper leaves open: how the window fills, that it moves on by one
column a step however many tokens were accepted, and which n-grams a full pool forgets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from collections.abc import Sequence as Many

from bench.drafting.tree import ROOT

Gram = tuple[int, ...]
Nodes = dict[tuple[int, int], int]  # parent and token -> number of a draft; equal siblings are one
RANKS = 4  # n-grams that go on differently, the newest first, are told apart up to this rank
# Chances by the ranks of `following`: half the odds that answers of SmolLM2-135M-Instruct showed, which replayed best.
PRIOR = (0.25, 0.1, 0.06, 0.04, 0.54, 0.16, 0.06, 0.05)


class Pool:
    """N-grams by their first token: of each, the `guesses` newest."""

    def __init__(self, ngram: int, guesses: int):
        self.ngram, self.guesses = ngram, guesses
        self.grams: dict[int, dict[Gram, bool]] = {}  # first token -> the rest, newest last; by the window alone?

    def add(self, first: int, rest: Gram, *, by_window: bool) -> None:
        """Add an n-gram, or make it the newest."""
        found = self.grams.setdefault(first, {})
        found[rest] = found.pop(rest, True) and by_window
        if len(found) > self.guesses:
            del found[next(iter(found))]

    def read(self, text: Many[int], new: int) -> None:
        """Add the n-grams that end with one of the `new` last tokens of a text."""
        for end in range(max(self.ngram, len(text) - new + 1), len(text) + 1):
            first, *rest = text[end - self.ngram : end]
            self.add(first, tuple(rest), by_window=False)

    def after(self, token: int) -> tuple[int, list[Gram]]:
        """Return the place after a token, for `following`."""
        return 0, list(reversed(self.grams.get(token, {})))

    def found_by_window(self, token: int, accepted: Many[int]) -> bool:
        """Return whether only the window found what was accepted after a token."""
        start, grams = tuple(accepted), self.grams.get(token, {})
        return all(by_window for rest, by_window in grams.items() if rest[: len(start)] == start)


def following(place: tuple[int, list[Gram]]) -> Iterator[tuple[int, int, tuple[int, list[Gram]]]]:
    """Yield what n-grams go on with, as `bench.drafting.pace.grow` needs it.

    Ranks of first tokens begin at 0, those of later ones at RANKS.
    """
    base, grams = place
    branches: dict[int, list[Gram]] = {}
    for gram in filter(None, grams):
        branches.setdefault(gram[0], []).append(gram[1:])
    for rank, (token, rest) in enumerate(branches.items()):
        yield base + min(rank, RANKS - 1), token, (RANKS, rest)


class Window:
    """W columns of guessed tokens, N - 1 levels deep. Level 0 is W - 1 tokens that follow the newest one."""

    def __init__(self, columns: int, ngram: int, prompt: Many[int]):
        """Level 0 starts with tokens drawn from the prompt, the same for equal prompts. It loses one at each level."""
        self.depth = ngram - 1
        self.levels = [random.Random(len(prompt)).choices(prompt, k=columns + ngram - 3)] if columns else []

    @property
    def size(self) -> int:
        """The number of its tokens."""
        return sum(map(len, self.levels))

    def carry(self, nodes: Nodes) -> list[int]:
        """Add the window to a tree of drafts; returns the drafts after which the next level's tokens are."""
        chain = [ROOT]  # column i branches off after i tokens of level 0
        for token in self.levels[0]:
            chain.append(nodes.setdefault((chain[-1], token), len(nodes)))
        if len(self.levels) == 1:
            return chain[1:]
        for level in self.levels[1:]:
            chain = [nodes.setdefault(pair, len(nodes)) for pair in zip(chain, level, strict=True)]
        return chain

    def move(self, newest: int, results: list[int]) -> list[Gram]:
        """Take the next level's tokens, `newest` having been the newest token; returns the n-grams found."""
        filled, grams = len(self.levels), []
        if filled == 1:
            self.levels = [self.levels[0][1:], results]
        elif filled < self.depth:
            self.levels = [level[1:] for level in (*self.levels, results)]
        else:
            firsts = [newest, *self.levels[0]]
            grams = list(zip(firsts, *self.levels[1:], results, strict=True))
            self.levels = [self.levels[1][1:], *self.levels[2:], results]
        return grams


def most_drafts(columns: int, ngram: int, guesses: int) -> int:
    """Return the most drafts of a step, while the window fills or after."""
    filling = (columns + ngram - 3 - i + i * (columns + ngram - 2 - i) for i in range(ngram - 1))
    return guesses * (ngram - 1) + (max(filling) if columns else 0)
