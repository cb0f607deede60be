"""SAM-Decoding drafts what a literal reading of the paper drafts, suffix by suffix."""

from __future__ import annotations

import random

import pytest

import methods
from bench.errors import UserError
from methods.sam import SAM


def texts(seed: int = 0, many: int = 1000):
    rng = random.Random(seed)
    for _ in range(many):
        alphabet = rng.randint(2, 5)
        yield [rng.randrange(alphabet) for _ in range(rng.randint(1, 60))]


def first_end(text: list[int], length: int) -> int | None:
    """Where the newest `length` tokens ended first, if they occurred before."""
    return next((end for end in range(length, len(text)) if text[end - length : end] == text[-length:]), None)


def literal(text: list[int], most: int, factor: float, *, climb: bool) -> list[int]:
    """The tokens after the first occurrence of the longest suffix, or of a shorter one that enough tokens follow."""
    ends = {length: end for length in range(1, len(text)) if (end := first_end(text, length)) is not None}
    if not ends:
        return []
    length = max(ends)
    while climb and length > 1 and len(text) - ends[length] < most:
        length -= 1
    tokens = min(most, int(factor * length)) if factor else most
    return text[ends[length] : ends[length] + tokens]


@pytest.mark.parametrize(
    ("label", "most", "factor", "climb"),
    [
        ("paper", 39, 4, False),
        ("paper,tokens=6,factor=1.5", 6, 1.5, False),
        ("paper-hybrid,least=1", 39, 0, True),
        ("paper-hybrid,least=1,tokens=4", 4, 0, True),
    ],
)
def test_drafts_are_those_of_a_literal_reading(label, most, factor, climb):
    method = SAM(None, methods.parse(f"sam:{label}").config)
    some = 0
    for text in texts():
        wanted = literal(text, most, factor, climb=climb)
        assert list(method.propose_text(text, 99).tokens) == wanted
        some += bool(wanted)
    assert some > 500


def test_in_front_of_another_method_a_match_needs_five_tokens():
    method = SAM(None, methods.parse("sam:paper-hybrid").config)
    text = [1, 2, 3, 4, 5, 9, 8, 7]
    assert method.propose_text([*text, 2, 3, 4, 5], 99).tokens == []
    assert method.propose_text([*text, 1, 2, 3, 4, 5], 99).tokens == [9, 8, 7, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("factor=-1", "factor=-1.0 must be in 0..1000"),
        ("factor=nan", "factor=nan must be in 0..1000"),
        ("bias=-1", "bias=-1 must be in 0..31"),
        ("tokens=128", "tokens=128 must be in 1..127"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, said):
    with pytest.raises(UserError, match=said):
        methods.parse(f"sam:{knobs}")
