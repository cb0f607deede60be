"""N-grams against a scan of the text, under the three rules of the field."""

from __future__ import annotations

import random

import pytest
from index_texts import ends, pieces, texts

from bench.drafting.indexes import Match
from bench.drafting.indexes.ngrams import NGrams


def scanned(text, least, most, following, pick):
    """The rule, literally: the longest suffix with an earlier occurrence that enough tokens follow."""
    for length in range(min(most, len(text) - 1), least - 1, -1):
        earlier = ends(text[len(text) - length :], text)[:-1]
        fitting = [end for end in earlier if end + following <= len(text)]
        if fitting:
            return Match(length, pick(fitting), len(earlier))
    return None


def test_first_and_last_occurrence_at_every_length_of_the_text():
    for number, text in enumerate(texts(40, 120)):
        rng = random.Random(number)
        most = rng.randint(1, 7)
        index, seen = NGrams(most), []
        for piece in pieces(rng, text):
            index.extend(piece)
            seen += piece
            assert index.tokens == seen
            for least, longest in ((1, most), (rng.randint(1, most), rng.randint(1, most)), (most, most)):
                assert index.first(least, longest) == scanned(seen, least, longest, 1, min)
                assert index.last(least, longest) == scanned(seen, least, longest, 1, max)
                following = rng.randint(1, 12)
                assert index.first(least, longest, following) == scanned(seen, least, longest, following, min)


def test_an_index_of_a_whole_text_equals_one_that_grew():
    for text in texts(20):
        whole, grown = NGrams(5, text), NGrams(5)
        for token in text:
            grown.extend([token])
        assert (whole.first(), whole.last()) == (grown.first(), grown.last())


def test_prompt_lookup_skips_a_match_near_the_end_for_a_shorter_one():
    text = [1, 2, 3, 9, 9, 9, 9, 8, 2, 3, 5, 8, 2, 3]
    index = NGrams(3, text)
    assert index.first() == Match(3, 10, 1)  # 8 2 3, which 4 tokens follow
    assert index.first(following=5) == Match(2, 3, 2)  # 2 3
    assert index.first(following=12) is None


def test_the_newest_token_alone_is_no_match():
    assert NGrams(3).first() is None
    assert NGrams(3, [4]).first() is None
    assert NGrams(3, [4, 5]).last() is None
    assert NGrams(3, [4, 4]).last() == Match(1, 1, 1)


def test_an_occurrence_may_overlap_the_suffix():
    index = NGrams(3, [6] * 6)
    assert index.first() == Match(3, 3, 3)
    assert index.last() == Match(3, 5, 3)


@pytest.mark.parametrize("least", [0, -1])
def test_a_suffix_has_a_token(least):
    with pytest.raises(AssertionError):
        NGrams(3, [1, 1]).first(least)
