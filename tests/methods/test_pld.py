"""Prompt lookup by Spec-Bench's rules: the longest n-gram, its first occurrence that enough tokens follow."""

from __future__ import annotations

import pytest

import methods
from bench.drafting.costs import Costs
from bench.errors import UserError
from methods.pld import PLD, PLDConfig


@pytest.fixture
def pld(tiny_model, tiny_decoder):
    target = tiny_decoder(*tiny_model("tied"))
    return lambda **knobs: PLD(target, PLDConfig(**knobs))


def drafted(method, text, budget=99):
    return list(method.propose_text(text, budget).tokens)


def published(text: list[int], ngram: int, tokens: int) -> list[int]:
    """As apoorvumang/prompt-lookup-decoding describes it, window by window."""
    for size in range(ngram, 0, -1):
        for start in range(len(text) - size + 1):
            end = start + size
            if text[start:end] == text[-size:] and end + tokens <= len(text) and end < len(text):
                return text[end : end + tokens]
    return []


def test_drafts_are_those_of_the_published_search(pld, random_ids):
    for ngram, tokens in ((3, 10), (2, 4), (1, 1)):
        method = pld(ngram=ngram, tokens=tokens)
        for seed in range(200):
            text = [token % 5 for token in random_ids(30, seed=seed)]
            assert drafted(method, text) == published(text, ngram, tokens)


def test_the_longest_match_counts_then_the_first_one(pld):
    text = [1, 2, 3, 7, 7, 9, 2, 3, 8, 8, 1, 2, 3]
    assert drafted(pld(tokens=2), text) == [7, 7]  # three tokens match at the beginning
    assert drafted(pld(tokens=2, ngram=2), text) == [7, 7]
    assert drafted(pld(tokens=2), [9, *text[1:]]) == [7, 7]  # two tokens, the first time
    assert drafted(pld(tokens=10), text) == [7, 7, 9, 2, 3, 8, 8, 1, 2, 3]
    assert drafted(pld(tokens=11), text) == []  # no match that as many tokens follow


def test_budget_and_short_texts(pld):
    text = [1, 2, 3, 4, 1]
    assert drafted(pld(tokens=4), text, budget=2) == [2, 3]
    assert drafted(pld(tokens=4), text, budget=0) == []
    assert drafted(pld(tokens=1), [1]) == drafted(pld(tokens=1), []) == []


def test_length_by_cost_takes_what_verifies_for_less_than_it_may_bring(pld, monkeypatch):
    costs = Costs(0.0, (0.0,), ((1, 1.0), (2, 1.1), (3, 1.2), (4, 3.0), (16, 30.0)))
    monkeypatch.setattr(PLD, "costs", costs)
    text = [*range(20), 0]
    assert drafted(pld(length="cost"), text) == [1, 2]
    assert drafted(pld(), text) == list(range(1, 11))


@pytest.mark.parametrize("knob", ["ngram=0", "tokens=0", "tokens=128", "length=best"])
def test_knobs_out_of_range_are_refused(knob):
    with pytest.raises(UserError, match=knob.partition("=")[0]):
        methods.parse(f"pld:{knob}")
