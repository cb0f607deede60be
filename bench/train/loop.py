"""Features of the frozen target, and the training loop over them.

The target runs once over every conversation; what a head or adapter sees (exit states) and what it should predict
(final states, the target's own choices) is cached, so that an epoch costs no target pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.decoder import Decoder
from bench.train.conversations import Conversations
from bench.train.pieces import load_or_make

_FEATURE_BATCH = 16  # conversations in a pass of the target


@dataclass
class Features:
    """What the frozen target makes of N conversations of T tokens. A position is *taught* if the next token was chosen
    by the target: there the draft should predict what the target predicts."""

    exit_states: Tensor  # [N, T, d], half precision, after the exit layer
    final_states: Tensor  # [M, d], half precision, post-norm, at the M taught positions in order
    tokens: Tensor  # [N, T]
    taught: Tensor  # [N, T] bool

    @property
    def offsets(self) -> list[int]:
        """Where each conversation's final states begin."""
        counts = self.taught.sum(1).cumsum(0).tolist()
        return [0, *counts[:-1]]


def taught_positions(chosen: Tensor) -> Tensor:
    """[N, T] bool: positions whose next token the target chose."""
    return torch.cat((chosen[:, 1:], torch.zeros_like(chosen[:, :1])), dim=1)


@torch.inference_mode()
def features(
    target: Decoder,
    conversations: Conversations,
    exit_layer: int,
    folder: Path,
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """The features of all conversations, computed in pieces that are cached in `folder`.

    `progress` is told how many conversations were added.
    """
    taught = taught_positions(conversations.chosen)
    exits: list[Tensor] = []
    finals: list[Tensor] = []
    for start in range(0, len(conversations.tokens), _FEATURE_BATCH):
        end = min(start + _FEATURE_BATCH, len(conversations.tokens))
        tokens, here = conversations.tokens[start:end], taught[start:end]

        def compute(tokens: Tensor = tokens, here: Tensor = here) -> dict[str, Tensor]:
            exit_states, final_states = _states(target, tokens, exit_layer)
            return {"exit": _half(exit_states), "final": _half(final_states[here])}

        d = target.config.hidden
        shapes = {"exit": (*tokens.shape, d), "final": (int(here.sum()), d)}
        stored, _ = load_or_make(folder / f"{start:06d}-{end:06d}.safetensors", shapes, compute)
        exits.append(stored["exit"])
        finals.append(stored["final"])
        progress(len(stored["exit"]))
    return Features(torch.cat(exits), torch.cat(finals), conversations.tokens.long(), taught)


def _states(target: Decoder, tokens: Tensor, exit_layer: int) -> tuple[Tensor, Tensor]:
    """Exit states and post-norm final states [n, T, d] of conversations [n, T], on the CPU."""
    cache = target.new_cache(batch=len(tokens), max_len=tokens.shape[1])
    exit_states = target.run_layers(target.embed(tokens), 0, cache, 0, exit_layer)
    final_states = target.final_norm(target.run_layers(exit_states, 0, cache, exit_layer))
    return exit_states.cpu(), final_states.cpu()


def _half(states: Tensor) -> Tensor:
    """Half precision: float16, or bfloat16 where a model's largest activations leave float16's range."""
    fits = float(states.abs().max()) < torch.finfo(torch.float16).max if states.numel() else True
    return states.to(torch.float16 if fits else torch.bfloat16).contiguous()


def acceptance_by_position(matches: Tensor, taught: Tensor, positions: int) -> list[float]:
    """How often the w-th draft in a row is right, given that all before it were, for w = 1..positions.

    `matches`, `taught` [N, T] bool: where the draft's first choice is the target's, and where there is one to hit. A
    row of drafts may begin at any taught position, and is left alone where it runs over the end of an answer.
    """
    length = taught.shape[1]
    ahead = [nn.functional.pad(mask, (0, positions)) for mask in (matches, taught)]
    hit = torch.ones_like(taught)  # rows of drafts, by where they begin, that were right so far
    shares = []
    for shift in range(positions):
        match, inside = (mask[:, shift : shift + length] for mask in ahead)
        tried = hit & inside
        hit = tried & match
        shares.append(float(hit.sum() / tried.sum().clamp(min=1)))
    return shares


def split(indices: Sequence[int], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Conversations to train on, and at least one to hold out."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round(len(indices) * held_out))
    return [indices[i] for i in order[held:]], [indices[i] for i in order[:held]]


@dataclass(frozen=True)
class Schedule:
    """Optimiser settings. AdamW (0.9, 0.95), clipping at 0.5 and linear warm-up as in the paper; then a cosine."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int
    warm_up: float = 0.03  # share of all steps
    weight_decay: float = 0.01


def fit(
    module: nn.Module,
    loss_of: Callable[[Sequence[int]], Tensor],
    indices: Sequence[int],
    schedule: Schedule,
    each_step: Callable[[int, float], Any] = lambda step, loss: None,
    each_epoch: Callable[[int], Any] = lambda epoch: None,
) -> None:
    """Train `module` on conversations `indices`; `loss_of` gives the loss of some of them."""
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=schedule.weight_decay
    )
    generator = torch.Generator().manual_seed(schedule.seed)
    total = schedule.epochs * math.ceil(len(indices) / schedule.batch)
    step = 0
    for epoch in range(schedule.epochs):
        for batch in _batches(indices, schedule.batch, generator):
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * _rate(step, total, schedule.warm_up)
            loss = loss_of(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimiser.step()
            step += 1
            each_step(step, float(loss.detach()))
        each_epoch(epoch + 1)


def steps_of(count: int, schedule: Schedule) -> int:
    """Optimiser steps over `count` conversations."""
    return schedule.epochs * math.ceil(count / schedule.batch)


def _rate(step: int, total: int, warm_up: float) -> float:
    ramp = max(1, round(total * warm_up))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))


def _batches(indices: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    order = torch.randperm(len(indices), generator=generator).tolist()
    for start in range(0, len(order), size):
        yield [indices[i] for i in order[start : start + size]]
