"""Random texts over few tokens, and what a scan finds in them: the reference for all indexes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

Text = list[int]


def random_text(rng: random.Random, longest: int = 200) -> Text:
    """A text of 0 to `longest` tokens over 1 to 5 tokens, often with copied passages."""
    alphabet = rng.sample((0, 1, 2, 7, 65_535, 65_536, 151_935), rng.randint(1, 5))
    text: Text = []
    length = rng.randint(0, 2) if rng.random() < 0.1 else rng.randint(3, longest)
    while len(text) < length:
        if text and rng.random() < 0.2:
            start = rng.randrange(len(text))
            text += text[start : start + rng.randint(1, 12)]
        text.append(rng.choice(alphabet))
    return text[:length]


def texts(seeds: int, longest: int = 200) -> Iterator[Text]:
    """Random texts, and the ones that are most likely to go wrong."""
    yield from ([], [3], [3, 3], [3, 4], [5] * 60, [1, 2] * 30, list(range(40)))
    for seed in range(seeds):
        yield random_text(random.Random(seed), longest)


def ends(string: Sequence[int], text: Sequence[int]) -> list[int]:
    """Where the occurrences of a string end in a text."""
    wanted, length = list(string), len(string)
    return [end for end in range(length, len(text) + 1) if list(text[end - length : end]) == wanted]


def pieces(rng: random.Random, text: Text) -> Iterator[Text]:
    """The text in pieces of 0 to 9 tokens, as decoding steps append it."""
    at = 0
    while at < len(text):
        size = rng.randint(0, 9)
        yield text[at : at + size]
        at += size
