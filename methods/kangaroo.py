"""Kangaroo: self-speculation with double early exit (Liu et al., arXiv 2404.18911).

The draft model is the target's first `exit_layer` layers, a small adapter and the target's LM head; the remaining
layers verify, starting from the exit states that drafting already computed. First early exit: the exit layer. Second:
drafting stops once a draft's probability falls below `threshold`.

Beyond the paper: a cut draft vocabulary, feedback of final states (see `Adapter`), and stopping by expected gain (see
`GainRule`); `kangaroo:paper` has none of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.costs import Costs
from bench.engine.costs import measure as costs_of
from bench.engine.decoder import Decoder, apply_rope, attend, fused_rope, rms_norm, rotation
from bench.engine.execute import Linear
from bench.engine.kv_cache import KVCache
from bench.errors import UserError
from methods.base import Draft, SpeculativeMethod

ADAPTER_FILE = "adapter.safetensors"
CONFIG_FILE = "config.json"
AUTHORS_FILE = "pytorch_model.bin"
WEIGHTS_ROOT = Path(__file__).parent / "weights"
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
CALIBRATED_AT = tuple(i / 20 for i in range(21))  # confidences
_PRIOR_STEPS = 8  # vanilla steps, of a token each, that the gain rule takes a question to begin with


@dataclass(frozen=True)
class KangarooConfig:
    """The knobs of Kangaroo. Left open, they are as stored with the weights, else the paper's."""

    exit_layer: int = field(default=0, metadata={"help": "layers of the draft model; 0: what the adapter was made for"})
    gamma: int = field(default=0, metadata={"help": "most drafts in a step; 0: as stored with the adapter, else 6"})
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
            "help": "folder of the adapter; default: the packaged one of the model; paper: the packaged one that is "
            "built and trained as published"
        },
    )
    costs: str = field(
        default="",
        metadata={"help": "for stop=gain: costs of passes as run.json records them; default: measured at start"},
    )

    def __post_init__(self) -> None:
        if self.exit_layer < 0:
            raise ValueError(f"exit_layer={self.exit_layer} must not be negative")
        if self.draft_vocab < -1:
            raise ValueError(f"draft_vocab={self.draft_vocab} must be at least -1")
        if self.gamma < 0:
            raise ValueError(f"gamma={self.gamma} must be at least 1 (0: as stored with the adapter)")
        if self.threshold != -1 and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie in [0, 1]")
        if self.stop and self.stop not in STOPS:
            raise ValueError(f"stop={self.stop} must be {' or '.join(STOPS)}")
        if self.costs:
            Costs.parse(self.costs)


@dataclass(frozen=True)
class Calibration:
    """What a draft's confidence is worth, measured on held-out answers, at CALIBRATED_AT: the chance that it is the
    target's choice, and, if it is, that the next draft is too."""

    accepted: tuple[float, ...]
    following: tuple[float, ...]

    def __post_init__(self) -> None:
        if any(len(curve) != len(CALIBRATED_AT) for curve in (self.accepted, self.following)):
            raise ValueError(f"calibration must give {len(CALIBRATED_AT)} values a curve")


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

    def forward(self, h: Tensor, start: int = 0, cache: KVCache | None = None, before: Tensor | None = None) -> Tensor:
        """Exit states h [B, n, d] at positions start..start+n -> states for the LM head [B, n, d].

        `before` [B, n, d] (feedback only): post-norm final states one position before each. Without a cache the n
        positions are all there is (training).
        """
        x = self.join(h, before)
        qkv = self.qkv(x, start)
        heads, n = self.config.num_attention_heads, h.shape[1]
        mask = None
        if cache is not None:
            k, v = cache.update(0, start, qkv[:, :, heads:])
            if n > 1 and start > 0:
                rows = torch.arange(start, start + n, device=h.device)[:, None]
                mask = rows >= torch.arange(start + n, device=h.device)
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

    def qkv(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotated queries and keys, and values of x [B, n, d]: [B, n, 3 * H, D]."""
        c, (batch, n, _) = self.config, x.shape
        normed = rms_norm(x, self.input_norm, c.rms_norm_eps)
        if self._packed:
            qkv = self._packed["qkv"](normed)
        else:
            qkv = torch.cat((self.q(normed), self.k(normed), self.v(normed)), dim=-1)
        heads = c.num_attention_heads
        rope = fused_rope(self.cos[start : start + n], self.sin[start : start + n], 2 * heads, heads)
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
            qkv = self.qkv(x)
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
        "paper": {"gamma": 6, "stop": "threshold", "threshold": 0.6, "draft_vocab": 0, "weights": "paper"}
    }

    def __init__(self, target: Decoder, config: KangarooConfig):
        super().__init__(target, config)
        folder = _weights_folder(config.weights, target.name)
        self.adapter, stored = load_adapter(folder, target)
        trained = self.adapter.config
        self.feedback = trained.feedback
        config = _completed(config, trained, stored.knobs)
        self.exit_layer = _choose_exit_layer(config.exit_layer, trained.exit_layer, target, folder)
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
        self.draft_ids = _draft_ids(config.draft_vocab, stored.ranking, target, folder)
        self.draft_head = target.head if self.draft_ids is None else target.cut_head(self.draft_ids)
        self.rule: ThresholdRule | GainRule = ThresholdRule(config.threshold)
        costs = ""
        if config.stop == "gain":
            if stored.calibration is None:
                raise UserError(
                    f"the adapter in {folder} has no calibration, which stop=gain needs: take stop=threshold"
                )
            self.rule = GainRule(stored.calibration, self._costs(config))
            costs = str(self.rule.costs)
        # Records show what ran, not what was left open.
        self.config = replace(config, exit_layer=self.exit_layer, costs=costs)
        # Rows that the adapter has yet to read: exit states and, with feedback, the states one position before.
        self.unread: Tensor  # [1, m, d]
        self.unread_before: Tensor  # [1, m, d]
        self.last: Tensor  # [1, 1, d], with feedback: the state one position before the newest token
        self.step_states: Tensor  # [1, n, d]: exit states of the step under way
        self.read = 0  # its tokens that the adapter has read

    def _costs(self, config: KangarooConfig) -> Costs:
        """As asked, else measured on this device."""
        if config.costs:
            costs = Costs.parse(config.costs)
            if len(costs.verify) <= config.gamma:
                raise UserError(
                    f"costs={config.costs} end before verification of gamma + 1 = {config.gamma + 1} positions"
                )
            return costs
        state = self.target.embed([0])

        def draft() -> None:
            self._choose(self.adapter(state, 0, self.adapter_cache, state))

        # As read back from the record, so that a run repeated with it decides the very same.
        return Costs.parse(str(costs_of(self.target, self.exit_layer, config.gamma + 1, draft)))

    @property
    def extra_parameters(self) -> int:
        """The adapter's weights; the LM head is the target's, cut or whole."""
        return sum(p.numel() for p in self.adapter.parameters())

    def begin(self, exit_states: Tensor, final_states: Tensor) -> None:
        """Let the adapter read the prompt."""
        self.rule.reset()
        before, self.last = None, exit_states[:, :0]
        if self.feedback:
            finals = self.target.final_norm(final_states)
            before, self.last = one_before(finals), finals[:, -1:]
        self.adapter(exit_states, 0, self.adapter_cache, before)
        self.unread = self.unread_before = exit_states[:, :0]

    def propose(self, room: int) -> Draft:
        """Draft for as long as the rule says so (paper, algorithm 1)."""
        tokens: list[int] = []
        states: list[Tensor] = []
        newest, last = self.context[-1], self.last
        unread, before = self.unread, self.unread_before
        self.rule.begin()
        self.read = 0
        while True:
            position = self.length + len(tokens)
            state = self.target.run_layers(self.target.embed([newest]), position, self.cache, 0, self.exit_layer)
            states.append(state)
            if len(tokens) == min(self.config.gamma, room) or not self.rule.goes_on():
                break
            unread, before = torch.cat((unread, state), dim=1), torch.cat((before, last), dim=1)
            last = self.adapter(unread, position + 1 - unread.shape[1], self.adapter_cache, before)[:, -1:]
            unread = before = state[:, :0]
            self.read += 1
            newest, confidence = self._choose(last)
            if not self.rule.keeps(confidence):
                break
            tokens.append(newest)
        self.step_states = torch.cat(states, dim=1)
        return Draft(tokens, self.step_states, self.exit_layer)

    def _choose(self, state: Tensor) -> tuple[int, float]:
        """The most probable token after an adapter's state [1, 1, d], and its probability."""
        probabilities = self.draft_head(state[:, 0]).float().softmax(-1)
        best = probabilities.max(-1)
        token = best.indices if self.draft_ids is None else self.draft_ids[best.indices]
        # One transfer for both, the only wait for the device in a draft step (inherent to the early exit).
        confidence, drafted = torch.stack((best.values.double(), token.double())).flatten().tolist()
        return int(drafted), confidence

    def commit(self, accepted: int, final_states: Tensor) -> None:
        """Forget rejected drafts, and note what the adapter has to read before it drafts again.

        It has read all drafts but the last one, so that only after a full match one row is left (the one-token lag).
        With feedback it read them with its own states for want of the target's: they are read again.
        """
        self.rule.end(accepted)
        known = min(1, self.read) if self.feedback else self.read
        if self.read:
            self.unread = self.unread_before = self.step_states[:, :0]
        self.unread = torch.cat((self.unread, self.step_states[:, known : accepted + 1]), dim=1)
        if self.feedback:
            finals = torch.cat((self.last, self.target.final_norm(final_states)), dim=1)
            self.unread_before = torch.cat((self.unread_before, finals[:, known : accepted + 1]), dim=1)
            self.last = finals[:, -1:]


class ThresholdRule:
    """The paper's second early exit: the first draft below the threshold is kept, and the last one."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.confidence = 1.0

    def begin(self) -> None:
        """A step begins."""
        self.confidence = 1.0

    def goes_on(self) -> bool:
        """Whether to make another draft."""
        return self.confidence >= self.threshold

    def keeps(self, confidence: float) -> bool:
        """Whether the draft just made is worth verifying."""
        self.confidence = confidence
        return True

    def end(self, accepted: int) -> None:
        """The step's drafts were verified."""

    def reset(self) -> None:
        """A question begins."""


class GainRule:
    """Drafts as long as time spent on one more draft is expected to earn more than a step without it would.

    A draft's gain is the chance that it and all before it are accepted (calibrated confidences); its cost comes from
    the device's table; both are compared at the rate, tokens per vanilla step, that the question has seen so far.
    """

    def __init__(self, calibration: Calibration, costs: Costs):
        self.calibration, self.costs = calibration, costs
        self.reset()
        self.begin()

    def reset(self) -> None:
        """A question begins: the rate starts as vanilla's."""
        self.tokens = self.time = float(_PRIOR_STEPS)

    def begin(self) -> None:
        """A step begins."""
        self.made = self.kept = 0
        self.reached = 1.0  # chance that all drafts so far are accepted
        self.next = 1.0  # ... and that the next one is, if they are

    def goes_on(self) -> bool:
        """Whether to make another draft: before it is made, its chance is what the one before lets expect."""
        return self.reached * self.next > self._rate * (self.costs.draft + self._to_verify)

    def keeps(self, confidence: float) -> bool:
        """Whether the draft just made is worth verifying."""
        self.made += 1
        reached = self.reached * _interpolate(confidence, self.calibration.accepted)
        if reached <= self._rate * self._to_verify:
            return False
        self.kept += 1
        self.reached, self.next = reached, _interpolate(confidence, self.calibration.following)
        return True

    def end(self, accepted: int) -> None:
        """The step's drafts were verified."""
        c = self.costs
        self.tokens += accepted + 1
        self.time += c.shallow * (self.kept + 1) + c.draft * self.made + c.verify[self.kept]

    @property
    def _rate(self) -> float:
        return self.tokens / self.time

    @property
    def _to_verify(self) -> float:
        """What one more draft adds: its own pass through the first layers, and its place in the verification."""
        verify = self.costs.verify
        return self.costs.shallow + verify[self.kept + 1] - verify[self.kept]


def _interpolate(confidence: float, curve: Sequence[float]) -> float:
    """A calibrated curve between its points."""
    return float(np.interp(confidence, CALIBRATED_AT, curve))


def _completed(config: KangarooConfig, trained: AdapterConfig, stored: dict[str, Any]) -> KangarooConfig:
    """`config` with what it leaves open taken from the adapter's folder, else from the paper."""
    asked = "threshold" if config.threshold != -1 else ""  # a threshold is given to be used
    return replace(
        config,
        gamma=config.gamma or stored.get("gamma", 6),
        stop=config.stop or asked or stored.get("stop", "threshold"),
        threshold=stored.get("threshold", 0.6) if config.threshold == -1 else config.threshold,
        draft_vocab=trained.draft_vocab if config.draft_vocab < 0 else config.draft_vocab,
    )


def _weights_folder(asked: str, model: str) -> Path:
    if asked in ("", "paper"):
        return packaged_weights(model, paper=bool(asked))
    return Path(asked).expanduser()


def packaged_weights(model: str, *, paper: bool = False) -> Path:
    """Where the adapter that comes with the project for `model` lies, or the one built as published.

    Raises:
        UserError: there is none.

    """
    folder = WEIGHTS_ROOT / model / ("kangaroo-paper" if paper else "kangaroo")
    if not folder.is_dir():
        flag = "--architecture paper " if paper else ""
        raise UserError(
            f"no Kangaroo adapter comes with the project for model {model!r}: train one "
            f"(python run_bench.py train kangaroo {flag}--model ...) or name its folder (kangaroo:weights=FOLDER)"
        )
    return folder


def load_adapter(folder: Path, target: Decoder) -> tuple[Adapter, Stored]:
    """An adapter for `target` from our format or the authors', and what was stored with it.

    Raises:
        UserError: not an adapter's folder, an unreadable file, or an adapter for another target.

    """
    path = folder / CONFIG_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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
        knobs = dict(value.get("knobs", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no Kangaroo adapter: {CONFIG_FILE} is missing or malformed ({error})") from error
    if config.hidden_size != target.config.hidden:
        raise UserError(
            f"the adapter in {folder} is for another model: its hidden size is {config.hidden_size}, "
            f"but {target.name}'s is {target.config.hidden}"
        )
    weights = dict(_read_weights(folder))
    adapter = Adapter(config)
    for ours, parameter in adapter.named_parameters():
        found = weights.get(_NAMES[ours])
        if not isinstance(found, Tensor) or found.shape != parameter.shape:
            has = f"has shape {tuple(found.shape)}" if isinstance(found, Tensor) else "is missing"
            raise UserError(
                f"the adapter in {folder} does not fit its {CONFIG_FILE}: {_NAMES[ours]} {has}, "
                f"expected {tuple(parameter.shape)}"
            )
        parameter.data = found.float()
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
    (folder / CONFIG_FILE).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    ours, authors = folder / ADAPTER_FILE, folder / AUTHORS_FILE
    try:
        if ours.is_file():
            from safetensors.torch import load_file

            yield from load_file(ours).items()
        elif authors.is_file():
            yield from torch.load(authors, map_location="cpu", weights_only=True).items()
        else:
            raise UserError(f"{folder} is no Kangaroo adapter: it has neither {ADAPTER_FILE} nor {AUTHORS_FILE}")
    except UserError:
        raise
    except Exception as error:  # safetensors, pickle and torch each have their own
        raise UserError(f"the adapter's weights in {folder} cannot be read: {error}") from error


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


def _draft_ids(size: int, ranking: Tensor | None, target: Decoder, folder: Path) -> Tensor | None:
    """Ids of the `size` most frequent tokens, or None for the whole vocabulary."""
    if size == 0 or size >= target.config.vocab:
        return None
    if ranking is None or len(ranking) < size:
        known = 0 if ranking is None else len(ranking)
        raise UserError(
            f"draft_vocab={size} is more than the {known} tokens ranked by frequency in {folder}: "
            f"take draft_vocab=0 (the whole vocabulary){f' or at most {known}' if known else ''}"
        )
    return ranking[:size].long().sort().values.to(target.device)
