"""Drafts by a draft model on top of the target's first layers, a level in one call of the kernels. CPU only.

The levels of several sequences run together, as the rows of a pass do.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_int64, c_void_p, pointer
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.engine.cache import KVCache
from bench.engine.joined import joined
from bench.engine.kernels import native
from bench.engine.places import Places
from bench.engine.products import Linear


class _Draft(Structure):
    """As `Draft` in draft.h."""

    _fields_ = (
        ("shallow", POINTER(native.Pass)),
        ("deep", POINTER(native.Pass)),
        ("join", POINTER(native.Matrix)),
        *((name, c_void_p) for name in ("source", "place", "unread", "before", "norm")),
        ("head", POINTER(native.Matrix)),
        ("best", c_int64),
        *((name, c_void_p) for name in ("outputs", "logits", "tokens", "chances", "scratch")),
    )


Tables = tuple[Tensor, Tensor]  # cosines and sines [positions, D], as for `apply_rope`


@dataclass(frozen=True)
class Level:
    """What a draft model reads to draft after a sequence's level of r tokens.

    `own_places` and `own_cache` are the network's.
    """

    x: Tensor  # [1, r, d]: the tokens, embedded
    places: Places  # in the target's cache
    cache: KVCache
    unread: Tensor  # [1, e, d]: exit states of rows before those of x that the network has not read yet
    before: Tensor | None  # [1, e + r, d], for `join`: the states one position before, of all of these rows
    own_places: Places  # of all of them
    own_cache: KVCache
    is_exit: bool = False  # x is after the target's first layers


@dataclass(frozen=True)
class Drafted:
    """What is known after a level's r rows."""

    exits: Tensor  # [1, r, d]: the target's states after its first layers
    outputs: Tensor  # [1, r, d]: the draft model's, under its norm
    logits: Tensor  # [r, V'], float32
    tokens: Tensor  # [r, k]: rows of the head, the most probable first
    chances: Tensor  # [r, k]: their probabilities


class DraftModel:
    """The target's first layers, a network on them, and an LM head.

    Exit states x -> join(x, states one position before) -> layers -> norm -> head.
    """

    def __init__(
        self,
        first: native.Layers,
        count: int,
        tables: Tables,
        *,
        join: Linear | None,
        layers: native.Layers,
        own_tables: Tables,
        norm: Tensor,
        head: Linear,
    ):
        """`first`: of the target, of which `count` are run. `join`: [d, 2 d]; None: x is taken as it is.

        `tables`, `own_tables`: of the target's positions and of the network's.
        """
        self.first, self.count, self.tables = first, count, tables
        self.join, self.layers, self.own_tables = join, layers, own_tables
        self.norm = norm.float().contiguous()
        self.head = head
        self.scratch = torch.empty(0)

    def __call__(self, levels: Sequence[Level], best: int) -> list[Drafted]:
        """Return for each level the `best` most probable tokens after each of its tokens."""
        widths = (max(level.places.width, level.own_places.width) for level in levels)
        if len(levels) > 1 and max(widths) > native.NARROW:  # wide ones run alone, as in `bench.engine.joined`
            return [self([level], best)[0] for level in levels]
        library, dtype = native.kernels(), levels[0].x.dtype
        assert library is not None
        (count,) = {0 if level.is_exit else self.count for level in levels}
        rows = native.Rows.of([level.places for level in levels], *self.tables)
        x = joined([level.x for level in levels])
        shallow = self.first.asked(x, rows, [level.cache for level in levels], (0, count))
        own = native.Rows.of([level.own_places for level in levels], *self.own_tables)
        whole = (0, len(self.layers.pointers))
        deep = self.layers.asked(None, own, [level.own_cache for level in levels], whole)
        unread = joined([level.unread for level in levels]).float().contiguous()
        source, place = _rows(levels)
        new, every = len(place), len(source)
        assert every == deep.out.shape[1], f"{every} rows, but places for {deep.out.shape[1]}"
        before = None
        if self.join is None:
            assert all(level.before is None for level in levels), "the states before are read by `join`"
        else:
            before = joined([level.before for level in levels if level.before is not None]).float().contiguous()
            assert before.shape[1] == every, f"{before.shape[1]} states before {every} rows"
        outputs, logits = torch.empty_like(shallow.out), torch.empty(new, self.head.out_features)
        tokens, chances = torch.empty(new, best, dtype=torch.long), torch.empty(new, best)
        asked = _Draft(
            shallow=pointer(shallow.call), deep=pointer(deep.call), join=_matrix(self.join),
            source=source.data_ptr(), place=place.data_ptr(), unread=unread.data_ptr(),
            before=None if before is None else before.data_ptr(), norm=self.norm.data_ptr(), head=_matrix(self.head),
            best=best, outputs=outputs.data_ptr(), logits=logits.data_ptr(), tokens=tokens.data_ptr(),
            chances=chances.data_ptr(),
        )  # fmt: skip
        needed = library.draft_floats(byref(asked))
        if self.scratch.numel() < needed:
            self.scratch = torch.empty(2 * needed)
        asked.scratch = self.scratch.data_ptr()
        library.run_draft(byref(asked))
        return split(levels, Drafted(shallow.out.to(dtype), outputs.to(dtype), logits, tokens, chances))


def split(levels: Sequence[Level], drafted: Drafted) -> list[Drafted]:
    """What is known after all rows, by level."""
    if len(levels) == 1:
        return [drafted]
    widths = [level.x.shape[1] for level in levels]
    by_state = (part.split(widths, dim=1) for part in (drafted.exits, drafted.outputs))
    by_row = (part.split(widths) for part in (drafted.logits, drafted.tokens, drafted.chances))
    return [Drafted(*parts) for parts in zip(*by_state, *by_row, strict=True)]


def _rows(levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
    """`source` and `place` of `Draft` in draft.h: a sequence's unread rows come before its level."""
    source: list[int] = []
    place: list[int] = []
    unread = 0
    for level in levels:
        source += [~i for i in range(unread, unread + level.unread.shape[1])]
        unread += level.unread.shape[1]
        for _ in range(level.x.shape[1]):
            place.append(len(source))
            source.append(len(place) - 1)
    return torch.tensor(source, dtype=torch.long), torch.tensor(place, dtype=torch.long)


def _matrix(linear: Linear | None) -> object:
    """A pointer to it for the kernels; null: none."""
    if linear is None:
        return None
    assert linear.product is not None
    return pointer(linear.product.matrix)
