"""States of the frozen target, and the training loop over them.

The target runs once over every conversation. What a draft model sees (states after some of the layers) and should
predict (final states, the target's own choices) is cached, so that epochs need no forward pass of the target.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.engine.decoder import Decoder
from bench.train.conversations import Conversations
from bench.train.optimiser import Optimiser
from bench.train.tensor_cache import keep, load

_CHUNK = 16  # conversations in a file of the cache
_POSITIONS = 2048  # most, with padding, in a forward pass of the target
_SORTED = 32  # batches whose conversations are sorted by length together
FINAL: Literal["final"] = "final"
Layer = int | Literal["final"]  # layers run


@dataclass
class Features:
    """The target's states over N conversations of T tokens in all. A position is *taught* if the target chose the next
    token: there the draft should predict what the target predicts.

    States are in half precision, a tensor [tokens, d] for each chunk of conversations, mapped from the cache's files:
    they may be larger than the memory.
    """

    final_states: Sequence[Tensor]  # post-norm
    tokens: Tensor  # [T]
    taught: Tensor  # [T] bool
    lengths: Tensor  # [N]
    taps: Mapping[int, Sequence[Tensor]]  # after so many layers

    def __post_init__(self) -> None:
        self.starts = [0, *self.lengths.cumsum(0).tolist()[:-1]]
        self._inside = torch.ones_like(self.taught).index_fill(0, self.lengths.cumsum(0) - 1, False)

    def rows(self, states: Sequence[Tensor], conversation: int) -> Tensor:
        """Return the rows [n, d] of one conversation in float32."""
        start = self.starts[conversation] - self.starts[conversation - conversation % _CHUNK]
        return states[conversation // _CHUNK][start : start + int(self.lengths[conversation])].float()

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return some conversations as a batch in float32, padded at the end with untaught positions."""

        def padded(rows: Iterable[Tensor]) -> Tensor:
            return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

        def of_states(states: Sequence[Tensor]) -> Tensor:
            return padded(self.rows(states, i) for i in indices)

        def of_tokens(column: Tensor) -> Tensor:
            return padded(column[self.starts[i] : self.starts[i] + int(self.lengths[i])] for i in indices)

        return Batch(
            of_states(self.final_states),
            of_tokens(self.tokens),
            of_tokens(self.taught),
            of_tokens(self._inside),
            torch.tensor(indices),
            {layer: of_states(states) for layer, states in self.taps.items()},
        )

    def batches(self, indices: Sequence[int], device: torch.device, size: int = 8) -> Iterator[Batch]:
        """Yield conversations `indices` in batches on a device."""
        for start in range(0, len(indices), size):
            yield self.batch(indices[start : start + size]).to(device)


@dataclass
class Batch:
    """B conversations of at most n tokens."""

    final_states: Tensor  # [B, n, d], post-norm
    tokens: Tensor  # [B, n]
    taught: Tensor  # [B, n] bool
    inside: Tensor  # [B, n] bool: all positions that have a next token, prompts included
    indices: Tensor  # [B], on the CPU: of the conversations
    taps: Mapping[int, Tensor]  # [B, n, d] after so many layers

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        names = ("final_states", "tokens", "taught", "inside")
        columns = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **columns, taps={layer: states.to(device) for layer, states in self.taps.items()})


def taught_positions(chosen: Tensor) -> Tensor:
    """Return the positions whose next token the target chose, [T] bool. (No conversation begins with a chosen one.)"""
    return torch.cat((chosen[1:], torch.zeros_like(chosen[:1])))


@dataclass(eq=False)
class Chunk:
    """Conversations whose states are together in the cache, in a file for each layer."""

    rows: Sequence[Tensor]  # the tokens of each
    first: int  # its number
    width: int  # of a state
    folder: Path

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return sum(map(len, self.rows))

    @property
    def name(self) -> str:
        """What is chunked, for readers."""
        return f"the states of conversations {self.first} to {self.first + len(self.rows) - 1}"

    def file(self, layer: Layer) -> Path:
        """The file of the states after so many layers."""
        return self.folder / str(layer) / f"{self.first:06d}-{self.first + len(self.rows):06d}.safetensors"

    def load(self, layer: Layer) -> Tensor | None:
        """The states [tokens, d] after so many layers; None: absent or damaged."""
        return load(self.file(layer), (self.tokens, self.width))

    def missing(self, layers: Iterable[Layer], others: Iterable[Layer] = ()) -> list[Layer]:
        """Which of `layers` are not there, and if some are not, which of `others`, too."""
        wanted = tuple(layers)
        absent = [layer for layer in wanted if self.load(layer) is None]
        also = (layer for layer in others if layer not in wanted and not self.file(layer).is_file())
        return [*absent, *also] if absent else []


def chunks(conversations: Conversations, folder: Path, width: int) -> list[Chunk]:
    """Return all conversations in chunks, whose files are in `folder`."""
    rows = conversations.tokens.long().split(conversations.lengths.tolist())
    return [Chunk(rows[first : first + _CHUNK], first, width, folder) for first in range(0, len(rows), _CHUNK)]


@torch.inference_mode()
def compute(target: Decoder, rows: Sequence[Tensor], files: Mapping[Layer, Path]) -> None:
    """Write the states of conversations, after so many layers each, to files."""
    for layer, computed in _states(target, rows, list(files)).items():
        keep(files[layer], _half(computed))


def features(
    target: Decoder,
    conversations: Conversations,
    folder: Path,
    taps: Iterable[int] = (),
    progress: Callable[[int], None] = lambda count: None,
    others: Iterable[int] = (),
    reader: Callable[[], Decoder] | None = None,
) -> Features:
    """Return the final states over all conversations, and those after each of `taps` layers.

    They are computed in chunks that are cached in `folder`, a file a chunk and layer. `progress` is called with the
    number of tokens of each chunk. `others`: layers whose missing chunks are computed in the same forward passes, for
    later trainings. `reader` loads the decoder that computes them, once there is one to compute (default: `target`).
    """
    read = functools.cache(reader or (lambda: target))
    found: dict[Layer, list[Tensor]] = {FINAL: [], **{layer: [] for layer in taps}}
    for chunk in chunks(conversations, folder, target.config.hidden):
        if missing := chunk.missing(found, others):
            compute(read(), chunk.rows, {layer: chunk.file(layer) for layer in missing})
        for layer, states in found.items():
            there = chunk.load(layer)
            assert there is not None
            states.append(there)
        progress(chunk.tokens)
    taught = taught_positions(conversations.chosen)
    final = found.pop(FINAL)
    return Features(final, conversations.tokens.long(), taught, conversations.lengths.long(), found)  # type: ignore[arg-type]


def _states(target: Decoder, rows: Sequence[Tensor], layers: Sequence[Layer]) -> dict[Layer, Tensor]:
    """Return states after so many layers, or post-norm final ones, of conversations: [sum of lengths, d] on the CPU."""
    found: dict[int, dict[Layer, Tensor]] = {}
    for group in _alike(rows):
        together = _states_together(target, [rows[i] for i in group], layers)
        for row, i in enumerate(group):
            found[i] = {layer: states[row, : len(rows[i])] for layer, states in together.items()}
    return {layer: torch.cat([found[i][layer] for i in range(len(rows))]) for layer in layers}


def _alike(rows: Sequence[Tensor]) -> list[list[int]]:
    """Group rows of similar lengths, as padding costs as much as tokens."""
    groups: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if groups[-1] and (len(groups[-1]) + 1) * len(rows[i]) > _POSITIONS:
            groups.append([])
        groups[-1].append(i)
    return groups


def _states_together(target: Decoder, rows: Sequence[Tensor], layers: Sequence[Layer]) -> dict[Layer, Tensor]:
    """Return the same of conversations in one forward pass: [B, n, d], padded at the end."""
    tokens = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # attention is causal: padding has no effect
    cache = target.new_cache(batch=len(tokens), max_len=tokens.shape[1])
    states, below = target.embed(tokens), 0
    made: dict[Layer, Tensor] = {}
    for layer in sorted(layer for layer in layers if layer != FINAL):
        states = target.run_layers(states, 0, cache, below, layer)
        made[layer], below = states.cpu(), layer
    if FINAL in layers:
        made[FINAL] = target.final_norm(target.run_layers(states, 0, cache, below)).cpu()
    return made


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
    """Optimiser settings. Clipping at 0.5 and linear warm-up as in the paper; then a cosine."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int
    optimiser: str = "adamw"  # or muon
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
    optimiser = Optimiser(module, schedule.optimiser, schedule.weight_decay)
    generator = torch.Generator().manual_seed(schedule.seed)
    total = steps_of(len(indices), schedule)
    step = 0
    for epoch in range(schedule.epochs):
        for batch in _batches(indices, lengths, schedule.batch, generator):
            loss = loss_of(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimiser.step(schedule.learning_rate * _rate(step, total, schedule.warm_up))
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


def _batches(indices: Sequence[int], lengths: Tensor, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield all in random batches of similar lengths, as padding costs as much as tokens."""
    order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _SORTED):
        group = sorted(order[start : start + size * _SORTED], key=lambda i: int(lengths[i]))
        batches += [group[first : first + size] for first in range(0, len(group), size)]
    yield from (batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())
