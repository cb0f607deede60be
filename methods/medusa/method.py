"""Medusa: several heads on the target's last state draft several tokens at once (Cai et al., arXiv 2401.10774).

Head i predicts the token i + 1 places after the newest one. The most probable tokens of each head are combined into a
tree, which one forward pass of the target verifies (sections 2.1.1 and 2.1.2). Sampling is lossless unless
`accept=typical` asks for the paper's typical acceptance (section 2.3.1). Needs trained heads.

Beyond the paper: heads that share the target's LM head, cut to the most frequent tokens; heads that also read the
newest token, which is known when they draft (as Hydra's first head does, arXiv 2402.05109); a tree chosen for this
model and device (`tree=auto`); and steps without drafts where the tree does not pay in a question (`stop=gain`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.drafting import trained
from bench.drafting.knobs import Costs
from bench.drafting.method import SpeculativeMethod
from bench.drafting.published import Published
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import NO_DRAFT, Draft, Outcome, Sequence, States
from bench.drafting.stopping import TreeRule
from bench.drafting.tree import tree_from_paths, tree_of
from bench.drafting.tree_choice import RankRecord, choose_tree, predict, shares
from bench.drafting.tree_files import PUBLISHED, RankPath, chain_paths, check_fits, paths_for, spell
from bench.drafting.verify import Verify, exact, typical
from bench.engine import MAX_DRAFTS
from bench.engine.decoder import Decoder
from bench.engine.products import Linear
from bench.errors import UserError, program
from methods.medusa import knobs
from methods.medusa.heads import FILES, FastHeads, Heads, HeadsConfig, cut_own, load_heads, read_dimensions
from methods.medusa.knobs import MedusaConfig

_PUBLISHED_HEADS = 4  # with 591M parameters on Vicuna-7B
_COSTS_AT_RANKS = 10  # ranks of each head when the cost of drafting is measured
TYPICAL = (0.09, 0.3)  # epsilon and delta of the authors' code


def _published_call(target: Decoder) -> Callable[[], object]:
    """Return a call of Medusa-1's heads, with LM heads of their own (paper, section 2.1.1), on one state."""
    c = target.config
    with torch.device(target.device):
        heads = Heads(HeadsConfig(c.hidden, _PUBLISHED_HEADS, c.vocab)).to(target.dtype)
    assert heads.lm_heads is not None
    own = [Linear(weight.detach(), layout=target.layout) for weight in heads.lm_heads]
    fast = FastHeads(heads, _PUBLISHED_HEADS, own, layout=target.layout, quantize="none")
    state = torch.randn(1, c.hidden, device=target.device).to(target.dtype)
    return lambda: fast(state).argmax(-1).tolist()


def _check_count(config: MedusaConfig, made: HeadsConfig, folder: Path) -> None:
    if config.heads > made.heads:
        raise UserError(
            f"heads={config.heads} asked for, but {folder} has {made.heads}: give at most as many, or leave heads out"
        )


@dataclass
class Notes:
    """The state of a sequence."""

    state: Tensor  # [1, d], the last one: one position before the newest token
    rule: TreeRule | None  # None: the tree is verified in every step
    drafted: Many[int] | None = None  # its own draft of the current step


class Medusa(SpeculativeMethod):
    """Drafts with heads on the last state."""

    family = "heads"
    Config = MedusaConfig
    presets = knobs.presets
    published = Published("Medusa-1's four heads", drafts=_PUBLISHED_HEADS, call=_published_call)

    @classmethod
    def check_weights(cls, config: MedusaConfig, model: trained.Dimensioned) -> None:
        """Check the heads' config.json."""
        folder = trained.find_folder("medusa", config.weights, model.name, FILES)
        if made := read_dimensions(folder, model):
            _check_count(config, made, folder)

    def __init__(self, target: Decoder, config: MedusaConfig):
        super().__init__(target, config)
        folder = trained.find_folder("medusa", config.weights, target.name, FILES)
        self.heads, ranking, record = load_heads(folder, target)
        self.digest = trained.digest(folder, FILES)
        made = self.heads.config
        _check_count(config, made, folder)
        count = config.heads or made.heads
        vocab = made.draft_vocab if config.draft_vocab < 0 else config.draft_vocab
        if self.heads.lm_heads is not None:
            cut_own(self.heads, vocab, ranking, target, folder)
        self.draft_ids = trained.draft_ids(vocab, ranking, target, folder)
        quantize = trained.draft_quantize(config.draft_weights, target)
        lm_head: Linear | list[Linear]
        if self.heads.lm_heads is not None:
            own = self.heads.lm_heads[:count]
            lm_head = [Linear(weight, layout=target.layout, quantize=quantize) for weight in own]
        else:
            lm_head = trained.draft_head(target, self.draft_ids, quantize)
        self._predicted: dict[str, Any] = {}
        size = vocab or target.config.vocab

        def fast(heads: int) -> FastHeads:
            return FastHeads(self.heads, heads, lm_head, layout=target.layout, quantize=quantize)

        self.parents: list[int] = []
        self.most_ranks = min(_COSTS_AT_RANKS, size)
        self.by_count = [fast(heads) for heads in range(1, count + 1)]
        asked = config.tree or ("auto" if record is not None else PUBLISHED)
        tree = self._choose(config, asked, record, folder)
        if self._predicted:  # ranks were recorded over a larger vocabulary than is drafted from
            tree = [path for path in tree if max(path) < size]
        check_fits(config.tree, tree, count, size)
        self.parents, self.ranks = tree_from_paths(tree)
        shape = tree_of(self.parents)
        self.depths = [depth - 1 for depth in shape.depths[1:]]  # which head drafts a node
        # Drawn drafts go by the place among siblings, not by rank: the first must be a draw from the whole q.
        places = [shape.children[parent].index(node) for node, parent in enumerate(self.parents)]
        self.fast = fast(max(self.depths, default=0) + 1)  # heads that the tree does not use are not run
        self.most_ranks = max(self.ranks, default=0) + 1
        self.most_siblings = max(places, default=0) + 1
        self.node_depths, self.node_ranks, self.node_places = (
            torch.tensor(numbers, dtype=torch.long, device=target.device)
            for numbers in (self.depths, self.ranks, places)
        )
        stop = config.stop or ("gain" if self._predicted else "never")
        self.shares: list[float] = []  # of the tree's nodes, for the rule that stops
        if stop == "gain":
            if record is None:
                raise UserError(
                    f"{folder} has no record of how often each rank is right, which stop=gain needs: take stop=never"
                )
            self.shares = shares(record, tree)
        sampled = "sampled" if tree_of(self.parents).is_chain and config.accept == "exact" else "top"
        self.config = replace(
            config,
            heads=count,
            tree=asked if self._predicted else spell(tree),
            stop=stop,
            draft_vocab=vocab,
            drafts=config.drafts or sampled,
            first=config.first or ("argmax" if config.accept == "typical" else ""),
        )
        self.measured_knobs = {"tree": spell(tree)} if self._predicted else {}
        if (self._predicted or stop == "gain") and not config.costs:
            self.measured_knobs["costs"] = str(self.costs)

    def _choose(self, config: MedusaConfig, asked: str, record: RankRecord | None, folder: Path) -> list[RankPath]:
        """Return the tree's rank paths."""
        count = len(self.by_count)
        chains = [chain_paths(n) for n in range(1, count + 1)]
        if asked == "chain" and (config.heads or record is None):
            return chains[-1]
        if asked not in ("auto", "chain"):
            return paths_for(asked, count)
        if record is None:
            raise UserError(
                f"tree=auto needs to know how often each rank is right, and {folder} has no record of it: name a tree "
                f"(tree={PUBLISHED}) or train heads ({program()} train medusa)"
            )
        costs = self.costs
        if len(costs.draft) < count:
            raise UserError(f"costs={config.costs} are of drafting by {len(costs.draft)} heads, but {count} are used")
        options = [predict(record, paths, costs) for paths in chains if len(paths) < costs.most]
        options = options or [predict(record, [], costs)]
        chain = max(options, key=lambda option: option.speedup)
        choice = chain if asked == "chain" else choose_tree(record, count, costs, MAX_DRAFTS)
        self._predicted = {"tree": choice.prediction(), "chain": chain.prediction()}
        return choice.paths

    def draft_calls(self) -> Many[Callable[[], object]]:
        """Draft with one head, with two, .."""
        state, count = self.target.final_norm(self.target.embed([0])[0]), self.target.sequences
        first = torch.zeros(1, dtype=torch.long, device=self.target.device)

        def draft(fast: FastHeads) -> Callable[[], object]:
            return lambda: [
                self._most_probable(logits, first, first) for logits in self._logits(fast, [state] * count, [0] * count)
            ]

        return [draft(fast) for fast in self.by_count]

    def draft_cost(self, measured: Costs) -> float:
        """The cost of as many heads as the tree is deep."""
        return measured.draft[min(self.fast.count, len(measured.draft)) - 1]

    @property
    def widest(self) -> int:
        """The newest token and the whole tree."""
        return 1 + len(self.parents)

    def probing(self, windows: int) -> tuple[MedusaConfig, int]:
        """Return a chain of all heads."""
        reach = min(windows, self.heads.config.heads)
        chain = spell(chain_paths(reach))
        return replace(self.config, heads=self.heads.config.heads, tree=chain, stop="never", drafts="", costs=""), reach

    @property
    def extra_parameters(self) -> int:
        """The weights of the heads in use, without a shared LM head."""
        return sum(p[: self.config.heads].numel() for p in self.heads.parameters())

    @property
    def measured(self) -> dict[str, Any]:
        """The chosen tree and the costs that it was chosen by."""
        return self.measured_knobs

    @property
    def notes(self) -> dict[str, Any]:
        """The digest of the weights, and what is predicted of the tree and the best chain under greedy decoding."""
        return super().notes | ({"predicted": self._predicted} if self._predicted else {})

    @property
    def lossless(self) -> bool:
        """False with typical acceptance."""
        return self.config.accept == "exact"

    def verification(self, sampler: Sampler | None) -> Verify:
        """As `accept` says; greedy decoding is the same with both."""
        if sampler is None or self.lossless:
            return exact(sampler)
        return typical(sampler, *TYPICAL, draw_bonus=self.config.first == "sample")

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Keep the last state."""
        rule = None
        if self.config.stop == "gain":
            rule = TreeRule(self.shares, self.parents, self.draft_cost(self.costs), self.costs)
        sequence.notes = Notes(prompt.final[0, -1:], rule)

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Keep the last state, and note whether drafting paid."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            notes: Notes = sequence.notes
            notes.state = outcome.kept.final[0, -1:]
            if notes.rule is not None and outcome.is_of(notes.drafted):
                notes.rule.end(len(notes.drafted), outcome.accepted)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Draft for all sequences, in one call of the heads for those where the tree pays."""
        # Nodes are sorted by depth: what is too deep comes last.
        counts = [sum(depth < budget for depth in self.depths) for budget in budgets]
        rules = [sequence.notes.rule for sequence in sequences]
        pays = [bool(count) and (rule is None or rule.pays(count)) for count, rule in zip(counts, rules, strict=True)]
        asked = [sequence for sequence, asks in zip(sequences, pays, strict=True) if asks]
        drafts = [NO_DRAFT] * len(sequences)
        if asked:
            states, newest = [one.notes.state for one in asked], [one.context[-1] for one in asked]
            logits = iter(self._logits(self.fast, states, newest))
            for i, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
                if pays[i]:
                    drafts[i] = self._draft(next(logits), sequence.sampler, count)
        for sequence, draft in zip(sequences, drafts, strict=True):
            sequence.notes.drafted = draft.tokens
        return drafts

    def _draft(self, logits: Tensor, sampler: Sampler | None, count: int) -> Draft:
        """Combine the heads' most probable (or drawn) tokens into the tree's first nodes, given logits [H, V]."""
        depths, parents = self.node_depths[:count], self.parents[:count]
        if sampler is None or self.config.drafts == "top":
            tokens, confidences = self._most_probable(logits, depths, self.node_ranks[:count])
            return Draft(tokens, parents, confidences=confidences)
        probabilities = sampler.probabilities(logits)
        chosen = sampler.draw_distinct(probabilities, self.most_siblings)[depths, self.node_places[:count]]
        if self.draft_ids is not None:
            chosen = self.draft_ids[chosen]
            whole = probabilities.new_zeros(len(probabilities), self.target.config.vocab)
            probabilities = whole.index_copy(1, self.draft_ids, probabilities)
        return Draft(chosen.tolist(), parents, [probabilities[depth] for depth in self.depths[:count]])

    def _logits(self, fast: FastHeads, states: Many[Tensor], newest: Many[int]) -> Tensor:
        """Return the heads' logits [B, H, V] after states [1, d] and, if they read them, the newest tokens."""
        inputs = torch.cat(list(states))
        if self.heads.config.reads_newest:
            inputs = torch.cat((inputs, self.target.final_norm(self.target.embed(newest)[0])), dim=-1)
        return fast(inputs)

    def _most_probable(self, logits: Tensor, depths: Tensor, ranks: Tensor) -> tuple[list[int], list[float]]:
        """Return token ids of nodes, given by their head and their rank in it, and their probabilities."""
        best = logits.topk(self.most_ranks, dim=-1)
        chosen = best.indices[depths, ranks]
        confidences = (best.values[depths, ranks] - logits.logsumexp(-1)[depths]).exp()
        ids = chosen if self.draft_ids is None else self.draft_ids[chosen]
        # One transfer for both; float64 holds every token id.
        rows = torch.stack((ids.double(), confidences.double())).tolist()
        return [int(token) for token in rows[0]], rows[1]
