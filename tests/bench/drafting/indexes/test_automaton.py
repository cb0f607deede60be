"""The suffix automaton against a scan of the text."""

from __future__ import annotations

import random
from itertools import pairwise

from index_texts import ends, pieces, texts

from bench.drafting.indexes import Match
from bench.drafting.indexes.automaton import ROOT, SuffixAutomaton


def scanned(text):
    """The longest suffix of each set of occurrences, longest first, with the first of these occurrences."""
    found = []
    for length in range(len(text) - 1, 0, -1):
        occurrences = ends(text[-length:], text)
        if len(occurrences) > 1 and (not found or occurrences != found[-1][1]):
            found.append((Match(length, occurrences[0]), occurrences))
    return [match for match, _ in found]


def test_matches_at_every_length_of_the_text():
    for number, text in enumerate(texts(40, 120)):
        index, seen = SuffixAutomaton(), []
        for piece in pieces(random.Random(number), text):
            index.extend(piece)
            seen += piece
            assert index.tokens == seen
            assert list(index.matches()) == scanned(seen)


def test_lengths_fall_and_continuations_grow_towards_shorter_matches():
    for text in texts(60):
        for longer, shorter in pairwise(SuffixAutomaton(text).matches()):
            assert longer.length > shorter.length >= 1
            assert longer.end >= shorter.end


def test_it_stays_within_the_proven_size():
    for text in texts(60):
        index = SuffixAutomaton(text)
        assert len(index._next) <= max(2 * len(text) - 1, len(text) + 1)
        assert sum(map(len, index._next)) <= max(3 * len(text) - 4, 2 * len(text))


def test_it_holds_all_substrings_and_no_others():
    for text in texts(20, 40):
        index = SuffixAutomaton(text)
        left, strings = [(ROOT, ())], set()
        while left:
            state, string = left.pop()
            strings.add(string)
            left += [(following, (*string, token)) for token, following in index._next[state].items()]
        assert strings == {tuple(text[i:j]) for i in range(len(text) + 1) for j in range(i, len(text) + 1)}


class Counting(int):
    """A token that counts how often tables are asked for tokens."""

    asked = 0

    def __hash__(self):
        Counting.asked += 1
        return super().__hash__()


def test_a_token_costs_a_constant_number_of_look_ups():
    rng = random.Random(5)
    for text in ([1] * 4000, [1, 2] * 2000, [rng.randrange(3) for _ in range(4000)], list(range(4000))):
        Counting.asked = 0
        SuffixAutomaton(map(Counting, text))
        assert Counting.asked <= 12 * len(text)
