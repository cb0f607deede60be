"""Kangaroo: self-speculation with double early exit (Liu et al., arXiv 2404.18911).

The draft model is the target's first `exit_layer` layers, a small adapter and the target's LM head; the remaining
layers verify, starting from the exit states that drafting already computed. First early exit: the exit layer. Second:
drafting stops once a draft's probability falls below `threshold`.

Beyond the paper: a cut draft vocabulary, feedback of final states (see `methods.kangaroo.adapter`), and stopping by
expected gain (see `bench.drafting.stopping`); `kangaroo:paper` has none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.drafting import trained
from bench.drafting.costs import Costs
from bench.drafting.method import Draft, SpeculativeMethod
from bench.drafting.published import Published
from bench.drafting.stopping import Candidate, GainRule, ThresholdRule
from bench.drafting.tree import ROOT, Tree, chain_of, tree_of
from bench.engine.cache import KVCache
from bench.engine.decoder import MAX_DRAFTS, Decoder
from bench.errors import UserError
from methods.kangaroo.adapter import FILES, AdapterConfig, load_adapter, one_before, own_head, published_call

STOPS = ("gain", "threshold")


@dataclass(frozen=True)
class KangarooConfig:
    """The knobs of Kangaroo. Left open, they are as stored with the weights, else the paper's."""

    exit_layer: int = field(default=0, metadata={"help": "layers of the draft model; 0: what the adapter was made for"})
    gamma: int = field(default=0, metadata={"help": "most drafts in a row; 0: as stored with the adapter, else 6"})
    beam: int = field(
        default=0,
        metadata={"help": "most drafts side by side: 1 a chain, more a tree; 0: as stored with the adapter, else 1"},
    )
    nodes: int = field(default=24, metadata={"help": "most drafts in a step"})
    drafts: str = field(
        default="",
        metadata={
            "help": "when sampling: sampled (a chain's) or top, the most probable; default: sampled where it can be"
        },
    )
    stop: str = field(
        default="",
        metadata={
            "help": "when to stop drafting: threshold, below a probability of the last draft (the paper's); gain, "
            "where one more draft is expected to cost more than it brings on this device; default: threshold where one "
            "is given, else as stored with the adapter"
        },
    )
    threshold: float = field(
        default=-1.0,
        metadata={"help": "that probability; 0: never stop; -1: as stored with the adapter, else 0.6"},
    )
    draft_vocab: int = field(
        default=-1,
        metadata={
            "help": "cut the draft's LM head to the n most frequent tokens (FR-Spec); 0: whole; -1: as the adapter says"
        },
    )
    weights: str = field(
        default="",
        metadata={
            "help": "folder or Hugging Face id of the adapter; default: the packaged one of the model; paper: the "
            "packaged one that is built and trained as published"
        },
    )
    costs: str = field(
        default="",
        metadata={"help": "for stop=gain: costs of passes as run.json records them; default: measured at start"},
    )

    def __post_init__(self) -> None:
        if self.exit_layer < 0:
            raise ValueError(f"exit_layer={self.exit_layer} must not be negative")
        trained.check_knobs(self.draft_vocab, self.drafts, self.costs)
        if self.gamma < 0:
            raise ValueError(f"gamma={self.gamma} must be at least 1 (0: as stored with the adapter)")
        if self.beam < 0:
            raise ValueError(f"beam={self.beam} must be at least 1 (0: as stored with the adapter)")
        if not 1 <= self.nodes <= MAX_DRAFTS:
            raise ValueError(f"nodes={self.nodes} must lie in 1..{MAX_DRAFTS}")
        if self.drafts == "sampled" and self.beam > 1:
            raise ValueError("drafts=sampled is for a chain (beam=1): a beam keeps the most probable paths")
        if self.threshold != -1 and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie in [0, 1]")
        if self.stop and self.stop not in STOPS:
            raise ValueError(f"stop={self.stop} must be {' or '.join(STOPS)}")


class Kangaroo(SpeculativeMethod):
    """Drafts with the target's own first layers; see the module's docstring."""

    Config = KangarooConfig
    published = Published("Kangaroo's adapter", drafts=6, exit_layer=2, call_per_draft=True, call=published_call)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "chain": {"beam": 1},
        "tree": {"beam": 3},
        "paper": {"gamma": 6, "beam": 1, "stop": "threshold", "threshold": 0.6, "draft_vocab": 0, "weights": "paper"},
        "paper-tree": {
            "gamma": 6,
            "beam": 10,
            "stop": "threshold",
            "threshold": 0.4,
            "draft_vocab": 0,
            "weights": "paper",
        },
    }

    def __init__(self, target: Decoder, config: KangarooConfig):
        super().__init__(target, config)
        folder = trained.find_folder("kangaroo", config.weights, target.name, FILES)
        self.adapter, stored = load_adapter(folder, target)
        self.digest = trained.digest(folder, FILES)
        made = self.adapter.config
        self.feedback = made.feedback
        config = _completed(config, made, stored.knobs)
        self.exit_layer = _choose_exit_layer(config.exit_layer, made.exit_layer, target, folder)
        self.adapter.prepare(self.cache.max_len, target.device)
        self.adapter.pack(target.layout)
        self.adapter.graphs = target.graphs
        heads = self.adapter.config.num_attention_heads
        self.adapter_cache = KVCache(
            1,
            heads,
            target.config.hidden // heads,
            self.cache.max_len,
            dtype=target.dtype,
            device=target.device,
        )
        self.draft_ids = trained.draft_ids(config.draft_vocab, stored.ranking, target, folder)
        if made.own_head:
            self.draft_head = own_head(self.adapter, self.draft_ids, stored.ranking, target, folder)
        else:
            self.draft_head = target.head if self.draft_ids is None else target.cut_head(self.draft_ids)
        self.rule: ThresholdRule | GainRule = ThresholdRule(config.threshold)
        self.config = replace(config, exit_layer=self.exit_layer)
        if config.stop == "gain":
            if stored.calibration is None:
                raise UserError(
                    f"the adapter in {folder} has no calibration, which stop=gain needs: take stop=threshold"
                )
            if config.costs:
                self.costs = Costs.parse(config.costs)
            self.rule = GainRule(stored.calibration, self.costs)
            # Records show what ran, not what was left open.
            self.config = replace(self.config, costs=str(self.costs))
        # Rows that the adapter has yet to read: exit states and, with feedback, the states one position before.
        self.unread: Tensor  # [1, m, d]
        self.unread_before: Tensor  # [1, m, d]
        self.last: Tensor  # [1, 1, d], with feedback: the state one position before the newest token
        self.step_states: Tensor  # [1, n + 1, d]: exit states of the step under way
        self.read = 0  # levels of it that the adapter has read, the newest token being the first

    def draft_calls(self) -> Sequence[Callable[[], object]]:
        """The adapter and the choice of candidates, over one position."""
        state = self.target.embed([0])
        return [lambda: self._candidates(self.adapter(state, 0, self.adapter_cache, state), [ROOT])]

    @property
    def widest(self) -> int:
        """A chain of gamma, or all nodes."""
        return 1 + (self.config.gamma if self.config.beam == 1 else self.config.nodes)

    def probing(self, windows: int) -> tuple[KangarooConfig, int]:
        """A chain that nothing stops."""
        chain = {"gamma": windows, "beam": 1, "nodes": windows, "drafts": ""}
        return replace(self.config, **chain, stop="threshold", threshold=0.0, costs=""), windows

    @property
    def notes(self) -> dict[str, Any]:
        """Which weights it ran with."""
        return {"weights_sha256": self.digest}

    @property
    def extra_parameters(self) -> int:
        """The adapter's weights, with its own LM head, as cut, if it has one; else that is the target's."""
        return sum(p.numel() for p in self.adapter.parameters())

    def begin(self, exit_states: Tensor, final_states: Tensor) -> None:
        """Let the adapter read the prompt."""
        self.rule.reset()
        before, self.last = None, exit_states[:, :0]
        if self.feedback:
            before, self.last = one_before(final_states), final_states[:, -1:]
        self.adapter(exit_states, 0, self.adapter_cache, before)
        self.unread = self.unread_before = exit_states[:, :0]

    def propose(self, room: int) -> Draft:
        """Draft level by level while the rule says so: a chain (paper, algorithm 1), or the paths of a beam."""
        tokens: list[int] = []
        parents: list[int] = []
        drawn: list[Tensor] = []
        confidences: list[float] = []
        level = [ROOT]
        states = [self._shallow([self.context[-1]], chain_of(0), 0)]
        outputs: Tensor | None = None
        self.rule.begin()
        self.read = 0
        while self.read < min(self.config.gamma, room) and len(tokens) < self.config.nodes and self.rule.goes_on():
            outputs = self._read(states[-1], level, parents, outputs)
            self.read += 1
            candidates = self._candidates(outputs, level)
            kept = self.rule.keep(candidates, min(self.config.beam, self.config.nodes - len(tokens)))
            if not kept:
                break
            first = len(tokens)
            tokens += [candidate.token for candidate in kept]
            parents += [candidate.parent for candidate in kept]
            drawn += [candidate.drawn for candidate in kept if candidate.drawn is not None]
            confidences += [candidate.confidence for candidate in kept]
            level = list(range(first, len(tokens)))
            states.append(self._shallow(tokens[first:], tree_of(parents), first + 1))
        self.step_states = torch.cat(states, dim=1)
        # What was drawn is not what the rule was sure of.
        said = None if drawn else confidences
        return Draft(tokens, parents, drawn or None, self.step_states, self.exit_layer, said, self.read)

    def _shallow(self, tokens: Sequence[int], tree: Tree, row: int) -> Tensor:
        """Exit states [1, m, d] of a level's tokens, rows row..row+m of the tree."""
        x = self.target.embed(tokens)
        return self.target.run_layers(x, self.length, self.cache, 0, self.exit_layer, tree, row)

    def _read(self, states: Tensor, level: list[int], parents: list[int], outputs: Tensor | None) -> Tensor:
        """The adapter's states [1, m, d] over a level's exit states; `outputs`: those of the level before."""
        if outputs is None:  # the newest token, behind what the adapter has yet to read
            unread = torch.cat((self.unread, states), dim=1)
            before = torch.cat((self.unread_before, self.last), dim=1)
            start = self.length + 1 - unread.shape[1]
            return self.adapter(unread, start, self.adapter_cache, before)[:, -1:]
        # The parents of a level are nodes of the level before, which ends where this one begins.
        above = [parents[node] - (level[0] - outputs.shape[1]) for node in level]
        tree, row = tree_of(parents), level[0] + 1
        if tree.is_chain:
            return self.adapter(states, self.length + row, self.adapter_cache, outputs)
        return self.adapter(states, self.length, self.adapter_cache, outputs[:, above], tree, row)

    def _candidates(self, outputs: Tensor, level: list[int]) -> list[Candidate]:
        """The tokens that may follow a level's nodes, given the adapter's states [1, m, d] there."""
        logits = self.draft_head(outputs[0]).float()
        probabilities = logits.softmax(-1)
        if self.sampler is not None and self.config.drafts == "sampled":
            return [self._drawn(logits, probabilities, level[0])]
        best = probabilities.topk(min(self.config.beam, probabilities.shape[-1]), dim=-1)
        tokens = best.indices if self.draft_ids is None else self.draft_ids[best.indices]
        # One transfer for both, the only wait for the device in a draft step (inherent to the early exit).
        confidences, ids = torch.stack((best.values.double(), tokens.double())).tolist()
        return [
            Candidate(parent, int(token), confidence)
            for parent, *row in zip(level, confidences, ids, strict=True)
            for confidence, token in zip(*row, strict=True)
        ]

    def _drawn(self, logits: Tensor, probabilities: Tensor, parent: int) -> Candidate:
        """A draft drawn from the distribution after a chain's newest node.

        Its confidence is the largest probability, not its own: to drop a draft for being what was drawn would not be
        lossless.
        """
        assert self.sampler is not None
        q = self.sampler.probabilities(logits)[0]
        if self.draft_ids is not None:
            q = q.new_zeros(self.target.config.vocab).index_copy(0, self.draft_ids, q)
        return Candidate(parent, self.sampler.draw(q), float(probabilities.max()), q)

    def commit(self, accepted: Sequence[int], final_states: Tensor) -> None:
        """Forget rejected drafts, and note what the adapter has to read before it drafts again.

        It has read all drafts of a chain but the last one, so that only after a full match one row is left (the
        one-token lag). With feedback it read them with its own states for want of the target's, and those of a tree
        lie scattered: these are read again.
        """
        self.rule.end(len(accepted))
        known = min(1, self.read) if self.feedback or self.config.beam > 1 else self.read
        if self.read:
            self.unread = self.unread_before = self.step_states[:, :0]
        kept = self.step_states[:, [0, *(draft + 1 for draft in accepted)]]
        self.unread = torch.cat((self.unread, kept[:, known:]), dim=1)
        if self.feedback:
            before = torch.cat((self.last, final_states), dim=1)
            self.unread_before = torch.cat((self.unread_before, before[:, known:-1]), dim=1)
            self.last = before[:, -1:]


def _completed(config: KangarooConfig, made: AdapterConfig, stored: dict[str, Any]) -> KangarooConfig:
    """`config` with what it leaves open taken from the adapter's folder, else from the paper."""
    beam = config.beam or stored.get("beam", 1)
    asked = "threshold" if config.threshold != -1 else ""  # a threshold is given to be used
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
        raise UserError(f"the adapter in {folder} does not say its exit layer: give it (kangaroo:exit_layer=2,...)")
    if trained and asked and asked != trained:
        raise UserError(f"the adapter in {folder} was trained for exit layer {trained}, not {asked}")
    if layer >= target.config.layers:
        raise UserError(
            f"exit_layer={layer} leaves {target.name} nothing to verify: it has {target.config.layers} layers"
        )
    return layer
