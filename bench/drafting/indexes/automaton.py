"""An online suffix automaton (Blumer et al., 1985), as SAM-Decoding uses it (arXiv 2411.10666).

A state stands for all strings that end at the same positions of the text, the longest of which has the state's length.
Its link leads to the longest suffix of these that also ends elsewhere. A text of n tokens has at most 2n - 1 states and
3n - 4 transitions (n > 2), about 0.4 KB per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench.drafting.indexes import Match

ROOT, NO_STATE = 0, -1  # the state of the empty string, and the end of the links


class SuffixAutomaton:
    """Finds the longest suffix of a growing text that occurred earlier."""

    def __init__(self, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        # By state: its length, its link, where its first occurrence ends, and its transitions by token.
        self._lengths, self._links, self._ends = [0], [NO_STATE], [0]
        self._next: list[dict[int, int]] = [{}]
        self._last = ROOT  # the state of the whole text
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
            self._links[new] = ROOT if state == NO_STATE else self._reached(state, token)
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
        """Yield the first occurrence of each suffix of the text that occurred earlier, the longest suffix first.

        Of suffixes with the same occurrences, only the longest is yielded. Shorter ones never end later.
        """
        state = self._links[self._last]
        while state > ROOT:
            yield Match(self._lengths[state], self._ends[state])
            state = self._links[state]
