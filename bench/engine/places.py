"""Where the rows of a forward pass are: one value for all ways of running a pass, and for a draft model's own cache.

A pass runs w rows (tokens) of each of B sequences. The rows of a sequence are contiguous in the cache, right after its
committed tokens. Their positions and masks are either causal, or those of tree nodes: the position follows from the
depth, and each node attends to its ancestors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """The w rows of one sequence."""

    base: int  # committed tokens of the sequence: every row attends to them
    slot: int = 0  # of the cache
    before: int = 0  # rows of the same tree that earlier passes have written after `base`
    depths: Tensor | None = None  # [w]: a row's position is base + depth; None: causal
    seen: Tensor | None = None  # [w, before + w] bool: which rows after `base` each row attends to; None: causal

    @property
    def first(self) -> int:
        """The cache row of the first of them."""
        return self.base + self.before


@dataclass(frozen=True)
class Places:
    """Where the rows of a pass are."""

    spans: tuple[Span, ...]  # [B]
    width: int  # w

    @classmethod
    def after(cls, start: int, width: int, batch: int = 1) -> Places:
        """Causal rows from position `start` on, for sequences in lock-step."""
        return cls(tuple(Span(start, slot) for slot in range(batch)), width)

    @property
    def batch(self) -> int:
        """B."""
        return len(self.spans)

    def in_parts(self, most: int) -> Iterator[Places]:
        """The same rows in passes of at most `most` rows a sequence, one after the other; a tree stays whole."""
        if self.width <= most or any(span.depths is not None for span in self.spans):
            yield self
            return
        for done in range(0, self.width, most):
            spans = tuple(replace(span, base=span.first + done, before=0) for span in self.spans)
            yield Places(spans, min(most, self.width - done))

    @functools.cached_property
    def together(self) -> Span | None:
        """The one span that describes all sequences, if they are in lock-step in the first slots of the cache."""
        one = self.spans[0]
        alike = all(s.base == one.base and s.depths is None and s.slot == i for i, s in enumerate(self.spans))
        return one if alike or (len(self.spans) == 1 and one.slot == 0) else None

    @property
    def end(self) -> int:
        """The number of cache rows up to the last one written."""
        return max(span.first for span in self.spans) + self.width

    def positions(self, device: torch.device) -> Tensor:
        """[B, w], in the text."""
        steps = torch.arange(self.width, device=device)
        return torch.stack([s.base + (s.before + steps if s.depths is None else s.depths) for s in self.spans])

    def seen(self, device: torch.device) -> Tensor:
        """[B, w, end] bool: which rows of the cache each row attends to."""
        steps = torch.arange(self.width, device=device)[:, None]
        rows = torch.arange(self.end, device=device)
        masks = []
        for span in self.spans:
            if span.seen is None:
                masks.append(rows <= span.first + steps)
            else:
                beyond = self.end - span.first - self.width
                masks.append(F.pad(F.pad(span.seen, (span.base, 0), value=True), (0, beyond), value=False))
        return torch.stack(masks)
