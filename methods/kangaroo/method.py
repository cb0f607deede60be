"""Kangaroo: self-speculation with double early exit (Liu et al., arXiv 2404.18911).

The draft model is the target's first `exit_layer` layers, a small adapter and the target's LM head (section 3.1). The
remaining layers verify, starting from the exit states that drafting already computed. The exit layer is the first early
exit. The second: drafting stops once a draft's probability is below `threshold` (section 3.2). Needs a trained adapter.

Beyond the paper: a cut draft vocabulary, feedback of final states (see `methods.kangaroo.adapter`), stopping by
expected gain (see `bench.drafting.stopping`), and drafts from a copy of the exit layers in eight bits, which the whole
target verifies. `kangaroo:paper` has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.drafting import trained
from bench.drafting.method import SpeculativeMethod
from bench.drafting.published import Published
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.drafting.stopping import Candidate, GainRule, ThresholdRule
from bench.drafting.tree import ROOT, chain_of, tree_of
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.kernels.draft import Drafted
from bench.engine.places import Places
from bench.errors import UserError
from methods.kangaroo import knobs
from methods.kangaroo.adapter import (
    FILES,
    AdapterConfig,
    load_adapter,
    one_before,
    own_head,
    published_call,
    read_dimensions,
)
from methods.kangaroo.drafting import can_copy, draft_model
from methods.kangaroo.knobs import KangarooConfig


@dataclass
class Progress:
    """Kangaroo's state of a sequence."""

    rule: ThresholdRule | GainRule
    cache: KVCache  # the adapter's
    # Rows that the adapter has not processed yet: exit states and, with feedback, the states one position before.
    unread: Tensor  # [1, m, d]
    unread_before: Tensor  # [1, m, d]
    last: Tensor  # [1, 0 or 1, d], with feedback: the state one position before the newest token
    read: int = 0  # levels of the current step that the adapter has processed; the newest token is the first
    drafted: list[int] | None = None  # in the current step


class Kangaroo(SpeculativeMethod):
    """Drafts with the target's own first layers and an adapter."""

    family = "self"
    Config = KangarooConfig
    presets = knobs.presets
    published = Published("Kangaroo's adapter", drafts=6, exit_layer=2, call_per_draft=True, call=published_call)

    @classmethod
    def check_weights(cls, config: KangarooConfig, model: trained.Dimensioned) -> None:
        """Check the adapter's config.json."""
        folder = trained.find_folder("kangaroo", config.weights, model.name, FILES)
        made, *_ = read_dimensions(folder, model)
        _choose_exit_layer(config.exit_layer, made.exit_layer, model, folder)

    def __init__(self, target: Decoder, config: KangarooConfig):
        super().__init__(target, config)
        folder = trained.find_folder("kangaroo", config.weights, target.name, FILES)
        self.adapter, stored = load_adapter(folder, target)
        self.digest = trained.digest(folder, FILES)
        made = self.adapter.config
        self.feedback = made.feedback
        config = _completed(config, made, stored.knobs)
        self.exit_layer = _choose_exit_layer(config.exit_layer, made.exit_layer, target, folder)
        self.taps = (self.exit_layer,)
        self.caches: dict[int, KVCache] = {}  # the adapter's, by a sequence's slot
        self.adapter.prepare(target.padded(target.max_len), target.device)
        quantize = trained.draft_quantize(config.draft_weights, target)
        self.adapter.pack(target.layout, quantize)
        self.adapter.graphs = target.graphs
        self.draft_ids = trained.draft_ids(config.draft_vocab, stored.ranking, target, folder)
        if made.own_head:
            self.draft_head = own_head(self.adapter, self.draft_ids, stored.ranking, target, folder, quantize)
        else:
            self.draft_head = trained.draft_head(target, self.draft_ids, quantize)
        # Exit states of a copy in fewer bits are good enough for drafts, but not to resume verification from.
        copied = can_copy(target, quantize) and not made.ffn
        self.resume_layer = 0 if copied else self.exit_layer
        self.draft_model = draft_model(
            target, self.exit_layer, self.adapter, self.draft_head, quantize if copied else "none"
        )
        self.new_rule: Callable[[], ThresholdRule | GainRule] = partial(ThresholdRule, config.threshold)
        self.config = replace(config, exit_layer=self.exit_layer)
        if config.stop == "gain":
            if stored.calibration is None:
                raise UserError(
                    f"the adapter in {folder} has no calibration, which stop=gain needs: take stop=threshold"
                )
            self.new_rule = partial(GainRule, stored.calibration, self.costs)

    def _cache(self, slot: int) -> KVCache:
        """Return the adapter's cache for the sequence in a slot."""
        if slot not in self.caches:
            c, target = self.adapter.config, self.target
            heads, head_dim = c.num_attention_heads, c.hidden_size // c.num_attention_heads
            length = len(self.adapter.cos)
            made = KVCache(1, heads, head_dim, length, dtype=target.dtype, device=target.device)
            self.caches[slot] = made
        return self.caches[slot]

    def draft_calls(self) -> Many[Callable[[], object]]:
        """Run the draft model and choose candidates, over one token. Exit layers that verification uses are not its."""
        state, places, cache = self.target.embed([0]), Places.after(0, 1), self.target.new_cache(max_len=1)
        before = state if self.feedback else None
        none, shared = state[:, :0], bool(self.resume_layer)

        def call() -> list[Candidate]:
            drafted = self.draft_model(
                state, places, cache, unread=none, before=before, own_places=places, own_cache=self._cache(0),
                best=self._best, is_exit=shared,
            )  # fmt: skip
            return self._candidates(drafted, [ROOT], None)

        return [call]

    @property
    def _best(self) -> int:
        """Tokens of each row that may be drafted."""
        return min(self.config.beam, self.draft_head.out_features)

    @property
    def widest(self) -> int:
        """A chain of gamma drafts, or all nodes."""
        return 1 + (self.config.gamma if self.config.beam == 1 else self.config.nodes)

    def probing(self, windows: int) -> tuple[KangarooConfig, int]:
        """Return a chain that never stops early."""
        chain = {"gamma": windows, "beam": 1, "nodes": windows, "drafts": ""}
        return replace(self.config, **chain, stop="threshold", threshold=0.0, costs=""), windows

    @property
    def measured(self) -> dict[str, Any]:
        """The costs that stop=gain uses."""
        return {"costs": str(self.costs)} if self.config.stop == "gain" and not self.config.costs else {}

    @property
    def notes(self) -> dict[str, Any]:
        """The digest of the weights."""
        return {"weights_sha256": self.digest}

    @property
    def extra_parameters(self) -> int:
        """The adapter's weights, including its own LM head, as cut, if it has one."""
        return sum(p.numel() for p in self.adapter.parameters())

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Prefill the adapter."""
        exit_states, cache = prompt.taps[self.exit_layer], self._cache(sequence.slot)
        none = exit_states[:, :0]
        before, last = None, none
        if self.feedback:
            before, last = one_before(prompt.final), prompt.final[:, -1:]
        self.adapter(exit_states, 0, cache, before)
        sequence.notes = Progress(self.new_rule(), cache, none, none, last)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Draft for each sequence."""
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def _draft(self, sequence: Sequence, budget: int) -> Draft:
        """Draft level by level until the rule stops it: a chain (paper, algorithm 1), or the paths of a beam."""
        progress: Progress = sequence.notes
        rule = progress.rule
        tokens: list[int] = []
        parents: list[int] = []
        drawn: list[Tensor] = []
        confidences: list[float] = []
        level, newest = [ROOT], [sequence.context[-1]]
        exits: list[Tensor] = []  # states of the levels that were read
        outputs: Tensor | None = None
        rule.begin()
        while len(exits) < min(self.config.gamma, budget) and len(tokens) < self.config.nodes and rule.goes_on():
            drafted = self._read(sequence, newest, level, parents, outputs)
            exits.append(drafted.exits)
            outputs = drafted.outputs
            candidates = self._candidates(drafted, level, sequence.sampler)
            kept = rule.keep(candidates, min(self.config.beam, self.config.nodes - len(tokens)))
            if not kept:
                break
            first = len(tokens)
            newest = [candidate.token for candidate in kept]
            tokens += newest
            parents += [candidate.parent for candidate in kept]
            drawn += [candidate.drawn for candidate in kept if candidate.drawn is not None]
            confidences += [candidate.confidence for candidate in kept]
            level = list(range(first, len(tokens)))
        progress.read, progress.drafted = len(exits), tokens
        # The rule's confidences are not those of drawn drafts.
        draft = Draft(tokens, parents, drawn or None, confidences=None if drawn else confidences, calls=len(exits))
        if not self.resume_layer:
            return draft
        if sum(states.shape[1] for states in exits) <= len(tokens):  # the last level is left
            exits.append(self._shallow(sequence, newest, level, parents))
        return replace(draft, states=torch.cat(exits, dim=1), resume_layer=self.resume_layer)

    def _places(self, sequence: Sequence, level: list[int], parents: list[int]) -> Places:
        """Return where a level's tokens are."""
        tree = chain_of(0) if level == [ROOT] else tree_of(parents)
        return tree.places(sequence.length, self.target.device, level[0] + 1, len(level))

    def _shallow(self, sequence: Sequence, tokens: Many[int], level: list[int], parents: list[int]) -> Tensor:
        """Return exit states [1, m, d] of a level's tokens."""
        places = self._places(sequence, level, parents)
        return self.target.run_layers(self.target.embed(tokens), places, sequence.cache, 0, self.exit_layer)

    def _read(
        self, sequence: Sequence, tokens: Many[int], level: list[int], parents: list[int], outputs: Tensor | None
    ) -> Drafted:
        """Run the draft model over a level's tokens; `outputs`: its states of the level before."""
        progress: Progress = sequence.notes
        places = own_places = self._places(sequence, level, parents)
        if outputs is None:  # the newest token, after what the adapter has not processed yet
            unread = progress.unread
            before = torch.cat((progress.unread_before, progress.last), dim=1)
            own_places = Places.after(sequence.length - unread.shape[1], unread.shape[1] + 1)
        else:
            # The parents of a level are nodes of the level before, which ends where this one begins.
            unread = outputs[:, :0]
            above = [parents[node] - (level[0] - outputs.shape[1]) for node in level]
            before = outputs if above == list(range(outputs.shape[1])) else outputs[:, above]
        return self.draft_model(
            self.target.embed(tokens), places, sequence.cache, unread=unread, before=before if self.feedback else None,
            own_places=own_places, own_cache=progress.cache, best=self._best,
        )  # fmt: skip

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
        """Note what the adapter must process before it drafts again."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            self._observe(sequence.notes, outcome)

    def _observe(self, progress: Progress, outcome: Outcome) -> None:
        """Drop rejected drafts, and note which rows the adapter has not processed.

        The adapter has processed all drafts of a chain but the last one, so that only after a full match one row is
        left (the one-token lag). With feedback it used its own states, as the target's were not known yet, and rows of
        a tree are not contiguous: these are processed again. So are drafts of another member of a composition.
        """
        read, is_ours = progress.read, outcome.draft.tokens is progress.drafted
        progress.read = 0
        if is_ours:
            progress.rule.end(outcome.emitted)
        known = read if is_ours and not self.feedback and self.config.beam == 1 else min(1, read)
        kept = outcome.kept.taps[self.exit_layer]
        if read:
            progress.unread = progress.unread_before = kept[:, :0]
        progress.unread = torch.cat((progress.unread, kept[:, known:]), dim=1)
        if self.feedback:
            before = torch.cat((progress.last, outcome.kept.final), dim=1)
            progress.unread_before = torch.cat((progress.unread_before, before[:, known:-1]), dim=1)
            progress.last = before[:, -1:]


def _completed(config: KangarooConfig, made: AdapterConfig, stored: dict[str, Any]) -> KangarooConfig:
    """Fill in defaults stored with the adapter, else the paper's."""
    beam = config.beam or stored.get("beam", 1)
    asked = "threshold" if config.threshold != -1 else ""  # whoever gives a threshold wants it used
    return replace(
        config,
        gamma=config.gamma or stored.get("gamma", 6),
        beam=beam,
        drafts=config.drafts or ("sampled" if beam == 1 else "top"),
        stop=config.stop or asked or stored.get("stop", "threshold"),
        threshold=stored.get("threshold", 0.6) if config.threshold == -1 else config.threshold,
        draft_vocab=made.draft_vocab if config.draft_vocab < 0 else config.draft_vocab,
    )


def _choose_exit_layer(asked: int, made: int, target: trained.Dimensioned, folder: Path) -> int:
    layer = asked or made
    if not layer:
        raise UserError(f"the adapter in {folder} has no exit layer stored: give it (kangaroo:exit_layer=2,...)")
    if made and asked and asked != made:
        raise UserError(f"the adapter in {folder} was trained for exit layer {made}, not {asked}")
    if layer >= target.config.layers:
        raise UserError(
            f"exit_layer={layer} leaves no layers to verify: {target.name} has {target.config.layers} layers"
        )
    return layer
