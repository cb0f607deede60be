"""What transformers answers, and token ids to ask it about: shared by fixtures and by what writes tiny weights."""

from __future__ import annotations

import functools
from typing import Any

import torch

VOCAB = 272  # of the tiny models


@functools.cache
def greedy(model: Any, prompt: tuple[int, ...], limit: int, eos: frozenset[int]) -> list[int]:
    """The answer of transformers' own greedy `generate`."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=sorted(eos) or None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def emitted(drafts: list[int], choices: list[int]) -> list[int]:
    """What a step adds: the drafts up to the first that is not the target's choice, and the target's choice there."""
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == choices[accepted]:
        accepted += 1
    return [*drafts[:accepted], choices[accepted]]


def random_ids(count: int, seed: int = 0) -> list[int]:
    """So many token ids."""
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
