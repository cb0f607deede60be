"""Kangaroo: self-speculation with double early exit (Liu et al., arXiv 2404.18911).

The draft model is the target's first `exit_layer` layers, a small adapter and the target's LM head; the remaining
layers verify, starting from the exit states that drafting already computed. First early exit: the exit layer. Second:
drafting stops once a draft's probability falls below `threshold`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

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
# The authors' names of our parameters; both formats use them.
_NAMES = {
    "q.weight": "layers.0.self_attn.q_proj.weight",
    "k.weight": "layers.0.self_attn.k_proj.weight",
    "v.weight": "layers.0.self_attn.v_proj.weight",
    "o.weight": "layers.0.self_attn.o_proj.weight",
    "input_norm": "layers.0.input_layernorm.weight",
    "output_norm": "norm.weight",
}


@dataclass(frozen=True)
class KangarooConfig:
    """The knobs of Kangaroo; the defaults of `gamma` and `threshold` are the paper's."""

    exit_layer: int = field(default=0, metadata={"help": "layers of the draft model; 0: what the adapter was made for"})
    gamma: int = field(default=6, metadata={"help": "most drafts in a step"})
    threshold: float = field(
        default=0.6, metadata={"help": "stop drafting below this probability of the last draft; 0: never"}
    )
    draft_vocab: int = field(
        default=-1,
        metadata={
            "help": "cut the draft's LM head to the n most frequent tokens (FR-Spec); 0: whole; -1: as the adapter says"
        },
    )
    weights: str = field(default="", metadata={"help": "folder of the adapter; default: the packaged one of the model"})

    def __post_init__(self) -> None:
        if self.exit_layer < 0:
            raise ValueError(f"exit_layer={self.exit_layer} must not be negative")
        if self.draft_vocab < -1:
            raise ValueError(f"draft_vocab={self.draft_vocab} must be at least -1")
        if self.gamma < 1:
            raise ValueError(f"gamma={self.gamma} must be at least 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie in [0, 1]")


@dataclass(frozen=True)
class AdapterConfig:
    """Dimensions of an adapter, and what it was made for: exit layer (0: unknown) and draft vocabulary (0: whole)."""

    hidden_size: int
    num_attention_heads: int
    rms_norm_eps: float
    exit_layer: int = 0
    draft_vocab: int = 0

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % (2 * heads):
            raise ValueError(
                f"num_attention_heads={heads} does not split hidden_size={self.hidden_size} into even parts"
            )


class Adapter(nn.Module):
    """h -> RMSNorm(h + Attention(RMSNorm(h))): what stands between exit layer and LM head (paper, section 3.1).

    Multi-head, no biases, no FFN, own RoPE (base 10000): 4 d^2 + 2 d parameters, 67M for Vicuna-7B.
    """

    def __init__(self, config: AdapterConfig):
        super().__init__()
        d = config.hidden_size
        self.config = config
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.input_norm = nn.Parameter(torch.ones(d))
        self.output_norm = nn.Parameter(torch.ones(d))
        self._packed: tuple[Linear, Linear] | None = None
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
        qkv = torch.cat([self.q.weight, self.k.weight, self.v.weight]).detach()
        self._packed = (Linear(qkv, packed=packed), Linear(self.o.weight.detach(), packed=packed))

    def forward(self, h: Tensor, start: int = 0, cache: KVCache | None = None) -> Tensor:
        """Exit states [B, n, d] at positions start..start+n -> states for the LM head [B, n, d].

        Without a cache the n positions are all there is (training).
        """
        c = self.config
        batch, n, _ = h.shape
        heads = c.num_attention_heads
        x = rms_norm(h, self.input_norm, c.rms_norm_eps)
        qkv = self._packed[0](x) if self._packed else torch.cat((self.q(x), self.k(x), self.v(x)), dim=-1)
        qkv = qkv.view(batch, n, 3 * heads, -1)
        rope = fused_rope(self.cos[start : start + n], self.sin[start : start + n], 2 * heads, heads)
        qkv = apply_rope(qkv, *rope)
        mask = None
        if cache is not None:
            k, v = cache.update(0, start, qkv[:, :, heads:])
            if n > 1 and start > 0:
                rows = torch.arange(start, start + n, device=h.device)[:, None]
                mask = rows >= torch.arange(start + n, device=h.device)
        else:
            k, v = qkv[:, :, heads:].transpose(1, 2).chunk(2, dim=1)
        out = attend(qkv[:, :, :heads], k, v, mask)
        h = self._packed[1].plus(h, out) if self._packed else h + self.o(out)
        return rms_norm(h, self.output_norm, c.rms_norm_eps)


class Kangaroo(SpeculativeMethod):
    """Drafts with the target's own first layers; see the module's docstring."""

    Config = KangarooConfig

    def __init__(self, target: Decoder, config: KangarooConfig):
        super().__init__(target, config)
        folder = Path(config.weights).expanduser() if config.weights else packaged_weights(target.name)
        self.adapter, ranking = load_adapter(folder, target)
        trained = self.adapter.config
        self.exit_layer = _choose_exit_layer(config.exit_layer, trained.exit_layer, target, folder)
        draft_vocab = trained.draft_vocab if config.draft_vocab < 0 else config.draft_vocab
        # Records show what ran, not what was left open.
        self.config = replace(config, exit_layer=self.exit_layer, draft_vocab=draft_vocab)
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
        self.draft_ids = _draft_ids(draft_vocab, ranking, target, folder)
        self.draft_head = target.head if self.draft_ids is None else target.cut_head(self.draft_ids)
        self.unseen: Tensor  # exit states [1, m, d] that the adapter has not read, the last ones of the context
        self.drafted = 0  # drafts of the step under way

    @property
    def extra_parameters(self) -> int:
        """The adapter's weights; the LM head is the target's, cut or whole."""
        return sum(p.numel() for p in self.adapter.parameters())

    def begin(self, exit_states: Tensor, final_states: Tensor) -> None:
        """Let the adapter read the prompt."""
        self.adapter(exit_states, 0, self.adapter_cache)
        self.unseen = exit_states[:, :0]

    def propose(self, room: int) -> Draft:
        """Draft while confident (paper, algorithm 1). The first unconfident draft is kept, and verified."""
        tokens: list[int] = []
        states: list[Tensor] = []
        newest, confident = self.context[-1], True
        while True:
            position = self.length + len(tokens)
            state = self.target.run_layers(self.target.embed([newest]), position, self.cache, 0, self.exit_layer)
            states.append(state)
            self.unseen = torch.cat((self.unseen, state), dim=1)
            if len(tokens) == min(self.config.gamma, room) or not confident:
                break
            newest, confidence = self._draft(position)
            confident = confidence >= self.config.threshold
            tokens.append(newest)
        self.drafted = len(tokens)
        return Draft(tokens, torch.cat(states, dim=1), self.exit_layer)

    def _draft(self, position: int) -> tuple[int, float]:
        """The draft to follow `position`, and its probability. Reads what the adapter has not yet seen."""
        lag = self.unseen.shape[1]
        h = self.adapter(self.unseen, position + 1 - lag, self.adapter_cache)[:, -1]
        self.unseen = self.unseen[:, :0]
        probabilities = self.draft_head(h).float().softmax(-1)
        best = probabilities.max(-1)
        token = best.indices if self.draft_ids is None else self.draft_ids[best.indices]
        # One transfer for both, the only wait for the device in a draft step (inherent to the early exit).
        confidence, drafted = torch.stack((best.values.double(), token.double())).flatten().tolist()
        return int(drafted), confidence

    def commit(self, accepted: int, final_states: Tensor) -> None:
        """Forget rejected drafts. After a full match the adapter has not yet read the last draft: the one-token lag."""
        rejected = self.drafted - accepted
        self.unseen = self.unseen[:, : max(0, self.unseen.shape[1] - rejected)]


def packaged_weights(model: str) -> Path:
    """Where the adapter that comes with the project for `model` lies.

    Raises:
        UserError: there is none.

    """
    folder = WEIGHTS_ROOT / model / "kangaroo"
    if not folder.is_dir():
        raise UserError(
            f"no Kangaroo adapter comes with the project for model {model!r}: train one "
            "(python run_bench.py train kangaroo --model ...) or name its folder (--method kangaroo:weights=FOLDER)"
        )
    return folder


def load_adapter(folder: Path, target: Decoder) -> tuple[Adapter, Tensor | None]:
    """An adapter for `target` from our format or the authors', and its tokens by falling frequency, if recorded.

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
        )
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
    return adapter.to(target.device, target.dtype).requires_grad_(False), weights.get("token_ranking")


def save_adapter(folder: Path, adapter: Adapter, ranking: Tensor) -> None:
    """Write `adapter` and its tokens by falling frequency in our format (two files in an existing folder)."""
    from safetensors.torch import save_file

    tensors = {_NAMES[ours]: tensor.detach().float().cpu() for ours, tensor in adapter.named_parameters()}
    save_file({**tensors, "token_ranking": ranking.to(torch.int32)}, folder / ADAPTER_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(adapter.config), indent=1) + "\n", encoding="utf-8")


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
