"""States of the frozen target, and the training loop over them.

The target runs once over every conversation. What a head or adapter sees (exit states) and should predict (final
states, the target's own choices) is cached, so that epochs need no forward pass of the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.decoder import Decoder
from bench.train.conversations import Conversations
from bench.train.tensor_cache import keep, load_or_make

_FEATURE_BATCH = 16  # conversations in a chunk of the cache
_POSITIONS = 2048  # most, with padding, in a forward pass of the target
_SORTED = 32  # batches whose conversations are sorted by length together


@dataclass
class Features:
    """The target's states over N conversations of T tokens in all, concatenated. A position is *taught* if the target
    chose the next token: there the draft should predict what the target predicts."""

    exit_states: Tensor  # [T, d], half precision, after the exit layer
    final_states: Tensor  # [T, d], half precision, post-norm
    tokens: Tensor  # [T]
    taught: Tensor  # [T] bool
    lengths: Tensor  # [N]

    def __post_init__(self) -> None:
        self.starts = [0, *self.lengths.cumsum(0).tolist()[:-1]]
        self._inside = torch.ones_like(self.taught).index_fill(0, self.lengths.cumsum(0) - 1, False)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return some conversations as a batch in float32, padded at the end with untaught positions."""

        def padded(column: Tensor) -> Tensor:
            rows = [column[self.starts[i] : self.starts[i] + int(self.lengths[i])] for i in indices]
            return nn.utils.rnn.pad_sequence(rows, batch_first=True)

        return Batch(
            padded(self.exit_states).float(),
            padded(self.final_states).float(),
            padded(self.tokens),
            padded(self.taught),
            padded(self._inside),
            torch.tensor(indices),
        )

    def batches(self, indices: Sequence[int], device: torch.device, size: int = 8) -> Iterator[Batch]:
        """Yield conversations `indices` in batches on a device."""
        for start in range(0, len(indices), size):
            yield self.batch(indices[start : start + size]).to(device)


@dataclass
class Batch:
    """B conversations of at most n tokens."""

    exit_states: Tensor  # [B, n, d]
    final_states: Tensor  # [B, n, d], post-norm
    tokens: Tensor  # [B, n]
    taught: Tensor  # [B, n] bool
    inside: Tensor  # [B, n] bool: all positions that have a next token, prompts included
    indices: Tensor  # [B], on the CPU: of the conversations

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        columns = {name: column.to(device) for name, column in vars(self).items() if name != "indices"}
        return Batch(**columns, indices=self.indices)


def taught_positions(chosen: Tensor) -> Tensor:
    """Return the positions whose next token the target chose, [T] bool. (No conversation begins with a chosen one.)"""
    return torch.cat((chosen[1:], torch.zeros_like(chosen[:1])))


@torch.inference_mode()
def features(
    target: Decoder,
    conversations: Conversations,
    exit_layer: int,
    folder: Path,
    progress: Callable[[int], None] = lambda count: None,
    others: Mapping[int, Path] | None = None,
) -> Features:
    """Return the states over all conversations, computed in chunks that are cached in `folder`.

    `progress` is called with the number of tokens of each chunk. `others`: further exit layers with their folders,
    whose missing chunks are computed in the same forward passes, for later trainings.
    """
    d = target.config.hidden
    rows = conversations.tokens.long().split(conversations.lengths.tolist())
    exits: list[Tensor] = []
    finals: list[Tensor] = []
    for start in range(0, len(rows), _FEATURE_BATCH):
        here = rows[start : start + _FEATURE_BATCH]
        shape = (sum(map(len, here)), d)

        def is_whole(stored: dict[str, Tensor], shape: tuple[int, int] = shape) -> bool:
            return {name: tensor.shape for name, tensor in stored.items()} == {"exit": shape, "final": shape}

        name = f"{start:06d}-{start + len(here):06d}.safetensors"
        missing = {layer: path / name for layer, path in (others or {}).items() if not (path / name).is_file()}
        missing.pop(exit_layer, None)

        def compute(here: Sequence[Tensor] = here, missing: dict[int, Path] = missing) -> dict[str, Tensor]:
            exits, final_states = _states(target, here, [exit_layer, *missing])
            final = _half(final_states)
            made = {layer: {"exit": _half(states), "final": final} for layer, states in exits.items()}
            for layer, path in missing.items():
                keep(path, made[layer])
            return made[exit_layer]

        stored, _ = load_or_make(folder / name, is_whole, compute)
        exits.append(stored["exit"])
        finals.append(stored["final"])
        progress(shape[0])
    taught = taught_positions(conversations.chosen)
    return Features(
        torch.cat(exits), torch.cat(finals), conversations.tokens.long(), taught, conversations.lengths.long()
    )


def _states(target: Decoder, rows: Sequence[Tensor], exit_layers: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
    """Return states after each exit layer and post-norm final ones [sum of lengths, d] of conversations, on the CPU."""
    found: dict[int, tuple[Tensor, ...]] = {}
    for group in _alike(rows):
        found |= zip(group, _states_together(target, [rows[i] for i in group], exit_layers), strict=True)
    columns = [torch.cat(column) for column in zip(*(found[i] for i in range(len(rows))), strict=True)]
    return dict(zip(sorted(exit_layers), columns, strict=False)), columns[-1]


def _alike(rows: Sequence[Tensor]) -> list[list[int]]:
    """Group rows of similar lengths, as padding costs as much as tokens."""
    groups: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if groups[-1] and (len(groups[-1]) + 1) * len(rows[i]) > _POSITIONS:
            groups.append([])
        groups[-1].append(i)
    return groups


def _states_together(target: Decoder, rows: Sequence[Tensor], exit_layers: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Return for each conversation its states [length, d] after each exit layer, in rising order, and the final ones."""
    tokens = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # attention is causal: padding has no effect
    cache = target.new_cache(batch=len(tokens), max_len=tokens.shape[1])
    states, below = target.embed(tokens), 0
    columns: list[Tensor] = []
    for layer in sorted(exit_layers):
        states = target.run_layers(states, 0, cache, below, layer)
        columns.append(states.cpu())
        below = layer
    columns.append(target.final_norm(target.run_layers(states, 0, cache, below)).cpu())
    return [tuple(column[i, : len(row)] for column in columns) for i, row in enumerate(rows)]


def _half(states: Tensor) -> Tensor:
    """Convert to half precision: float16, or bfloat16 where a model's largest activations exceed float16's range."""
    fits = float(states.abs().max()) < torch.finfo(torch.float16).max if states.numel() else True
    return states.to(torch.float16 if fits else torch.bfloat16).contiguous()


def split(found: Features, templates: Tensor, held_out: float) -> tuple[list[int], list[int]]:
    """Return the conversations to train on, and about a share `held_out` of them, at least one, to measure on.

    Whole `templates` [N] are held out, as prompts of one template are too similar to tell learning from memorising.
    They are those of the smallest hash, so that what was held out remains so as conversations are added.
    """
    taught = [bool(row.any()) for row in found.taught.split(found.lengths.tolist())]
    usable = [i for i, some in enumerate(taught) if some]  # those with an answer
    order = sorted(usable, key=lambda i: int(templates[i]))
    most = int(templates[order[max(1, round(len(order) * held_out)) - 1]])
    return [i for i in usable if templates[i] > most], [i for i in usable if templates[i] <= most]


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
    lengths: Tensor,
    schedule: Schedule,
    each_step: Callable[[int, float], Any] = lambda step, loss: None,
    each_epoch: Callable[[int], Any] = lambda epoch: None,
) -> None:
    """Train `module` on conversations `indices`, of all that `lengths` [N] tells of.

    `loss_of` returns the loss of a batch of them.
    """
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=schedule.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(schedule.seed)
    total = steps_of(len(indices), schedule)
    step = 0
    for epoch in range(schedule.epochs):
        for batch in _batches(indices, lengths, schedule.batch, generator):
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
    """Return the number of optimiser steps over `count` conversations."""
    return schedule.epochs * math.ceil(count / schedule.batch)


def _rate(step: int, total: int, warm_up: float) -> float:
    ramp = max(1, round(total * warm_up))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))


def _batches(
    indices: Sequence[int], lengths: Tensor, size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Yield all in random batches of similar lengths, as padding costs as much as tokens."""
    order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _SORTED):
        group = sorted(order[start : start + size * _SORTED], key=lambda i: int(lengths[i]))
        batches += [group[first : first + size] for first in range(0, len(group), size)]
    yield from (batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())
