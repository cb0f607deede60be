"""The suffixes of a growing text that occur in a suffix trie of other texts: a question against earlier answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from bench.drafting.indexes.trie import Place, SuffixTrie


class Cursor:
    """Follows a growing text through a trie that does not hold it. The trie may change meanwhile."""

    def __init__(self, trie: SuffixTrie, tokens: Iterable[int] = ()):
        self._trie = trie
        self._seen = trie.changes
        self._recent: deque[int] = deque(maxlen=trie.depth)
        self._places = [trie.ROOT]
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens: O(longest match) each."""
        for token in tokens:
            self._recent.append(token)
            if self._seen == self._trie.changes:
                self._walk(token)

    def suffixes(self) -> list[Place]:
        """Return the places of the text's suffixes that occur in the trie, by length. The first is the root."""
        if self._seen != self._trie.changes:
            self._seen, self._places = self._trie.changes, [self._trie.ROOT]
            for token in self._recent:
                self._walk(token)
        return self._places

    def _walk(self, token: int) -> None:
        places = [self._trie.ROOT]
        for place in self._places:
            longer = self._trie.step(place, token)
            if longer is None:  # so does no longer suffix
                break
            places.append(longer)
        self._places = places
