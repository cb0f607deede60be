"""Drafting level by level: a draft model on the target's states proposes what follows each node of the level before.

What drafts are kept, and when to stop, is a rule's (see `bench.drafting.stopping`): of a chain one draft a level, of a
beam the best paths. The draft model reads a row for each token: an *input*, such as the token's embedding or its state
after the target's first layers, and with `feedback` the *feature* one position before. A verification computes the
features anyway. Ahead of it the draft model has its own outputs in their place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.drafting import trained
from bench.drafting.level_knobs import LevelConfig
from bench.drafting.method import GainMethod
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.drafting.stopping import Candidate, GainRule, ThresholdRule
from bench.drafting.together import in_step
from bench.drafting.tree import ROOT, chain_of, tree_of
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.joined import Part, joined, run_joined
from bench.engine.kernels.draft import Drafted, DraftModel, Level, split
from bench.engine.places import Places
from bench.engine.products import Linear


class Rule(Protocol):
    """Decides how far to draft; it belongs to one question."""

    def begin(self) -> None:
        """Begin a step."""

    def goes_on(self) -> bool:
        """Return whether to make another level of drafts."""

    def keep(self, candidates: Many[Candidate], most: int) -> list[Candidate]:
        """Return those of a level that are drafted, best first, normally at most `most`."""

    def end(self, emitted: Many[int]) -> None:
        """End a step, with the tokens that it emitted."""


# (inputs [1, n, d], their places, the network's cache, features one position before each) -> outputs [1, n, d]
Network = Callable[[Tensor, Places, KVCache, Tensor | None], Tensor]


@dataclass(frozen=True)
class ByOperations:
    """The draft model by torch's operations; called as `DraftModel` is."""

    target: Decoder
    count: int  # of the target's first layers, whose states are the inputs
    network: Network
    head: Linear
    states: Callable[[Tensor], Tensor] | None = None  # outputs -> what the head reads; None: outputs

    def __call__(self, levels: Many[Level], best: int) -> list[Drafted]:
        """See `DraftModel`."""
        exits = joined([level.x for level in levels])
        if self.count and not levels[0].is_exit:
            exits = run_joined(self.target, exits, [Part(one.places, one.cache) for one in levels], 0, self.count)
        own = exits.split([level.x.shape[1] for level in levels], dim=1)
        outputs = joined([self._run(level, read) for level, read in zip(levels, own, strict=True)])
        logits = self.head(outputs[0] if self.states is None else self.states(outputs[0])).float()
        chances, tokens = logits.softmax(-1).topk(best, dim=-1)
        return split(levels, Drafted(exits, outputs, logits, tokens, chances))

    def _run(self, level: Level, exits: Tensor) -> Tensor:
        """Run the network over a level and what it has not read before; returns the level's outputs [1, r, d]."""
        read = torch.cat((level.unread, exits), dim=1)
        return self.network(read, level.own_places, level.own_cache, level.before)[:, level.unread.shape[1] :]


@dataclass
class Progress:
    """The state of a sequence."""

    rule: Rule
    cache: KVCache  # the draft model's
    # Rows that it has not processed yet: their inputs and, with feedback, the features one position before.
    unread: Tensor  # [1, m, d]
    unread_before: Tensor  # [1, m, d]
    last: Tensor  # [1, 0 or 1, d], with feedback: the feature one position before the newest token
    read: int = 0  # levels of the current step that the draft model has processed; the newest token is the first
    drafted: Many[int] | None = None  # in the current step
    # With a layer to resume from, of the current step: exit states of the levels that were read; the last level.
    exits: list[Tensor] = field(default_factory=list)
    level: tuple[list[int], list[int], list[int]] = ([], [], [])  # its tokens and nodes, and the parents of all drafts


class LevelMethod(GainMethod):
    """A method that drafts level by level. Its class has a draft model, and tells what that reads."""

    config: LevelConfig
    feedback: bool = True  # whether it reads features
    skipped: int = 0  # tokens at the start of a text for which it reads no row
    draft_model: DraftModel | ByOperations
    draft_ids: Tensor | None  # that may be drafted, rising; None: all
    draft_head: Linear  # for these
    new_rule: Callable[[], Rule]

    def __init__(self, target: Decoder, config: LevelConfig):
        super().__init__(target, config)
        self.caches: dict[int, KVCache] = {}  # the draft model's, by a sequence's slot

    @abstractmethod
    def new_cache(self) -> KVCache:
        """Return a cache for the draft model."""

    @abstractmethod
    def prefill(self, inputs: Tensor, before: Tensor | None, cache: KVCache) -> None:
        """Process the rows [1, n, d] of a prompt, from the cache's first row on."""

    @abstractmethod
    def inputs(self, tokens: Many[int], states: States) -> Tensor:
        """Return the inputs [1, n, d] of tokens that the target has processed."""

    def features(self, states: States) -> Tensor:
        """Return the features [1, n, d] of the target's states."""
        return states.final

    def choose_head(
        self, own: nn.Linear | None, made: int, stored: trained.Stored, folder: Path, quantize: str
    ) -> None:
        """Set the LM head for the tokens of the knob `draft_vocab`: `own`, made for `made` tokens, or the target's."""

        def ids(size: int) -> Tensor | None:
            return trained.draft_ids(size, stored.ranking, self.target, folder)

        self.draft_ids = ids(self.config.draft_vocab)
        if own is None:
            self.draft_head = trained.draft_head(self.target, self.draft_ids, quantize)
        else:
            self.draft_head = trained.own_head(own, ids(made), self.draft_ids, self.target, folder, quantize)

    def choose_rule(self, stored: trained.Stored) -> None:
        """Set the rule as the knob `stop` says. Without a calibration, what a draft is worth is learned as it goes."""
        self.new_rule = partial(ThresholdRule, self.config.threshold)
        if self.config.stop == "gain":
            self.new_rule = partial(GainRule, stored.calibration, self.costs)

    def _cache(self, slot: int) -> KVCache:
        """Return the draft model's cache for the sequence in a slot."""
        if slot not in self.caches:
            self.caches[slot] = self.new_cache()
        return self.caches[slot]

    def draft_calls(self) -> Many[Callable[[], object]]:
        """Run the draft model and choose candidates, over one token. Exit layers that verification uses are not its."""
        state, places = self.target.embed([0]), Places.after(0, 1)
        caches = [self.target.new_cache(max_len=1) for _ in range(self.target.sequences)]
        before = state if self.feedback else None
        none, shared = state[:, :0], bool(self.resume_layer)

        def call() -> list[list[Candidate]]:
            levels = [
                Level(state, places, cache, none, before, places, self._cache(slot), is_exit=shared)
                for slot, cache in enumerate(caches)
            ]
            return [self._candidates(drafted, [ROOT], None) for drafted in self.draft_model(levels, self._best)]

        return [call]

    @property
    def _best(self) -> int:
        """Tokens of each row that may be drafted."""
        return min(self.config.beam, self.draft_head.out_features)

    @property
    def widest(self) -> int:
        """A chain of gamma drafts, or all nodes."""
        return 1 + (self.config.gamma if self.config.beam == 1 else self.config.nodes)

    def probing(self, windows: int) -> tuple[LevelConfig, int]:
        """Return a chain that never stops early."""
        chain = {"gamma": windows, "beam": 1, "nodes": windows, "drafts": "", **self.config.as_chain}
        return replace(self.config, **chain, stop="threshold", threshold=0.0, costs=""), windows

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Prefill the draft model."""
        inputs, cache = self.inputs(sequence.context[:-1], prompt), self._cache(sequence.slot)
        none = inputs[:, :0]
        before, last = None, none
        if self.feedback:
            features = self.features(prompt)
            before, last = one_before(features)[:, self.skipped :], features[:, -1:]
        if inputs.shape[1] > self.skipped:
            self.prefill(inputs[:, self.skipped :], before, cache)
        sequence.notes = Progress(self.new_rule(), cache, none, none, last)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Draft for all sequences, each level in one call of the draft model."""
        drafting = [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        drafts = in_step(drafting, lambda levels: self.draft_model(levels, self._best))
        return self._with_exits(sequences, drafts) if self.resume_layer else drafts

    def _draft(self, sequence: Sequence, budget: int) -> Generator[Level, Drafted, Draft]:
        """Draft level by level until the rule stops it; asks for the draft model's answer to each."""
        progress: Progress = sequence.notes
        rule = progress.rule
        tokens: list[int] = []
        parents: list[int] = []
        drawn: list[Tensor] = []
        confidences: list[float] = []
        level, newest = [ROOT], [sequence.context[-1]]
        exits: list[Tensor] = []  # inputs of the levels that were read
        outputs: Tensor | None = None
        rule.begin()
        while len(exits) < min(self.config.gamma, budget) and (most := self.most(len(tokens))) > 0 and rule.goes_on():
            drafted = yield self._read(sequence, newest, level, parents, outputs)
            exits.append(drafted.exits)
            outputs = drafted.outputs
            candidates = self._candidates(drafted, level, sequence.sampler)
            kept = rule.keep(candidates, most)
            if not kept:
                break
            first = len(tokens)
            newest = [candidate.token for candidate in kept]
            tokens += newest
            parents += [candidate.parent for candidate in kept]
            drawn += [candidate.drawn for candidate in kept if candidate.drawn is not None]
            confidences += [candidate.confidence for candidate in kept]
            level = list(range(first, len(tokens)))
        # The rule's confidences are not those of drawn drafts.
        draft = Draft(tokens, parents, drawn or None, confidences=None if drawn else confidences, calls=len(exits))
        draft = self.chosen(rule, draft)
        progress.read, progress.drafted = len(exits), draft.tokens
        if self.resume_layer:
            progress.exits, progress.level = exits, (newest, level, parents)
        return draft

    def _with_exits(self, sequences: Many[Sequence], drafts: Many[Draft]) -> list[Draft]:
        """Return the drafts with the exit states of all rows, of which those of the last level may be missing."""
        every: list[Progress] = [sequence.notes for sequence in sequences]
        missing = [
            i
            for i, (progress, draft) in enumerate(zip(every, drafts, strict=True))
            if sum(states.shape[1] for states in progress.exits) <= len(draft.tokens)
        ]
        if missing:
            parts, tokens = [], []
            for i in missing:
                newest, level, parents = every[i].level
                parts.append(Part(self._places(sequences[i].length, level, parents), sequences[i].cache))
                tokens += newest
            exits = run_joined(self.target, self.target.embed(tokens), parts, 0, self.resume_layer)
            for i, own in zip(missing, exits.split([part.width for part in parts], dim=1), strict=True):
                every[i].exits.append(own)
        layer = self.resume_layer
        return [
            replace(draft, states=joined(progress.exits), resume_layer=layer)
            for progress, draft in zip(every, drafts, strict=True)
        ]

    def most(self, drafted: int) -> int:
        """Return how many drafts a level may have after so many."""
        return min(self.config.beam, self.config.nodes - drafted)

    def chosen(self, rule: Rule, draft: Draft) -> Draft:
        """Return what is proposed after all levels were drafted; `draft`: what the rule kept."""
        return draft

    def _places(self, start: int, level: list[int], parents: list[int]) -> Places:
        """Return where a level's tokens are if the newest token is at `start`."""
        tree = chain_of(0) if level == [ROOT] else tree_of(parents)
        return tree.places(start, self.target.device, level[0] + 1, len(level))

    def _read(
        self, sequence: Sequence, tokens: Many[int], level: list[int], parents: list[int], outputs: Tensor | None
    ) -> Level:
        """Return what the draft model reads of a level's tokens; `outputs`: its states of the level before."""
        progress: Progress = sequence.notes
        places, row = self._places(sequence.length, level, parents), sequence.length - self.skipped
        if outputs is None:  # the newest token, after what the draft model has not processed yet
            unread = progress.unread
            before = torch.cat((progress.unread_before, progress.last), dim=1)
            own_places = Places.after(row - unread.shape[1], unread.shape[1] + 1)
        else:
            # The parents of a level are nodes of the level before, which ends where this one begins.
            unread = outputs[:, :0]
            above = [parents[node] - (level[0] - outputs.shape[1]) for node in level]
            before = outputs if above == list(range(outputs.shape[1])) else outputs[:, above]
            own_places = self._places(row, level, parents) if self.skipped else places
        x, states = self.target.embed(tokens), before if self.feedback else None
        return Level(x, places, sequence.cache, unread, states, own_places, progress.cache)

    def _candidates(self, drafted: Drafted, level: list[int], sampler: Sampler | None) -> list[Candidate]:
        """Return the tokens that may follow a level's nodes."""
        if sampler is not None and self.config.drafts == "sampled":
            return [self._drawn(drafted.logits, drafted.logits.softmax(-1), level[0], sampler)]
        tokens = drafted.tokens if self.draft_ids is None else self.draft_ids[drafted.tokens]
        # One transfer for both, the only synchronisation of a draft step (inherent to the early exit).
        confidences, ids = torch.stack((drafted.chances.double(), tokens.double())).tolist()
        return [
            Candidate(parent, int(token), confidence)
            for parent, *row in zip(level, confidences, ids, strict=True)
            for confidence, token in zip(*row, strict=True)
        ]

    def _drawn(self, logits: Tensor, probabilities: Tensor, parent: int, sampler: Sampler) -> Candidate:
        """Draw a draft from the distribution after a chain's newest node.

        Its confidence is the largest probability, not its own: stopping by the drawn token would not be lossless.
        """
        q = sampler.probabilities(logits)[0]
        if self.draft_ids is not None:
            q = q.new_zeros(self.target.config.vocab).index_copy(0, self.draft_ids, q)
        return Candidate(parent, sampler.draw(q), float(probabilities.max()), q)

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Note what the draft model must process before it drafts again."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            self._observe(sequence, outcome)

    def _observe(self, sequence: Sequence, outcome: Outcome) -> None:
        """Drop rejected drafts, and note which rows the draft model has not processed.

        It has processed all drafts of a chain but the last one, so that only after a full match one row is left (the
        one-token lag). With feedback it used its own outputs, as the target's features were not known yet, and rows of
        a tree are not contiguous: these are processed again. So are drafts of another member of a composition.
        """
        progress: Progress = sequence.notes
        read, is_ours = progress.read, outcome.is_of(progress.drafted)
        progress.read = 0
        if is_ours:
            progress.rule.end(outcome.emitted)
        known = read if is_ours and not self.feedback and self.config.beam == 1 else min(1, read)
        kept = self.inputs(sequence.context[-1 - len(outcome.emitted) : -1], outcome.kept)
        if read:
            progress.unread = progress.unread_before = kept[:, :0]
        progress.unread = torch.cat((progress.unread, kept[:, known:]), dim=1)
        if self.feedback:
            before = torch.cat((progress.last, self.features(outcome.kept)), dim=1)
            progress.unread_before = torch.cat((progress.unread_before, before[:, known:-1]), dim=1)
            progress.last = before[:, -1:]


def one_before(states: Tensor) -> Tensor:
    """[B, n, d], each position's row taken from the position before it; the first is zero."""
    return F.pad(states, (0, 0, 1, 0))[:, :-1]
