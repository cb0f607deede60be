"""A suffix trie with counts, as in SuffixDecoding (arXiv 2411.04975): how often a string occurs and what follows it.

Only strings that have occurred twice have nodes for their continuations. A *leaf* has occurred once; its continuation
is read from the text. Ordinary text needs one or two nodes per token, whatever the depth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from bench.drafting.indexes import END, Match

Place = tuple[int, int]  # of a string: a node, and how many tokens after a leaf. Valid until the trie changes.


class Child(NamedTuple):
    """A continuation by one token."""

    token: int
    count: int  # type: ignore[assignment]  # occurrences of the string with this token
    place: Place


class SuffixTrie:
    """Counts the strings of up to `depth` tokens in a queue of texts, the newest of which may grow."""

    ROOT: ClassVar[Place] = (0, 0)  # the place of the empty string

    def __init__(self, depth: int):
        assert depth >= 1, depth
        self.depth = depth
        self.changes = 0  # rises with every change; places from before are no longer valid
        self._reset()

    def _reset(self) -> None:
        self._tokens: list[int] = []  # of all texts held, END between them
        self._base = 0  # the position of _tokens[0]
        self._starts = deque([0])  # the positions where texts start
        # By node: its number of occurrences, where the first and the last one end, its length in tokens, and its
        # children by token (None: a leaf).
        self._counts, self._firsts, self._ends, self._depths = [0], [0], [0], [0]
        self._children: list[dict[int, int] | None] = [{}]
        self._unused: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self._active = [0]  # by length, the nodes of the newest text's suffixes that are no leaves
        self._before = [0]  # for each: where its last earlier occurrence ends

    @property
    def texts(self) -> int:
        """The number of texts held that have tokens."""
        return len(self._starts) - (self._starts[-1] == self._base + len(self._tokens))

    @property
    def nodes(self) -> int:
        """The number of nodes in use."""
        return len(self._counts) - len(self._unused)

    def start(self) -> None:
        """Begin a new text. The first one begins by itself."""
        if self._starts[-1] < self._base + len(self._tokens):
            self._tokens.append(END)
            self._starts.append(self._base + len(self._tokens))
            self._begin()

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the newest text: O(longest match) each, at most O(depth)."""
        self.changes += 1
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        assert token >= 0, token
        self._tokens.append(token)
        end = self._base + len(self._tokens)
        self._counts[0] += 1
        parents = self._active[: self.depth]  # the longest may be as long as strings are counted
        self._begin()
        for length, parent in enumerate(parents, 1):
            children = self._children[parent]
            assert children is not None
            if (node := children.get(token)) is None:
                children[token] = self._leaf(end, length)
                continue
            if self._children[node] is None:
                self._children[node] = self._continuation(node)
            self._active.append(node)
            self._before.append(self._ends[node])
            self._counts[node] += 1
            self._ends[node] = end

    def _leaf(self, end: int, depth: int) -> int:
        """Return a new node for a string whose only occurrence ends at `end`."""
        node = self._unused.pop() if self._unused else len(self._counts)
        if node == len(self._counts):
            for column in (self._counts, self._firsts, self._ends, self._depths):
                column.append(0)
            self._children.append(None)
        self._counts[node], self._firsts[node], self._ends[node], self._depths[node] = 1, end, end, depth
        self._children[node] = None
        return node

    def _continuation(self, leaf: int) -> dict[int, int]:
        """Return the children of a leaf that occurs again: what followed its first occurrence."""
        end, depth = self._ends[leaf], self._depths[leaf]
        token = self._tokens[end - self._base]
        return {} if token == END or depth == self.depth else {token: self._leaf(end + 1, depth + 1)}

    def drop_oldest(self) -> None:
        """Remove the oldest text. The trie then answers as if the text had never been added."""
        self.changes += 1
        if len(self._starts) == 1:
            self._reset()
            return
        length = self._starts[1] - self._starts[0] - 1
        for start in range(length):
            self._counts[0] -= 1
            node = 0
            for token in self._tokens[start : min(start + self.depth, length)]:
                children = self._children[node]
                if children is None:
                    break
                node = children[token]
                self._counts[node] -= 1
                if not self._counts[node]:
                    del children[token]
                    self._unused.append(node)
        del self._tokens[: length + 1]
        self._starts.popleft()
        self._base = self._starts[0]

    def suffixes(self) -> list[Place]:
        """Return the places of the newest text's suffixes that occurred before, by length. The first is the root."""
        return [self.ROOT, *((node, 0) for node in self._active[1:] if self._counts[node] > 1)]

    def earlier(self, length: int) -> tuple[Match, Match]:
        """Return the first and the last earlier occurrence of the newest `length` tokens, in a trie with one text.

        `length` must be below the number of `suffixes()`.
        """
        node = self._active[length]
        count = self._counts[node] - 1
        return Match(length, self._firsts[node], count), Match(length, self._before[length], count)

    def step(self, place: Place, token: int) -> Place | None:
        """Return the place of a string followed by `token`; None: it does not occur, or is longer than `depth`."""
        node, past = place
        children = self._children[node]
        if children is None:
            return (node, past + 1) if self._following(place) == token else None
        child = children.get(token)
        return None if child is None else (child, 0)

    def _following(self, place: Place) -> int:
        """Return the token that follows a place at or after a leaf, or END."""
        node, past = place
        at = self._ends[node] + past - self._base
        return END if at == len(self._tokens) or self._depths[node] + past == self.depth else self._tokens[at]

    def find(self, tokens: Sequence[int]) -> Place | None:
        """Return the place of a string; None: it does not occur, or is longer than `depth`."""
        place: Place | None = self.ROOT
        for token in tokens:
            if place is None or (place := self.step(place, token)) is None:
                return None
        return place

    def count(self, place: Place) -> int:
        """Return how often a string occurs, including at the end of the text. For the root: the number of tokens."""
        return self._counts[place[0]]

    def children(self, place: Place) -> list[Child]:
        """Return what follows a string, the most frequent token first; of equally frequent ones, the most recent."""
        node, past = place
        children = self._children[node]
        if children is None:
            token = self._following(place)
            return [] if token == END else [Child(token, 1, (node, past + 1))]
        ranked = sorted(children.items(), key=lambda item: (-self._counts[item[1]], -self._ends[item[1]]))
        return [Child(token, self._counts[child], (child, 0)) for token, child in ranked]
