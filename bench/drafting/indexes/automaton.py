"""An online suffix automaton (Blumer et al., 1985), as SAM-Decoding uses it (arXiv 2411.10666, section 3).

A state stands for all strings that end at the same positions of the text, the longest of which has the state's length.
Its link leads to the longest suffix of these that also ends elsewhere. A text of n tokens has at most 2n - 1 states and
3n - 4 transitions (n > 2), about 0.4 KB per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench.drafting.indexes import Match

NO_STATE = -1


class SuffixAutomaton:
    """Finds the longest suffix of a growing text that occurred earlier, or walks a text through a corpus.

    For a corpus, append `END` after each of its texts. No token equals it, so no match crosses it.
    """

    ROOT = 0  # the state of the empty string

    def __init__(self, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        # By state: its length, its link, where its first occurrence ends, and its transitions by token.
        self._lengths, self._links, self._ends = [0], [NO_STATE], [0]
        self._next: list[dict[int, int]] = [{}]
        self._last = self.ROOT  # the state of the whole text
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens: amortised O(1) each."""
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            new, state = self._add(end, end, {}), self._last
            while state != NO_STATE and token not in self._next[state]:
                self._next[state][token] = new
                state = self._links[state]
            self._links[new] = self.ROOT if state == NO_STATE else self._reached(state, token)
            self._last = new

    def _add(self, length: int, end: int, transitions: dict[int, int]) -> int:
        self._lengths.append(length)
        self._links.append(NO_STATE)
        self._ends.append(end)
        self._next.append(transitions)
        return len(self._next) - 1

    def _reached(self, state: int, token: int) -> int:
        """Return the state for the state's longest string and `token`: split off where a state also has longer ones."""
        old, length = self._next[state][token], self._lengths[state] + 1
        if self._lengths[old] == length:
            return old
        split = self._add(length, self._ends[old], dict(self._next[old]))
        self._links[split], self._links[old] = self._links[old], split
        while state != NO_STATE and self._next[state].get(token) == old:
            self._next[state][token] = split
            state = self._links[state]
        return split

    def matches(self) -> Iterator[Match]:
        """Yield the first occurrence of suffixes of the text that occurred earlier: the longest suffix first, then the
        longest one that first occurred earlier or more often than that, and so on. Lengths fall, and ends do not rise.
        """
        state = self._links[self._last]
        while state > self.ROOT:
            yield Match(self._lengths[state], self._ends[state])
            state = self._links[state]

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Walk on with a token: amortised O(1). Start with (ROOT, 0).

        Returns the state and the length of the longest suffix of the walked text that occurs in this one; (ROOT, 0):
        none does. The text must not grow during a walk.
        """
        while state != self.ROOT and token not in self._next[state]:
            state = self._links[state]
            length = self._lengths[state]
        found = self._next[state].get(token)
        return (self.ROOT, 0) if found is None else (found, length + 1)

    def end(self, state: int) -> int:
        """Return where the first occurrence of the state's strings ends; what follows may be nothing, or `END`."""
        return self._ends[state]

    def next(self, state: int) -> dict[int, int]:
        """Return the states of the continuations by one token. Not to be changed."""
        return self._next[state]

    def occurrences(self) -> list[int]:
        """Return for each state how often its strings occur: O(states log states)."""
        # Only a prefix of the text is as long as its first end.
        counts = [int(length == end) for length, end in zip(self._lengths, self._ends, strict=True)]
        for state in sorted(range(1, len(counts)), key=self._lengths.__getitem__, reverse=True):
            counts[self._links[state]] += counts[state]
        counts[self.ROOT] = len(self.tokens)
        return counts
