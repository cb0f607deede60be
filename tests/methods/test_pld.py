"""Prompt lookup by Spec-Bench's rules: the longest n-gram, its first occurrence that enough tokens follow."""

from __future__ import annotations

import pytest

import methods
from bench.errors import UserError
from methods.pld import PLD, PLDConfig

ALL = {"stop": "never"}


def pld(**knobs):
    return PLD(None, PLDConfig(**ALL | knobs))


def drafted(method, text, budget=99):
    return list(method.propose_text(text, budget).tokens)


def published(text: list[int], ngram: int, tokens: int, follow: int) -> list[int]:
    """As apoorvumang/prompt-lookup-decoding describes it, window by window."""
    for size in range(ngram, 0, -1):
        for start in range(len(text) - size + 1):
            end = start + size
            if text[start:end] == text[-size:] and end + follow <= len(text) and end < len(text):
                return text[end : end + tokens]
    return []


def test_drafts_are_those_of_the_published_search(random_ids):
    for ngram, tokens, follow in ((3, 10, 10), (2, 4, 1), (1, 1, 1), (5, 6, 3)):
        method = pld(ngram=ngram, tokens=tokens, follow=follow)
        for seed in range(200):
            text = [token % 5 for token in random_ids(30, seed=seed)]
            assert drafted(method, text) == published(text, ngram, tokens, follow)


def test_the_longest_match_counts_then_the_first_one():
    text = [1, 2, 3, 7, 7, 9, 2, 3, 8, 8, 1, 2, 3]
    assert drafted(pld(tokens=2), text) == [7, 7]  # three tokens match at the beginning
    assert drafted(pld(tokens=2, ngram=2), text) == [7, 7]
    assert drafted(pld(tokens=2), [9, *text[1:]]) == [7, 7]  # two tokens, the first time
    assert drafted(pld(tokens=10), text) == [7, 7, 9, 2, 3, 8, 8, 1, 2, 3]
    assert drafted(pld(tokens=11), text) == [7, 7, 9, 2, 3, 8, 8, 1, 2, 3]
    assert drafted(pld(tokens=11, follow=11), text) == []  # no match that as many tokens follow


def test_budget_and_short_texts():
    text = [1, 2, 3, 4, 1]
    assert drafted(pld(tokens=4), text, budget=2) == [2, 3]
    assert drafted(pld(tokens=4), text, budget=0) == []
    assert drafted(pld(tokens=1), [1]) == drafted(pld(tokens=1), []) == []


def test_the_match_is_longer_than_the_n_gram_that_found_it():
    method = pld(ngram=2)
    text = [*range(30), 99, *range(7, 12)]
    (found,) = method.find(method.index(text), 3, 99)
    assert (found.length, found.tokens) == (5, [12, 13, 14])
    text = [*range(30), *range(30)]
    (found,) = method.find(method.index(text), 1, 99)
    assert found.length == 16  # as far as it matters


def test_paper_is_spec_benchs_copy():
    config = methods.parse("pld:paper").config
    assert (config.ngram, config.tokens, config.follow, config.stop, config.least) == (3, 10, 10, "never", 1)


@pytest.mark.parametrize("knob", ["ngram=0", "ngram=65", "follow=0", "follow=128", "tokens=0", "tokens=128"])
def test_knobs_out_of_range_are_refused(knob):
    with pytest.raises(UserError, match=knob.partition("=")[0]):
        methods.parse(f"pld:{knob}")
