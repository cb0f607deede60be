"""Kangaroo's adapter: the network between exit layer and LM head, and its files."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.drafting import trained
from bench.drafting.levels import one_before
from bench.drafting.stopping import Calibration
from bench.drafting.trained import Count, Knobs, Size
from bench.drafting.trained import Stored as Stored
from bench.engine.attention import additive, apply_rope, attend, fused_rope, rms_norm, rotation
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.graphs import Fixed, Graphs
from bench.engine.places import Places
from bench.engine.products import Layout, Linear
from bench.engine.quantize import GROUP
from bench.errors import UserError

ADAPTER_FILE, AUTHORS_FILE = FILES = ("adapter.safetensors", "pytorch_model.bin")
_WHAT = "Kangaroo adapter"
_ROPE_BASE = 10000.0  # of the authors' adapter, whatever the target's
# The authors' names of our parameters, and names in their style for those that they do not have. Both formats use them.
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
    "head.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class AdapterConfig:
    """Dimensions of an adapter, and what it was made for: exit layer (0: unknown) and draft vocabulary (0: whole)."""

    hidden_size: Size
    num_attention_heads: Size
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)]
    exit_layer: Count = 0
    draft_vocab: Count = 0
    feedback: bool = False
    ffn: Count = 0  # width of a feed-forward block; 0: none
    attention: bool = True
    gated: bool = True  # the block has three matrices, as the target's do; else two
    own_head: Count = 0  # tokens of an LM head of its own; 0: it shares the target's

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % (2 * heads):
            raise ValueError(
                f"num_attention_heads={heads} does not split hidden_size={self.hidden_size} into even parts"
            )
        if not self.attention and (self.feedback or not self.ffn):
            raise ValueError("an adapter without attention needs an ffn and cannot have feedback")


@dataclass(frozen=True)
class _OurFile(AdapterConfig):
    """Our config.json."""

    calibration: Calibration | None = None
    knobs: Knobs = field(default_factory=Knobs)


@dataclass(frozen=True)
class _AuthorsFile:
    """What we read of the authors' config.json, a Llama's: one layer of plain attention."""

    hidden_size: Size
    num_attention_heads: Size
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)]
    num_hidden_layers: Literal[1] = 1
    num_key_value_heads: Size | None = None
    attention_bias: Literal[False] = False
    rope_theta: Annotated[float, Field(ge=_ROPE_BASE, le=_ROPE_BASE)] = _ROPE_BASE
    rope_scaling: None = None

    def __post_init__(self) -> None:
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError(f"num_key_value_heads={self.num_key_value_heads} must be num_attention_heads")
        self.dimensions()

    def dimensions(self) -> AdapterConfig:
        """The adapter's dimensions; ValueError where these do not fit together."""
        return AdapterConfig(self.hidden_size, self.num_attention_heads, self.rms_norm_eps)


class Adapter(nn.Module):
    """The network between exit layer and LM head (paper, section 3.1): h -> RMSNorm(h + Attention(RMSNorm(h))).

    Multi-head, no biases, no FFN, own RoPE (base 10000): 4 d^2 + 2 d parameters, 67M for Vicuna-7B.

    The paper's other adapters (Table 2): with `ffn`, a feed-forward block of that width follows the attention, or
    replaces it (`attention` false); with `own_head`, the LM head is a copy of the target's that is trained as well.

    Beyond the paper: with `feedback` the input is a projection of the exit state and of the target's final state one
    position before (while drafting ahead: the adapter's own output there, as in EAGLE, arXiv 2401.15077), which
    verification computed anyway.
    """

    def __init__(self, config: AdapterConfig):
        super().__init__()
        d = config.hidden_size
        self.config = config
        self.input = nn.Linear(2 * d, d, bias=False) if config.feedback else None
        if config.attention:
            self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
            self.input_norm = nn.Parameter(torch.ones(d))
        if config.ffn:
            self.ffn_norm = nn.Parameter(torch.ones(d))
            if config.gated:
                self.gate = nn.Linear(d, config.ffn, bias=False)
            self.up = nn.Linear(d, config.ffn, bias=False)
            self.down = nn.Linear(config.ffn, d, bias=False)
        self.output_norm = nn.Parameter(torch.ones(d))
        self.head = nn.Linear(d, config.own_head, bias=False) if config.own_head else None
        self.packed: dict[str, Linear] = {}  # see `pack`
        self.graphs: Graphs | None = None  # the target's
        self.cos: Tensor  # [positions, D]
        self.sin: Tensor

    def prepare(self, max_len: int, device: torch.device) -> None:
        """Build the RoPE table for `max_len` positions."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        inverse = _ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.arange(max_len)[:, None] * inverse.repeat(2)
        dtype = self.output_norm.dtype
        cos, sin = rotation(angles.cos(), angles.sin())
        self.cos, self.sin = cos.to(device, dtype), sin.to(device, dtype)

    def pack(self, layout: Layout, quantize: str = "none") -> None:
        """Fuse the matrices in the target's layout for inference. Training has no effect on them afterwards.

        `quantize`: as `Linear`'s; of those that it can be done to.
        """
        c = self.config
        groups: dict[str, list[nn.Linear]] = {}
        if c.attention:
            groups = {"qkv": [self.q, self.k, self.v], "o": [self.o]}
        if self.input is not None:
            groups["input"] = [self.input]
        if c.ffn:
            groups |= {"up": [self.gate, self.up] if c.gated else [self.up], "down": [self.down]}
        self.packed = {
            name: Linear(
                torch.cat([part.weight for part in parts]).detach(),
                layout=layout,
                quantize="none" if parts[0].in_features % GROUP else quantize,
            )
            for name, parts in groups.items()
        }

    def forward(
        self, h: Tensor, places: Places | int = 0, cache: KVCache | None = None, before: Tensor | None = None
    ) -> Tensor:
        """Exit states h [B, n, d] at their places -> states for the LM head [B, n, d].

        `places`: as for `Decoder.run_layers`. `before` [B, n, d] (feedback only): post-norm final states one position
        before each. Without a cache, as in training, the n positions are the whole sequence.
        """
        if isinstance(places, int):
            places = Places.after(places, h.shape[1], h.shape[0])
        if self.graphs is not None and cache is not None and self.config.attention:
            body = functools.partial(self._forward_fixed, cache)
            inputs = [h] if self.input is None or before is None else [h, before]
            states = self.graphs.run(cache, "adapter", body, inputs, places)
            if states is not None:
                return states
        x = self.join(h, before)
        if not self.config.attention:  # every position on its own
            return self.finish(x, None)
        heads, n = self.config.num_attention_heads, h.shape[1]
        span = places.spans[0]
        rows: Tensor | slice = slice(span.first, span.first + n)
        mask = None
        if span.depths is not None:
            rows = span.base + span.depths
        if span.depths is not None or (n > 1 and span.first > 0):
            mask = additive(places.seen(h.device)[0], h.dtype)
        qkv = self.qkv(x, rows)
        if cache is not None:
            k, v = cache.update(0, places, qkv[:, :, heads:])
        else:
            k, v = qkv[:, :, heads:].transpose(1, 2).chunk(2, dim=1)
        return self.finish(x, attend(qkv[:, :, :heads], k, v, mask))

    def _forward_fixed(self, cache: KVCache, fixed: Fixed, h: Tensor, before: Tensor | None = None) -> Tensor:
        """The same over h [1, w, d] with all sizes fixed, for graph capture."""
        heads = self.config.num_attention_heads
        x = self.join(h, before)
        qkv = self.qkv(x, fixed.positions)
        k, v = cache.update_rows(0, fixed.rows, qkv[:, :, heads:], fixed.length)
        return self.finish(x, attend(qkv[:, :, :heads], k, v, fixed.mask))

    def join(self, h: Tensor, before: Tensor | None) -> Tensor:
        """The input of attention: the exit states, with feedback projected together with the states before."""
        if self.input is None:
            return h
        assert before is not None
        x = torch.cat((h, before), dim=-1)
        return self.packed["input"](x) if self.packed else self.input(x)

    def qkv(self, x: Tensor, places: Tensor | slice) -> Tensor:
        """Rotated queries and keys, and values of x [B, n, d] at positions `places`: [B, n, 3 * H, D]."""
        c, (batch, n, _) = self.config, x.shape
        normed = rms_norm(x, self.input_norm, c.rms_norm_eps)
        if self.packed:
            qkv = self.packed["qkv"](normed)
        else:
            qkv = torch.cat((self.q(normed), self.k(normed), self.v(normed)), dim=-1)
        heads = c.num_attention_heads
        rope = fused_rope(self.cos[places], self.sin[places], 2 * heads, heads)
        return apply_rope(qkv.view(batch, n, 3 * heads, -1), *rope)

    def finish(self, x: Tensor, attended: Tensor | None) -> Tensor:
        """The rest of the adapter after attention (None: it has none), [B, n, d] -> [B, n, d]."""
        c = self.config
        if attended is not None:
            x = self.packed["o"].plus(x, attended) if self.packed else x + self.o(attended)
        if c.ffn:
            inner = self._inner(rms_norm(x, self.ffn_norm, c.rms_norm_eps))
            x = self.packed["down"].plus(x, inner) if self.packed else x + self.down(inner)
        return rms_norm(x, self.output_norm, c.rms_norm_eps)

    def _inner(self, normed: Tensor) -> Tensor:
        """The feed-forward block's inner states, [B, n, d] -> [B, n, ffn]."""
        if not self.config.gated:
            return F.silu(self.packed["up"](normed) if self.packed else self.up(normed))
        if self.packed:
            gate, up = self.packed["up"](normed).chunk(2, dim=-1)
        else:
            gate, up = self.gate(normed), self.up(normed)
        return F.silu(gate) * up

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


def _is_authors(folder: Path) -> bool:
    return (folder / AUTHORS_FILE).is_file() and not (folder / ADAPTER_FILE).is_file()


def read_dimensions(folder: Path, target: trained.Dimensioned) -> tuple[AdapterConfig, Calibration | None, Knobs]:
    """Read all that an adapter's config.json says.

    Raises:
        UserError: a missing or malformed file, or an adapter for another target.

    """
    calibration, knobs = None, Knobs()
    if _is_authors(folder):
        config = trained.read_config(folder, _WHAT, _AuthorsFile, lenient=True).dimensions()
    else:
        ours = trained.read_config(folder, _WHAT, _OurFile)
        config = AdapterConfig(**{f.name: getattr(ours, f.name) for f in fields(AdapterConfig)})
        calibration, knobs = ours.calibration, ours.knobs
    trained.check_model(config.hidden_size, config.draft_vocab, target, folder, _WHAT)
    tokens = config.draft_vocab or target.config.vocab
    if config.own_head not in (0, tokens):
        raise UserError(
            f"the {_WHAT} in {folder} has an LM head of {config.own_head} tokens, but is for {tokens} of {target.name}"
        )
    return config, calibration, knobs


def load_adapter(folder: Path, target: Decoder) -> tuple[Adapter, Stored]:
    """Read an adapter for `target`, in our format or the authors', and what was stored with it.

    Raises:
        UserError: no adapter's folder, an unreadable or malformed file, or an adapter for another target.

    """
    config, calibration, knobs = read_dimensions(folder, target)
    others = {trained.RANKING}
    if _is_authors(folder):
        others = {"embed_tokens.weight", "layers.0.self_attn.rotary_emb.inv_freq"}  # which drafting does not use
    weights = trained.read_tensors(folder, _WHAT, FILES)
    adapter = trained.filled(lambda: Adapter(config), weights, _NAMES, target, folder, _WHAT, others)
    return adapter, Stored(trained.token_ranking(weights, target, folder), calibration, dict(knobs))


def save_adapter(folder: Path, adapter: Adapter, stored: Stored) -> None:
    """Write `adapter` and what belongs to it in our format: two files in an existing folder, in half precision."""
    trained.save(folder / ADAPTER_FILE, adapter, _NAMES, adapter.config, stored)


def published_call(target: Decoder) -> Callable[[], object] | None:
    """Return a call of the published adapter (paper, section 3.1) and of the target's LM head over one position."""
    c, device = target.config, target.device
    if c.hidden % (2 * c.heads):
        return None
    with torch.device(device):
        adapter = Adapter(AdapterConfig(c.hidden, c.heads, c.norm_eps)).to(target.dtype)
    adapter.prepare(target.max_len, device)
    adapter.pack(target.layout)
    adapter.graphs = target.graphs
    cache = KVCache(1, c.heads, c.hidden // c.heads, target.max_len, dtype=target.dtype, device=device)
    cache.zero()
    state, place = torch.randn(1, 1, c.hidden, device=device).to(target.dtype), target.max_len // 2
    return lambda: target.head(adapter(state, place, cache)[0]).argmax(-1).tolist()
