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

    def __call__(
        self,
        x: Tensor,
        places: Places,
        cache: KVCache,
        *,
        unread: Tensor,
        before: Tensor | None,
        own_places: Places,
        own_cache: KVCache,
        best: int,
        is_exit: bool = False,
    ) -> Drafted:
        """Draft after a level's tokens, embedded, x [1, r, d], at their places in the target's cache.

        `unread` [1, e, d]: exit states of rows that the network has not read yet, before those of x. `before`
        [1, e + r, d], for `join`: of all of them the states one position before. `own_places`, `own_cache`: the
        network's, of all of them. `best`: k. `is_exit`: x is after the first layers.
        """
        library, dtype = native.kernels(), x.dtype
        assert library is not None
        shallow = self.first.asked(x, native.Rows.of(places, *self.tables), cache, (0, 0 if is_exit else self.count))
        own = native.Rows.of(own_places, *self.own_tables)
        deep = self.layers.asked(None, own, own_cache, (0, len(self.layers.pointers)))
        level, whole = shallow.out.shape[1], deep.out.shape[1]
        unread = unread.float().contiguous()
        assert unread.shape[1] == whole - level, f"{unread.shape[1]} unread rows of {whole}, {level} of them new"
        assert (self.join is None) == (before is None), "the states before are read by `join`"
        if before is not None:
            before = before.float().contiguous()
            assert before.shape[1] == whole, f"{before.shape[1]} states before {whole} rows"
        outputs, logits = torch.empty_like(shallow.out), torch.empty(level, self.head.out_features)
        tokens, chances = torch.empty(level, best, dtype=torch.long), torch.empty(level, best)
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
