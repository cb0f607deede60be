"""Drafts by a draft model on top of the target's first layers, a level in one call of the kernels. CPU only."""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_int64, c_void_p, pointer
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.engine.cache import KVCache
from bench.engine.kernels import native
from bench.engine.places import Places
from bench.engine.products import Linear


class _Draft(Structure):
    """As `Draft` in draft.h."""

    _fields_ = (
        ("shallow", POINTER(native.Pass)),
        ("deep", POINTER(native.Pass)),
        ("join", POINTER(native.Matrix)),
        *((name, c_void_p) for name in ("unread", "before", "norm")),
        ("head", POINTER(native.Matrix)),
        ("best", c_int64),
        *((name, c_void_p) for name in ("outputs", "logits", "tokens", "chances", "scratch")),
    )


Tables = tuple[Tensor, Tensor]  # cosines and sines [positions, D], as for `apply_rope`


@dataclass(frozen=True)
class Level:
    """What a draft model reads to draft after a level of r tokens. `own_places` and `own_cache` are the network's."""

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

    def __call__(self, level: Level, best: int) -> Drafted:
        """Return the `best` most probable tokens after each of a level's."""
        library, dtype = native.kernels(), level.x.dtype
        assert library is not None
        rows = native.Rows.of(level.places, *self.tables)
        shallow = self.first.asked(level.x, rows, level.cache, (0, 0 if level.is_exit else self.count))
        own = native.Rows.of(level.own_places, *self.own_tables)
        deep = self.layers.asked(None, own, level.own_cache, (0, len(self.layers.pointers)))
        new, whole = shallow.out.shape[1], deep.out.shape[1]
        unread, before = level.unread.float().contiguous(), level.before
        assert unread.shape[1] == whole - new, f"{unread.shape[1]} unread rows of {whole}, {new} of them new"
        assert (self.join is None) == (before is None), "the states before are read by `join`"
        if before is not None:
            before = before.float().contiguous()
            assert before.shape[1] == whole, f"{before.shape[1]} states before {whole} rows"
        outputs, logits = torch.empty_like(shallow.out), torch.empty(new, self.head.out_features)
        tokens, chances = torch.empty(new, best, dtype=torch.long), torch.empty(new, best)
        asked = _Draft(
            shallow=pointer(shallow.call), deep=pointer(deep.call), join=_matrix(self.join), unread=unread.data_ptr(),
            before=None if before is None else before.data_ptr(), norm=self.norm.data_ptr(), head=_matrix(self.head),
            best=best, outputs=outputs.data_ptr(), logits=logits.data_ptr(), tokens=tokens.data_ptr(),
            chances=chances.data_ptr(),
        )  # fmt: skip
        needed = library.draft_floats(byref(asked))
        if self.scratch.numel() < needed:
            self.scratch = torch.empty(2 * needed)
        asked.scratch = self.scratch.data_ptr()
        library.run_draft(byref(asked))
        return Drafted(shallow.out.to(dtype), outputs.to(dtype), logits, tokens, chances)


def _matrix(linear: Linear | None) -> object:
    """A pointer to it for the kernels; null: none."""
    if linear is None:
        return None
    assert linear.product is not None
    return pointer(linear.product.matrix)
