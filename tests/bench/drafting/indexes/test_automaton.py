"""The suffix automaton against a scan of the text."""

from __future__ import annotations

import random
from itertools import pairwise

from index_texts import ends, pieces, random_text, texts

from bench.drafting.indexes import END, Match
from bench.drafting.indexes.automaton import SuffixAutomaton


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
        states = len(index.occurrences())
        transitions = sum(len(index.next(state)) for state in range(states))
        assert states <= max(2 * len(text) - 1, len(text) + 1)
        assert transitions <= max(3 * len(text) - 4, 2 * len(text))


def test_it_holds_all_substrings_and_no_others():
    for text in texts(20, 40):
        index = SuffixAutomaton(text)
        left, strings = [(SuffixAutomaton.ROOT, ())], set()
        while left:
            state, string = left.pop()
            strings.add(string)
            left += [(following, (*string, token)) for token, following in index.next(state).items()]
        assert strings == {tuple(text[i:j]) for i in range(len(text) + 1) for j in range(i, len(text) + 1)}


def test_a_walk_finds_the_longest_suffix_in_the_corpus_with_counts_and_continuations():
    for seed in range(40):
        rng = random.Random(seed)
        documents = [random_text(rng, 40) for _ in range(rng.randint(1, 5))]
        corpus = [token for document in documents for token in (*document, END)]
        index = SuffixAutomaton(corpus)
        counts = index.occurrences()
        walked, state, length = [], SuffixAutomaton.ROOT, 0
        for token in random_text(rng, 60):
            walked.append(token)
            state, length = index.step(state, length, token)
            fitting = [n for n in range(len(walked) + 1) if ends(walked[len(walked) - n :], corpus) or n == 0]
            assert length == max(fitting)
            string = walked[len(walked) - length :]
            if not length:
                assert state == SuffixAutomaton.ROOT
                continue
            assert counts[state] == len(ends(string, corpus))
            assert index.end(state) == ends(string, corpus)[0]
            for following, reached in index.next(state).items():
                assert counts[reached] == len(ends([*string, following], corpus))


def test_counts_of_the_root_are_all_tokens():
    assert SuffixAutomaton().occurrences() == [0]
    assert SuffixAutomaton([7, 7, 8]).occurrences()[SuffixAutomaton.ROOT] == 3


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
        index = SuffixAutomaton(map(Counting, text))
        assert Counting.asked <= 12 * len(text)
        Counting.asked, state, length = 0, SuffixAutomaton.ROOT, 0
        for token in map(Counting, text[::-1]):
            state, length = index.step(state, length, token)
        assert Counting.asked <= 6 * len(text)
