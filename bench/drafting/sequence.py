"""The data of decoding: a sequence, a draft for it, the draft's outcome, and the step as recorded."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeGuard

from bench.drafting.tree import ROOT, Tree, chain_of, tree_of

if TYPE_CHECKING:
    from torch import Tensor

    from bench.drafting.sampling import Sampler
    from bench.engine.cache import KVCache


@dataclass
class Sequence:
    """A text that is being decoded.

    The last token of `context` is the *newest*: emitted, but not yet processed by the target.
    """

    context: list[int]  # the prompt and the answer so far
    length: int  # positions that the target's cache keeps: all but the newest
    cache: KVCache  # the target's keys and values
    slot: int = 0  # its place in what a method keeps for several sequences at once
    sampler: Sampler | None = None  # its own stream of random numbers; None: greedy decoding
    notes: Any = None  # the method's own


@dataclass(frozen=True)
class States:
    """The target's states of some rows, [1, n, d] each."""

    final: Tensor  # after the last layer, post-norm
    taps: dict[int, Tensor]  # by number of layers, those that the method taps

    def rows(self, rows: Many[int]) -> States:
        """Return the states of some of the rows."""
        picked = list(rows)
        return States(self.final[:, picked], {layer: states[:, picked] for layer, states in self.taps.items()})


@dataclass(frozen=True)
class Draft:
    """A tree of proposed tokens; without `parents`, a chain.

    A method that already ran the target's first layers over the newest token and the drafts passes their states on.
    Verification resumes there.
    """

    tokens: Many[int]  # [n], n may be 0
    # [n]: the number of the draft that each one follows, -1: the newest token. Parents come before their children,
    # siblings are tried in order. None: each follows the one before.
    parents: Many[int] | None = None
    # When sampling: the distribution [V] that each draft was drawn from (siblings from the same one, without
    # replacement). None: the drafts are deterministic.
    drawn: Many[Tensor] | None = None
    states: Tensor | None = None  # [1, n + 1, d]: outputs of the layers below `resume_layer`, newest token first
    resume_layer: int = 0
    confidences: Many[float] | None = None  # the draft model's probability of each draft; for the records only
    calls: int | None = None  # calls of the draft model; None: one, if there are drafts
    # The number of tokens that are proposals. Those after them are *scouts*: verified with them and shown to `observe`,
    # but never accepted, and not counted as drafted. None: all are proposals.
    offered: int | None = None
    part: int = 0  # the member of a composition that drafted it

    @functools.cached_property
    def tree(self) -> Tree:
        """The tree of all drafts, scouts included."""
        return chain_of(len(self.tokens)) if self.parents is None else tree_of(self.parents)

    @functools.cached_property
    def proposed(self) -> Draft:
        """The draft without its scouts."""
        if self.offered is None:
            return self
        n = self.offered
        drawn = None if self.drawn is None else self.drawn[:n]
        confidences = None if self.confidences is None else self.confidences[:n]
        return Draft(self.tokens[:n], self.tree.parents[:n], drawn, confidences=confidences)

    def merged(self) -> Draft:
        """Return the draft with equal siblings merged. Verification tries only the first of them."""
        if self.parents is None or self.drawn is not None or self.states is not None:
            return self  # a chain has no siblings; drawn ones differ; states belong to the rows as they are
        if len(set(zip(self.parents, self.tokens, strict=True))) == len(self.tokens):
            return self
        numbers: dict[tuple[int, int], int] = {}  # parent and token -> new number
        renamed = {ROOT: ROOT}
        kept: list[int] = []
        for draft, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True)):
            key = renamed[parent], token
            if key not in numbers:
                numbers[key] = len(kept)
                kept.append(draft)
            renamed[draft] = numbers[key]
        return replace(
            self,
            tokens=[self.tokens[draft] for draft in kept],
            parents=[renamed[self.parents[draft]] for draft in kept],
            confidences=None if self.confidences is None else [self.confidences[draft] for draft in kept],
            offered=None if self.offered is None else sum(draft < self.offered for draft in kept),
        )


NO_DRAFT = Draft([])


@dataclass(frozen=True)
class Outcome:
    """The outcome of a draft. Row 0 is the token that was the newest, row i + 1 is draft i."""

    draft: Draft  # as verified: equal siblings are merged
    accepted: list[int]  # drafts that were kept, by number, from the root down
    bonus: int  # the target's own token after them
    verified: States  # of every row
    logits: Tensor  # [n + 1, V] of every row

    @functools.cached_property
    def kept(self) -> States:
        """The states of the rows that are kept: the token that was the newest, and the accepted drafts."""
        return self.verified.rows([0, *(draft + 1 for draft in self.accepted)])

    def is_of(self, drafted: Many[int] | None) -> TypeGuard[Many[int]]:
        """Return whether the draft is the one with the tokens `drafted`, of a method that may be one of several.

        Where nobody proposed anything, the step is everybody's.
        """
        tokens = self.draft.tokens
        return drafted is not None and (tokens is drafted or not (tokens or drafted))

    @property
    def emitted(self) -> list[int]:
        """The tokens that the step adds to the text."""
        return [*(self.draft.tokens[draft] for draft in self.accepted), self.bonus]


@dataclass(slots=True)
class Step:
    """One verification pass of the target, as recorded."""

    emitted: list[int]  # token ids that the step adds to the answer, the target's own (the bonus) last; >= 1
    drafted: int = 0  # draft tokens proposed
    accepted: int = 0  # draft tokens kept
    depth: int = 0  # drafts on the longest path of the step's tree
    calls: int = 0  # calls of the draft model
    rejected: list[int] = field(default_factory=list)  # drafts that lost to the bonus; none where EOS cut it off
    accepted_confidence: list[float] = field(default_factory=list)  # of each accepted draft; empty: unknown
    rejected_confidence: list[float] = field(default_factory=list)  # of each in `rejected`; empty: unknown
    part: int = 0  # the member of a composition that drafted
    scouts: int = 0  # tokens verified besides the drafts
    draft_s: float = 0.0  # drafting
    verify_s: float = 0.0  # the target's pass and the choice of tokens; the rest of the step is bookkeeping
    # The start of drafting, the start and the end of verification. They become the two times above once the device is
    # idle, so that no step waits for its own clock.
    marks: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def cut_at(self, eos: frozenset[int]) -> Step:
        """Return the step up to its first end token; `emitted` and `accepted` count only what is kept."""
        for i, token in enumerate(self.emitted[:-1]):
            if token in eos:
                # The bonus, always last, is cut off; all that is kept was drafted.
                accepted = min(self.accepted, i + 1)
                return replace(
                    self,
                    emitted=self.emitted[: i + 1],
                    accepted=accepted,
                    accepted_confidence=self.accepted_confidence[:accepted],
                    rejected=[],
                    rejected_confidence=[],
                )
        return self
