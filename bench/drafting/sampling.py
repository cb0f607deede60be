"""From logits to the most probable tokens, or to a distribution and draws from it. Target and drafts use the same."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_BLOCK = 64  # tokens whose largest logit is found first


class Sampler:
    """Draws tokens at a temperature, from the `top_k` most probable (0: all) and of these from the `top_p` mass.

    The warpers and their order are transformers'. All draws come from two generators, which `seed` resets.
    """

    def __init__(self, temperature: float, top_p: float = 1.0, top_k: int = 0):
        from transformers.generation import logits_process as library

        assert temperature > 0, "temperature 0 is greedy decoding: no sampler"
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self._warpers: list[Callable[[Any, Any], Tensor]] = [library.TemperatureLogitsWarper(float(temperature))]
        if top_k:
            self._warpers.append(library.TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(library.TopPLogitsWarper(top_p))
        self.seed("")

    def seed(self, text: str) -> None:
        """Reset the generators for a question. Equal texts give equal draws."""
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
        self.number = number
        self._uniform = random.Random(number)
        self._generators: dict[torch.device, torch.Generator] = {}

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits [n, V] into float32 probabilities [n, V]."""
        scores = logits.float()
        for warp in self._warpers:
            scores = warp(None, scores)
        return scores.softmax(-1)

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        return self._uniform.random()

    def draw(self, p: Tensor) -> int:
        """Draw a token of probabilities p [V]."""
        return int(torch.multinomial(p, 1, generator=self._generator(p.device)))

    def draw_distinct(self, p: Tensor, count: int) -> Tensor:
        """Draw tokens [n, count] from p [n, V] one after the other without replacement.

        A row with fewer than `count` possible tokens is filled with impossible ones.
        """
        # Gumbel's trick: dividing by exponentials and sorting is drawing without replacement, in order.
        noise = torch.empty_like(p).exponential_(generator=self._generator(p.device))
        return (p / noise).topk(count, dim=-1).indices

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.number)
        return self._generators[device]


def most_probable(logits: Tensor, count: int) -> Tensor:
    """Return the `count` tokens [n, count] with the largest logits [n, V], as `topk` does, but faster on a CPU.

    They are in the `count` blocks of tokens with the largest maxima, and only these are ranked.
    """
    top, missing = min(count, logits.shape[-1]), -logits.shape[-1] % _BLOCK
    padded = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    blocks = padded.unflatten(-1, (-1, _BLOCK))
    best = blocks.amax(-1).topk(min(top, blocks.shape[1])).indices
    places = blocks.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1).topk(top).indices
    return best.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK
