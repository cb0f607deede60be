"""What the tests of conversations share: a small recipe, and how to look into what was written."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch

from bench.models.chat import ChatFormat
from bench.train.conversations import Conversations
from bench.train.writer import Recipe

END = 258  # what the template ends every turn with
EOS = frozenset({END})
RECIPE = Recipe(tokens=1, batch=16, length=168, answer_tokens=40)  # room for every prompt
SMALL = replace(RECIPE, batch=2, length=132, answer_tokens=24)  # where the content does not matter
LOOP = 12  # tokens said twice in an answer end it


def same(a: Conversations, b: Conversations) -> bool:
    return all(torch.equal(column, vars(b)[name]) for name, column in vars(a).items())


def rows_of(found: Conversations) -> list[tuple[list[int], list[bool]]]:
    """(tokens, chosen) of each conversation."""
    lengths = found.lengths.tolist()
    columns = (found.tokens.split(lengths), found.chosen.split(lengths))
    return [(tokens.tolist(), chosen.tolist()) for tokens, chosen in zip(*columns, strict=True)]


def turns_of(row: list[int], chat: ChatFormat) -> list[tuple[str, int, int]]:
    """(who, begin, end) of each turn of a conversation, cut where the template's separators stand."""
    before, to_reply, to_user = (chat.encode(piece) for piece in chat.separators())
    assert row[: len(before)] == before
    cuts = [("user", 0, len(before))]
    for i in range(len(row)):
        for who, piece in (("assistant", to_reply), ("user", to_user)):
            if row[i : i + len(piece)] == piece:
                cuts.append((who, i, i + len(piece)))
    cuts.append(("nobody", len(row), len(row)))
    return [(who, end, following) for (who, _, end), (_, following, _) in pairwise(cuts)]


def loops(answer: list[int]) -> bool:
    """Whether the answer's end repeats something that it said before."""
    said = [answer[i : i + LOOP] for i in range(len(answer) - LOOP + 1)]
    return bool(said) and said[-1] in said[:-1]


def three() -> Conversations:
    """Three conversations of 2, 4 and 3 tokens and of three kinds."""
    lengths = torch.tensor([2, 4, 3], dtype=torch.int32)
    chosen = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool)
    kinds, templates = torch.tensor([5, 0, 2], dtype=torch.int8), torch.tensor([70, 80, 90], dtype=torch.int32)
    return Conversations(torch.arange(10, 19, dtype=torch.int32), chosen, lengths, kinds, templates)
