"""N-gram drafting by vLLM's and llama.cpp's rules, window by window."""

from __future__ import annotations

import random

import pytest

import methods
from bench.errors import UserError
from methods.ngram import Ngram


def texts(seed: int = 0, many: int = 1000):
    rng = random.Random(seed)
    for _ in range(many):
        alphabet = rng.randint(2, 5)
        yield [rng.randrange(alphabet) for _ in range(rng.randint(1, 40))]


def by_windows(text: list[int], least: int, most: int, tokens: int, *, last: bool) -> list[int]:
    """What follows the longest of the suffixes that occurred before, where it did first or last."""
    for n in range(min(most, len(text) - 1), least - 1, -1):
        ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
        if ends:
            end = ends[-1 if last else 0]
            return text[end : end + tokens]
    return []


@pytest.mark.parametrize("label", ["vllm", "vllm,least=1,most=3", "least=2,most=7,stop=never,occurrence=first"])
def test_drafts_are_vllms(label):
    variant = methods.parse(f"ngram:{label}")
    method, config = Ngram(None, variant.config), variant.config
    some = 0
    for text in texts():
        wanted = by_windows(text, config.least, config.most, config.tokens, last=False)
        assert list(method.propose_text(text, 99).tokens) == wanted
        some += bool(wanted)
    assert some > 100


def test_drafts_are_llama_cpps():
    method = Ngram(None, methods.parse("ngram:llama-cpp,least=3,most=3,tokens=5").config)
    for text in texts(1):
        assert list(method.propose_text(text, 99).tokens) == by_windows(text, 3, 3, 5, last=True)


def test_vllms_own_example():
    """Its documentation: of 4, 2, 3 at the end only 2, 3 occurred before."""
    method = Ngram(None, methods.parse("ngram:vllm,least=2,most=3,tokens=4").config)
    assert list(method.propose_text([1, 2, 3, 4, 2, 3], 99).tokens) == [4, 2, 3]


def test_presets_are_the_engines_defaults():
    config = methods.parse("ngram:paper").config
    assert config == methods.parse("ngram:vllm").config
    assert (config.least, config.most, config.tokens, config.stop) == (5, 5, 5, "never")
    config = methods.parse("ngram:llama-cpp").config
    assert (config.least, config.most, config.tokens, config.occurrence) == (12, 12, 48, "last")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("most=0", "most=0 must be in 1..64"),
        ("most=65", "most=65 must be in 1..64"),
        ("least=4,most=3", "least=4 is more than most=3"),
        ("occurrence=second", "occurrence=second must be first or last"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, said):
    with pytest.raises(UserError, match=said):
        methods.parse(f"ngram:{knobs}")
