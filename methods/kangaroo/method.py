"""Kangaroo: self-speculation with double early exit (Liu et al., arXiv 2404.18911).

The draft model is the target's first `exit_layer` layers, a small adapter and the target's LM head (section 3.1). The
remaining layers verify, starting from the exit states that drafting already computed. The exit layer is the first early
exit. The second: drafting stops once a draft's probability is below `threshold` (section 3.2). Needs a trained adapter.

Beyond the paper: a cut draft vocabulary, feedback of final states (see `methods.kangaroo.adapter`), and stopping by
expected gain (see `bench.drafting.stopping`). `kangaroo:paper` has none of them.
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
from bench.drafting.knobs import Costs
from bench.drafting.method import SpeculativeMethod
from bench.drafting.published import Published
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.drafting.stopping import Candidate, GainRule, ThresholdRule
from bench.drafting.tree import ROOT, Tree, chain_of, tree_of
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.errors import UserError
from methods.kangaroo import knobs
from methods.kangaroo.adapter import FILES, AdapterConfig, load_adapter, one_before, own_head, published_call
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
    states: Tensor | None = None  # of the current draft


class Kangaroo(SpeculativeMethod):
    """Drafts with the target's own first layers and an adapter."""

    family = "self"
    Config = KangarooConfig
    presets = knobs.presets
    published = Published("Kangaroo's adapter", drafts=6, exit_layer=2, call_per_draft=True, call=published_call)

    def __init__(self, target: Decoder, config: KangarooConfig):
        super().__init__(target, config)
        folder = trained.find_folder("kangaroo", config.weights, target.name, FILES)
        self.adapter, stored = load_adapter(folder, target)
        self.digest = trained.digest(folder, FILES)
        made = self.adapter.config
        self.feedback = made.feedback
        config = _completed(config, made, stored.knobs)
        self.exit_layer = self.resume_layer = _choose_exit_layer(config.exit_layer, made.exit_layer, target, folder)
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
        self.new_rule: Callable[[], ThresholdRule | GainRule] = partial(ThresholdRule, config.threshold)
        self.config = replace(config, exit_layer=self.exit_layer)
        if config.stop == "gain":
            if stored.calibration is None:
                raise UserError(
                    f"the adapter in {folder} has no calibration, which stop=gain needs: take stop=threshold"
                )
            if config.costs:
                self.costs = Costs.parse(config.costs)
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
        """Run the adapter and choose candidates, over one token."""
        state, cache = self.target.embed([0]), self._cache(0)
        return [lambda: self._candidates(self.adapter(state, 0, cache, state), [ROOT], None)]

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
        level = [ROOT]
        states = [self._shallow(sequence, [sequence.context[-1]], chain_of(0), 0)]
        outputs: Tensor | None = None
        rule.begin()
        read = 0
        while read < min(self.config.gamma, budget) and len(tokens) < self.config.nodes and rule.goes_on():
            outputs = self._read(sequence, states[-1], level, parents, outputs)
            read += 1
            candidates = self._candidates(outputs, level, sequence.sampler)
            kept = rule.keep(candidates, min(self.config.beam, self.config.nodes - len(tokens)))
            if not kept:
                break
            first = len(tokens)
            tokens += [candidate.token for candidate in kept]
            parents += [candidate.parent for candidate in kept]
            drawn += [candidate.drawn for candidate in kept if candidate.drawn is not None]
            confidences += [candidate.confidence for candidate in kept]
            level = list(range(first, len(tokens)))
            states.append(self._shallow(sequence, tokens[first:], tree_of(parents), first + 1))
        # The rule's confidences are not those of drawn drafts.
        said = None if drawn else confidences
        progress.read, progress.states = read, torch.cat(states, dim=1)
        return Draft(tokens, parents, drawn or None, progress.states, self.exit_layer, said, read)

    def _shallow(self, sequence: Sequence, tokens: Many[int], tree: Tree, row: int) -> Tensor:
        """Return exit states [1, m, d] of a level's tokens, rows row..row+m of the tree."""
        places = tree.places(sequence.length, self.target.device, row, len(tokens))
        return self.target.run_layers(self.target.embed(tokens), places, sequence.cache, 0, self.exit_layer)

    def _read(
        self, sequence: Sequence, states: Tensor, level: list[int], parents: list[int], outputs: Tensor | None
    ) -> Tensor:
        """Run the adapter over a level's exit states [1, m, d]; `outputs`: its states of the level before."""
        progress: Progress = sequence.notes
        if outputs is None:  # the newest token, after what the adapter has not processed yet
            unread = torch.cat((progress.unread, states), dim=1)
            before = torch.cat((progress.unread_before, progress.last), dim=1)
            start = sequence.length + 1 - unread.shape[1]
            return self.adapter(unread, start, progress.cache, before)[:, -1:]
        # The parents of a level are nodes of the level before, which ends where this one begins.
        tree, row = tree_of(parents), level[0] + 1
        places = tree.places(sequence.length, self.target.device, row, len(level))
        above = [parents[node] - (level[0] - outputs.shape[1]) for node in level]
        return self.adapter(states, places, progress.cache, outputs if tree.is_chain else outputs[:, above])

    def _candidates(self, outputs: Tensor, level: list[int], sampler: Sampler | None) -> list[Candidate]:
        """Return the tokens that may follow a level's nodes, given the adapter's states [1, m, d] there."""
        logits = self.draft_head(outputs[0]).float()
        probabilities = logits.softmax(-1)
        if sampler is not None and self.config.drafts == "sampled":
            return [self._drawn(logits, probabilities, level[0], sampler)]
        best = probabilities.topk(min(self.config.beam, probabilities.shape[-1]), dim=-1)
        tokens = best.indices if self.draft_ids is None else self.draft_ids[best.indices]
        # One transfer for both, the only synchronisation of a draft step (inherent to the early exit).
        confidences, ids = torch.stack((best.values.double(), tokens.double())).tolist()
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
        read, is_ours = progress.read, outcome.draft.states is progress.states
        progress.read = 0
        if is_ours:
            progress.rule.end(len(outcome.accepted))
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


def _choose_exit_layer(asked: int, trained: int, target: Decoder, folder: Path) -> int:
    layer = asked or trained
    if not layer:
        raise UserError(f"the adapter in {folder} has no exit layer stored: give it (kangaroo:exit_layer=2,...)")
    if trained and asked and asked != trained:
        raise UserError(f"the adapter in {folder} was trained for exit layer {trained}, not {asked}")
    if layer >= target.config.layers:
        raise UserError(
            f"exit_layer={layer} leaves no layers to verify: {target.name} has {target.config.layers} layers"
        )
    return layer
