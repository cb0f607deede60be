"""Kangaroo: self-speculation with double early exit (Liu et al., arXiv 2404.18911).

The draft model is the target's first `exit_layer` layers, a small adapter and the target's LM head; the remaining
layers verify, starting from the exit states that drafting already computed. First early exit: the exit layer. Second:
drafting stops once a draft's probability falls below `threshold`.

Beyond the paper: a cut draft vocabulary, feedback of final states (see `Adapter`), and stopping by expected gain (see
`bench.engine.stopping`); `kangaroo:paper` has none of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.costs import Costs
from bench.engine.decoder import (
    MAX_DRAFTS,
    Decoder,
    additive,
    apply_rope,
    attend,
    fused_rope,
    rms_norm,
    rotation,
    tree_places,
)
from bench.engine.execute import Linear
from bench.engine.kv_cache import KVCache
from bench.engine.stopping import Calibration, Candidate, GainRule, ThresholdRule
from bench.engine.tree import ROOT, Tree, chain_of, tree_of
from bench.errors import UserError
from methods import trained
from methods.base import Draft, SpeculativeMethod

ADAPTER_FILE = "adapter.safetensors"
FILES = (ADAPTER_FILE, "pytorch_model.bin")  # ours, the authors'
_WHAT = "Kangaroo adapter"
_ROPE_BASE = 10000.0  # of the authors' adapter, whatever the target's
# The authors' names of our parameters (and in their manner, of those they have not); both formats use them.
_NAMES = {
    "q.weight": "layers.0.self_attn.q_proj.weight",
    "k.weight": "layers.0.self_attn.k_proj.weight",
    "v.weight": "layers.0.self_attn.v_proj.weight",
    "o.weight": "layers.0.self_attn.o_proj.weight",
    "gate.weight": "layers.0.mlp.gate_proj.weight",
    "up.weight": "layers.0.mlp.up_proj.weight",
    "down.weight": "layers.0.mlp.down_proj.weight",
    "input.weight": "input_proj.weight",
    "input_norm": "layers.0.input_layernorm.weight",
    "ffn_norm": "layers.0.post_attention_layernorm.weight",
    "output_norm": "norm.weight",
}
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


@dataclass(frozen=True)
class Stored:
    """What comes with an adapter besides its weights: token ids by falling frequency, calibration, default knobs."""

    ranking: Tensor | None = None
    calibration: Calibration | None = None
    knobs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterConfig:
    """Dimensions of an adapter, and what it was made for: exit layer (0: unknown) and draft vocabulary (0: whole)."""

    hidden_size: int
    num_attention_heads: int
    rms_norm_eps: float
    exit_layer: int = 0
    draft_vocab: int = 0
    feedback: bool = False
    ffn: int = 0

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % (2 * heads):
            raise ValueError(
                f"num_attention_heads={heads} does not split hidden_size={self.hidden_size} into even parts"
            )


class Adapter(nn.Module):
    """What stands between exit layer and LM head (paper, section 3.1): h -> RMSNorm(h + Attention(RMSNorm(h))).

    Multi-head, no biases, no FFN, own RoPE (base 10000): 4 d^2 + 2 d parameters, 67M for Vicuna-7B.

    Beyond the paper: with `feedback` the input is a projection of the exit state and of the target's final state one
    position before (while drafting ahead: the adapter's own output there, as in EAGLE, arXiv 2401.15077), which
    verification computed anyway; with `ffn` a gated feed-forward block of that width follows the attention.
    """

    def __init__(self, config: AdapterConfig):
        super().__init__()
        d = config.hidden_size
        self.config = config
        self.input = nn.Linear(2 * d, d, bias=False) if config.feedback else None
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.input_norm = nn.Parameter(torch.ones(d))
        if config.ffn:
            self.ffn_norm = nn.Parameter(torch.ones(d))
            self.gate, self.up = (nn.Linear(d, config.ffn, bias=False) for _ in range(2))
            self.down = nn.Linear(config.ffn, d, bias=False)
        self.output_norm = nn.Parameter(torch.ones(d))
        self._packed: dict[str, Linear] = {}
        self.cos: Tensor  # [positions, D]
        self.sin: Tensor

    def prepare(self, max_len: int, device: torch.device) -> None:
        """Make the RoPE table for `max_len` positions."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        inverse = _ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.arange(max_len)[:, None] * inverse.repeat(2)
        dtype = self.output_norm.dtype
        cos, sin = rotation(angles.cos(), angles.sin())
        self.cos, self.sin = cos.to(device, dtype), sin.to(device, dtype)

    def pack(self, packed: bool) -> None:
        """Fuse and pack the matrices for inference as the target's are; training no longer reaches them."""
        groups = {"qkv": [self.q, self.k, self.v], "o": [self.o]}
        if self.input is not None:
            groups["input"] = [self.input]
        if self.config.ffn:
            groups |= {"gate_up": [self.gate, self.up], "down": [self.down]}
        self._packed = {
            name: Linear(torch.cat([part.weight for part in parts]).detach(), packed=packed)
            for name, parts in groups.items()
        }

    def forward(
        self,
        h: Tensor,
        start: int = 0,
        cache: KVCache | None = None,
        before: Tensor | None = None,
        tree: Tree | None = None,
        row: int = 0,
    ) -> Tensor:
        """Exit states h [B, n, d] at positions start..start+n -> states for the LM head [B, n, d].

        `before` [B, n, d] (feedback only): post-norm final states one position before each. Without a cache the n
        positions are all there is (training). `tree`, `row`: as for `Decoder.run_layers`.
        """
        x = self.join(h, before)
        heads, n = self.config.num_attention_heads, h.shape[1]
        places: Tensor | slice = slice(start, start + n)
        mask = None
        if tree is not None:
            places, seen = tree_places(tree, row, n, n, start, h.device)
            mask = additive(seen, h.dtype)
        elif n > 1 and start > 0:
            rows = torch.arange(start, start + n, device=h.device)[:, None]
            mask = additive(rows >= torch.arange(start + n, device=h.device), h.dtype)
        qkv = self.qkv(x, places)
        if cache is not None:
            k, v = cache.update(0, start + row, qkv[:, :, heads:])
        else:
            k, v = qkv[:, :, heads:].transpose(1, 2).chunk(2, dim=1)
        return self.finish(x, attend(qkv[:, :, :heads], k, v, mask))

    def join(self, h: Tensor, before: Tensor | None) -> Tensor:
        """What attention starts from: the exit states, with feedback projected together with the states before."""
        if self.input is None:
            return h
        assert before is not None
        x = torch.cat((h, before), dim=-1)
        return self._packed["input"](x) if self._packed else self.input(x)

    def qkv(self, x: Tensor, places: Tensor | slice) -> Tensor:
        """Rotated queries and keys, and values of x [B, n, d] at positions `places`: [B, n, 3 * H, D]."""
        c, (batch, n, _) = self.config, x.shape
        normed = rms_norm(x, self.input_norm, c.rms_norm_eps)
        if self._packed:
            qkv = self._packed["qkv"](normed)
        else:
            qkv = torch.cat((self.q(normed), self.k(normed), self.v(normed)), dim=-1)
        heads = c.num_attention_heads
        rope = fused_rope(self.cos[places], self.sin[places], 2 * heads, heads)
        return apply_rope(qkv.view(batch, n, 3 * heads, -1), *rope)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention, [B, n, d] -> [B, n, d]."""
        c = self.config
        x = self._packed["o"].plus(x, attended) if self._packed else x + self.o(attended)
        if c.ffn:
            normed = rms_norm(x, self.ffn_norm, c.rms_norm_eps)
            if self._packed:
                gate, up = self._packed["gate_up"](normed).chunk(2, dim=-1)
                x = self._packed["down"].plus(x, F.silu(gate) * up)
            else:
                x = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return rms_norm(x, self.output_norm, c.rms_norm_eps)

    def unrolled(self, h: Tensor, final_states: Tensor, depth: int) -> Iterator[Tensor]:
        """States [B, n, d] of the 1st, 2nd, .. draft of chains that begin at every position (training and scores).

        The w-th states at position t belong to the chain begun at t - w + 1: up to there the target's final states
        are known, after it the adapter has its own. h, final_states (post-norm) [B, n, d] of whole conversations.
        """
        if self.input is None:  # nothing is fed back: all drafts of a position are the same
            yield from itertools.repeat(self(h), depth)
            return
        n, heads = h.shape[1], self.config.num_attention_heads
        ago = torch.arange(n, device=h.device)[:, None] - torch.arange(n, device=h.device)  # query - key position
        keys: list[Tensor] = []
        states = final_states
        for w in range(1, depth + 1):
            x = self.join(h, one_before(states))
            qkv = self.qkv(x, slice(0, n))
            keys.append(qkv[:, :, heads:].transpose(1, 2))
            # Keys of the chain's own drafts come from the pass that made them, all earlier ones from the first.
            mask = torch.cat([ago >= w - 1, *(ago == w - made for made in range(2, w + 1))], dim=1)
            k, v = torch.cat(keys, dim=2).chunk(2, dim=1)
            states = self.finish(x, attend(qkv[:, :, :heads], k, v, mask))
            yield states


def one_before(states: Tensor) -> Tensor:
    """[B, n, d], each position's row taken from the position before it; the first is zero."""
    return F.pad(states, (0, 0, 1, 0))[:, :-1]


class Kangaroo(SpeculativeMethod):
    """Drafts with the target's own first layers; see the module's docstring."""

    Config = KangarooConfig
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
        made = self.adapter.config
        self.feedback = made.feedback
        config = _completed(config, made, stored.knobs)
        self.exit_layer = _choose_exit_layer(config.exit_layer, made.exit_layer, target, folder)
        self.adapter.prepare(self.cache.max_len, target.device)
        self.adapter.pack(target.packed)
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

    def probing(self, windows: int) -> KangarooConfig:
        """A chain that nothing stops."""
        return replace(self.config, gamma=windows, beam=1, drafts="", stop="threshold", threshold=0.0, costs="")

    @property
    def extra_parameters(self) -> int:
        """The adapter's weights; the LM head is the target's, cut or whole."""
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
        return Draft(tokens, parents, drawn or None, self.step_states, self.exit_layer, confidences, self.read)

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


def load_adapter(folder: Path, target: Decoder) -> tuple[Adapter, Stored]:
    """An adapter for `target` from our format or the authors', and what was stored with it.

    Raises:
        UserError: not an adapter's folder, an unreadable file, or an adapter for another target.

    """

    def build(value: dict[str, Any]) -> tuple[AdapterConfig, Calibration | None, dict[str, Any]]:
        config = AdapterConfig(
            hidden_size=value["hidden_size"],
            num_attention_heads=value["num_attention_heads"],
            rms_norm_eps=value["rms_norm_eps"],
            exit_layer=value.get("exit_layer", 0),
            draft_vocab=value.get("draft_vocab", 0),
            feedback=value.get("feedback", False),
            ffn=value.get("ffn", 0),
        )
        curves = value.get("calibration")
        calibration = curves and Calibration(tuple(curves["accepted"]), tuple(curves["following"]))
        return config, calibration, dict(value.get("knobs", {}))

    config, calibration, knobs = trained.read_config(folder, _WHAT, build)
    trained.check_hidden(config.hidden_size, target, folder, _WHAT)
    weights = trained.read_tensors(folder, _WHAT, FILES)
    adapter = Adapter(config)
    trained.fill(adapter, weights, _NAMES, folder, _WHAT)
    stored = Stored(weights.get("token_ranking"), calibration, knobs)
    return adapter.to(target.device, target.dtype).requires_grad_(False), stored


def save_adapter(folder: Path, adapter: Adapter, stored: Stored) -> None:
    """Write `adapter` and what belongs to it in our format (two files in an existing folder)."""
    from safetensors.torch import save_file

    tensors = {_NAMES[ours]: tensor.detach().float().cpu() for ours, tensor in adapter.named_parameters()}
    if stored.ranking is not None:
        tensors["token_ranking"] = stored.ranking.to(torch.int32)
    save_file(tensors, folder / ADAPTER_FILE)
    value = asdict(adapter.config)
    if stored.calibration is not None:
        value["calibration"] = asdict(stored.calibration)
    if stored.knobs:
        value["knobs"] = stored.knobs
    (folder / trained.CONFIG_FILE).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


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
