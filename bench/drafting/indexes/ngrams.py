"""The newest n-gram's earlier occurrences: the index of prompt lookup and its relatives.

vLLM looks for the first occurrence of the longest suffix, Saxena's prompt lookup for the first one that enough tokens
follow, llama.cpp for the last one.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.drafting.indexes import Match
from bench.drafting.indexes.trie import SuffixTrie


class NGrams:
    """The first and the last earlier occurrence of every suffix of up to `most` tokens of a growing text."""

    def __init__(self, most: int, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        self._trie = SuffixTrie(most)
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens: O(longest match up to `most`) each."""
        added = list(tokens)
        self.tokens += added
        self._trie.extend(added)

    def first(self, least: int = 1, most: int | None = None, following: int = 1) -> Match | None:
        """Return the first occurrence of the longest suffix that occurred earlier with enough tokens after it.

        `least`, `most`: the suffix's length in tokens. `following`: tokens that the occurrence needs after it. None: no
        such suffix.
        """
        for length in reversed(self._lengths(least, most)):
            match, _ = self._trie.earlier(length)
            if match.end + following <= len(self.tokens):
                return match
        return None

    def last(self, least: int = 1, most: int | None = None) -> Match | None:
        """Return the last earlier occurrence, which may overlap, of the longest suffix that has one; None: none has."""
        lengths = self._lengths(least, most)
        return self._trie.earlier(lengths[-1])[1] if lengths else None

    def _lengths(self, least: int, most: int | None) -> range:
        """Return the lengths of suffixes that occurred earlier, within bounds."""
        assert least >= 1, least
        found = len(self._trie.suffixes()) - 1
        return range(least, (found if most is None else min(most, found)) + 1)
