"""EAGLE's head: one decoder layer on the target's features, and its files.

A *pair* is a feature of the target at position i and the embedding of the token at i + 1, which is known when the head
drafts the token at i + 2. The head's output for the pair stands for the feature at i + 1 and is fed back with the
drafted token. Version 1 (arXiv 2401.15077, section 4.1; EAGLE-2, arXiv 2406.16858, has the same network): the feature
is the target's post-norm final state, and a projection of the pair goes through the layer. Version 3 (arXiv 2503.01840,
section 3.1): the feature is a projection of states after several layers, and attention reads both halves of the pair.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.drafting import trained
from bench.drafting.levels import one_before
from bench.drafting.stopping import Calibration
from bench.drafting.trained import Count, Knobs, Size, Stored
from bench.engine.attention import additive, apply_rope, attend, fused_rope, rms_norm, rope_table
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.graphs import Fixed, Graphs
from bench.engine.places import Places
from bench.engine.products import Layout, Linear
from bench.engine.quantize import GROUP
from bench.errors import UserError
from bench.files import first_line
from bench.typed_json import Json

FILES = ("head.safetensors", "model.safetensors", "pytorch_model.bin")  # ours, and published ones: see `formats`
_WHAT = "EAGLE head"
OWN_LAYER = "layers.0."
NAMES = {  # in files: the authors' names of our parameters
    "fc.weight": "fc.weight",
    "fc.bias": "fc.bias",
    "tap_norm": "fc_norm.weight",
    **{f"{part}.{kind}": f"{OWN_LAYER}self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")},
    **{f"{part}_norm": f"{OWN_LAYER}self_attn.{part}_norm.weight" for part in "qk"},
    **{f"{part}.weight": f"{OWN_LAYER}mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    "input_norm": f"{OWN_LAYER}input_layernorm.weight",
    "hidden_norm": f"{OWN_LAYER}hidden_norm.weight",
    "post_norm": f"{OWN_LAYER}post_attention_layernorm.weight",
    "output_norm": "norm.weight",
    "head.weight": "lm_head.weight",
}
_PRODUCTS = {"fc": ("fc",), "qkv": ("q", "k", "v"), "out": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


@dataclass(frozen=True)
class HeadConfig:
    """The dimensions and the form of a head. The defaults are our own form of version 1, see `Head`."""

    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    intermediate_size: Size
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)]
    rope_theta: Annotated[float, Field(ge=0, le=1e12)] = 0.0  # 0: rotations are the target's
    rope_scaling: dict[str, Json] = field(default_factory=dict)  # as in transformers; with a rope_theta of its own
    version: Literal[1, 3] = 1
    draft_vocab: Count = 0  # tokens that it drafts; 0: all
    taps: tuple[Count, ...] = ()  # version 3: the numbers of layers after which it reads the target's states
    own_head: Count = 0  # rows of an LM head of its own, by rising token id; 0: it shares the target's
    fc_bias: bool = False  # published: version 1 has one, as a rule
    qkv_bias: bool = False
    qk_norm: bool = False  # norms of queries and keys, as Qwen 3 has
    input_norm: bool = True  # version 1: before attention (published: none); version 3: of the embedding
    output_norm: bool = True  # before the LM head (published: version 1 has none); in version 1 it is fed back
    norm_before_residual: bool = False  # version 3: the residual is the feature under its norm
    fc_norm: bool = False  # version 3.1: each tap has a norm
    norm_before_fc: bool = False  # version 3: the taps have a norm over all of them
    norm_output: bool = False  # version 3.1: what is fed back is under the output's norm

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even")
        if self.rope_scaling and not self.rope_theta:
            raise ValueError("rope_scaling needs a rope_theta")
        if (self.version == 3) != bool(self.taps):
            raise ValueError(f"version={self.version} {'needs' if self.version == 3 else 'has no'} taps")
        if tuple(sorted(set(self.taps))) != self.taps:
            raise ValueError(f"taps={list(self.taps)} must rise")
        only_3 = ("norm_before_residual", "fc_norm", "norm_before_fc", "norm_output")
        if self.version == 1 and (given := [name for name in only_3 if getattr(self, name)]):
            raise ValueError(f"{given[0]} is of version 3")
        if self.fc_norm and self.norm_before_fc:
            raise ValueError("fc_norm and norm_before_fc exclude each other")
        if self.norm_output and not self.output_norm:
            raise ValueError("norm_output needs output_norm")

    @classmethod
    def of(cls, target: trained.Dimensioned, **changes: Any) -> HeadConfig:
        """Return the dimensions of a layer of the target's, with `changes`."""
        c = target.config
        sizes = (c.hidden, c.heads, c.kv_heads, c.head_dim, c.intermediate, c.norm_eps)
        names = [f.name for f in fields(cls)][: len(sizes)]
        return cls(**{**dict(zip(names, sizes, strict=True)), "qk_norm": c.qk_norm, **changes})

    @property
    def feeds_back_normed(self) -> bool:
        """Whether outputs are under the output's norm when they are fed back."""
        return self.output_norm and (self.version == 1 or self.norm_output)


@dataclass(frozen=True)
class _File(HeadConfig):
    """config.json."""

    calibration: Calibration | None = None
    knobs: Knobs = field(default_factory=Knobs)


class Head(nn.Module):
    """A decoder layer over pairs: embeddings e [B, n, d] and features f [B, n, d] -> outputs [B, n, d].

    Version 1: x = fc [e ; f] and then a Llama layer, published without a norm before its attention and after it. Ours
    has both, so that what is fed back is scaled as the features are. Version 3: attention reads [norm(e) ; norm(f)], of
    width 2 d, and is added to f; the output is fed back as it is, and goes to the LM head under a norm.
    """

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = c = config
        d, width = c.hidden_size, c.head_dim
        read = (1 if c.version == 1 else 2) * d  # by attention
        self.fc = nn.Linear(2 * d if c.version == 1 else len(c.taps) * d, d, bias=c.fc_bias)
        self.q = nn.Linear(read, c.num_attention_heads * width, bias=c.qkv_bias)
        self.k, self.v = (nn.Linear(read, c.num_key_value_heads * width, bias=c.qkv_bias) for _ in range(2))
        self.o = nn.Linear(c.num_attention_heads * width, d, bias=False)
        self.gate, self.up = (nn.Linear(d, c.intermediate_size, bias=False) for _ in range(2))
        self.down = nn.Linear(c.intermediate_size, d, bias=False)

        def norm(exists: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.ones(*shape)) if exists else None

        self.q_norm, self.k_norm = norm(c.qk_norm, width), norm(c.qk_norm, width)
        self.input_norm = norm(c.input_norm, d)
        self.hidden_norm = norm(c.version == 3, d)
        self.post_norm = nn.Parameter(torch.ones(d))
        self.output_norm = norm(c.output_norm, d)
        self.tap_norm = norm(c.fc_norm or c.norm_before_fc, *((len(c.taps), d) if c.fc_norm else (len(c.taps) * d,)))
        self.head = nn.Linear(d, c.own_head, bias=False) if c.own_head else None
        self.packed: dict[str, Linear] = {}  # see `pack`
        self.graphs: Graphs | None = None  # the target's
        self.cos: Tensor  # [positions, D]
        self.sin: Tensor

    def prepare(self, target: Decoder) -> None:
        """Build the RoPE table for all of the target's positions.

        Raises:
            UserError: the settings make none.

        """
        c, dtype = self.config, self.post_norm.dtype
        if not c.rope_theta:
            self.cos, self.sin = target.cos.to(dtype), target.sin.to(dtype)
            return
        from transformers import LlamaConfig

        rope = {"rope_type": "default", "rope_theta": c.rope_theta, **c.rope_scaling}
        try:
            llama = LlamaConfig(
                hidden_size=c.hidden_size, num_attention_heads=c.num_attention_heads, head_dim=c.head_dim,
                max_position_embeddings=target.config.context, rope_parameters=rope,
            )  # fmt: skip
            self.cos, self.sin = rope_table(llama, len(target.cos), dtype, target.device)
        except Exception as error:  # transformers raises nearly every type here
            raise UserError(
                f"the RoPE settings {rope} of the {_WHAT} cannot be used ({first_line(error)}): fetch it again"
            ) from error

    def pack(self, layout: Layout, quantize: str = "none") -> None:
        """Fuse the matrices in the target's layout for inference. Training has no effect on them afterwards.

        `quantize`: as `Linear`'s; of those that it can be done to.
        """
        for name, parts in _PRODUCTS.items():
            every = [getattr(self, part) for part in parts]
            bias = torch.cat([part.bias for part in every]).detach() if every[0].bias is not None else None
            self.packed[name] = Linear(
                torch.cat([part.weight for part in every]).detach(),
                bias,
                layout=layout,
                quantize="none" if every[0].in_features % GROUP else quantize,
                paired=name == "gate_up",
            )

    def _product(self, name: str, x: Tensor) -> Tensor:
        if self.packed:
            return self.packed[name](x)
        every = [getattr(self, part)(x) for part in _PRODUCTS[name]]
        return every[0] if len(every) == 1 else torch.cat(every, dim=-1)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else rms_norm(x, weight, self.config.rms_norm_eps)

    def join_taps(self, taps: Tensor) -> Tensor:
        """The features [B, n, d] of the target's states after the tapped layers, side by side [B, n, k d].

        Version 1: the features are the target's post-norm final states, and come back as they are.
        """
        if self.config.version == 1:
            return taps
        if self.config.fc_norm:
            assert self.tap_norm is not None
            parts = taps.split(self.config.hidden_size, dim=-1)
            taps = torch.cat([self._norm(x, weight) for x, weight in zip(parts, self.tap_norm, strict=True)], dim=-1)
        else:
            taps = self._norm(taps, self.tap_norm)
        return self._product("fc", taps)

    def forward(
        self, embedded: Tensor, features: Tensor, places: Places | int = 0, cache: KVCache | None = None
    ) -> Tensor:
        """Pairs [B, n, d] each at the places of their features -> outputs [B, n, d], which are fed back as features.

        `embedded`: of the token after each feature. `features`: from `join_taps`, or outputs. `places`: as for
        `Decoder.run_layers`. Without a cache, as in training, the n pairs are the whole text.
        """
        if isinstance(places, int):
            places = Places.after(places, embedded.shape[1], embedded.shape[0])
        if self.graphs is not None and cache is not None:
            body = functools.partial(self._forward_fixed, cache)
            outputs = self.graphs.run(cache, "head", body, [embedded, features], places)
            if outputs is not None:
                return outputs
        n, span = embedded.shape[1], places.spans[0]
        residual, x = self._join(embedded, features)
        rows: Tensor | slice = slice(span.first, span.first + n)
        mask = None
        if span.depths is not None:
            rows = span.base + span.depths
        if span.depths is not None or (n > 1 and span.first > 0):
            mask = self._grouped(additive(places.seen(x.device)[0], x.dtype))
        qkv, heads = self._qkv(x, rows), self.config.num_attention_heads
        if cache is not None:
            k, v = cache.update(0, places, qkv[:, :, heads:])
        else:
            k, v = qkv[:, :, heads:].transpose(1, 2).chunk(2, dim=1)
        return self._finish(residual, attend(qkv[:, :, :heads], k, v, mask))

    def _forward_fixed(self, cache: KVCache, fixed: Fixed, embedded: Tensor, features: Tensor) -> Tensor:
        """The same over pairs [1, w, d] with all sizes fixed, for graph capture."""
        residual, x = self._join(embedded, features)
        qkv, heads = self._qkv(x, fixed.positions), self.config.num_attention_heads
        k, v = cache.update_rows(0, fixed.rows, qkv[:, :, heads:], fixed.length)
        return self._finish(residual, attend(qkv[:, :, :heads], k, v, self._grouped(fixed.mask)))

    def _grouped(self, mask: Tensor) -> Tensor:
        """[n, S] -> [G n, S], as `attend` takes it where G heads share keys."""
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        return mask.expand(group, -1, -1).reshape(-1, mask.shape[1])

    def _join(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """What attention is added to [B, n, d], and what it reads [B, n, d] or, in version 3, [B, n, 2 d]."""
        if self.config.version == 1:
            x = self._product("fc", torch.cat((embedded, features), dim=-1))
            return x, self._norm(x, self.input_norm)
        normed = self._norm(features, self.hidden_norm)
        residual = normed if self.config.norm_before_residual else features
        return residual, torch.cat((self._norm(embedded, self.input_norm), normed), dim=-1)

    def _qkv(self, x: Tensor, rows: Tensor | slice) -> Tensor:
        """Rotated queries and keys, and values, at positions `rows`: [B, n, H + 2 H_kv, D]."""
        c, (batch, n, _) = self.config, x.shape
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        qkv = self._product("qkv", x).view(batch, n, -1, c.head_dim)
        if c.qk_norm:
            q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=2)
            qkv = torch.cat((self._norm(q, self.q_norm), self._norm(k, self.k_norm), v), dim=2)
        return apply_rope(qkv, *fused_rope(self.cos[rows], self.sin[rows], heads + kv_heads, kv_heads))

    def _finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after attention, [B, n, H D] -> [B, n, d]."""
        x = residual + self._product("out", attended)
        gate, up = self._product("gate_up", self._norm(x, self.post_norm)).chunk(2, dim=-1)
        x = x + self._product("down", F.silu(gate) * up)
        return self._norm(x, self.output_norm) if self.config.feeds_back_normed else x

    def head_states(self, outputs: Tensor) -> Tensor:
        """What the LM head reads of outputs [.., d]."""
        return outputs if self.config.feeds_back_normed else self._norm(outputs, self.output_norm)

    def unrolled(self, embedded: Tensor, features: Tensor, depth: int) -> Iterator[Tensor]:
        """Outputs [B, n, d] of the 1st, 2nd, .. draft of chains that begin at every pair (training-time test).

        The w-th outputs at row t belong to the chain begun at row t - w + 1: up to there the target's features are
        known, after it the head has its own outputs. `embedded`, `features` (from `join_taps`) [B, n, d]: all pairs of
        whole conversations, the first of which is feature 0 with token 1.
        """
        n, heads = embedded.shape[1], self.config.num_attention_heads
        ago = torch.arange(n, device=embedded.device)[:, None] - torch.arange(n, device=embedded.device)
        keys: list[Tensor] = []
        for w in range(1, depth + 1):
            residual, x = self._join(embedded, features)
            qkv = self._qkv(x, slice(0, n))
            keys.append(qkv[:, :, heads:].transpose(1, 2))
            # Keys of the chain's own drafts come from the pass that made them, all earlier ones from the first.
            mask = torch.cat([ago >= w - 1, *(ago == w - made for made in range(2, w + 1))], dim=1)
            k, v = (torch.cat(parts, dim=2) for parts in zip(*(made.chunk(2, dim=1) for made in keys), strict=True))
            outputs = self._finish(residual, attend(qkv[:, :, :heads], k, v, self._grouped(mask)))
            yield outputs
            features = one_before(outputs)  # an output is the feature of the pair after it


def read_dimensions(folder: Path, target: trained.Dimensioned) -> tuple[HeadConfig, Calibration | None, Knobs]:
    """Read all that a head's config.json says.

    Raises:
        UserError: a missing or malformed file, or a head for another target.

    """
    from methods.eagle import formats

    calibration, knobs = None, Knobs()
    if formats.is_published(folder, FILES[0]):
        config = formats.read(folder, target, _WHAT).config
    else:
        read = trained.read_config(folder, _WHAT, _File)
        config = HeadConfig(**{f.name: getattr(read, f.name) for f in fields(HeadConfig)})
        calibration, knobs = read.calibration, read.knobs
    trained.check_model(config.hidden_size, config.draft_vocab, target, folder, _WHAT)
    c, unfit = target.config, f"the {_WHAT} in {folder} is for another model"
    remedy = trained.remedy(target)
    if config.taps and config.taps[-1] > c.layers:
        reads = f"it reads states after {config.taps[-1]} layers"
        raise UserError(f"{unfit}: {reads}, but {target.name} has {c.layers}; {remedy}")
    if not config.rope_theta and config.head_dim != c.head_dim:
        made = f"its heads have {config.head_dim} dimensions"
        raise UserError(f"{unfit}: {made}, but {target.name}'s have {c.head_dim}; {remedy}")
    if config.own_head not in (0, tokens := config.draft_vocab or c.vocab):
        raise UserError(f"{unfit}: its LM head has {config.own_head} tokens, not {tokens}; {remedy}")
    return config, calibration, knobs


def load_head(folder: Path, target: Decoder) -> tuple[Head, Stored]:
    """Read a head for `target`, in our format or a published one, and what was stored with it.

    Raises:
        UserError: no head's folder, an unreadable or malformed file, or a head for another target.

    """
    from methods.eagle import formats

    config, calibration, knobs = read_dimensions(folder, target)
    if formats.is_published(folder, FILES[0]):
        weights, names = formats.read_weights(folder, target, _WHAT)
    else:
        weights, names = trained.read_tensors(folder, _WHAT, FILES), NAMES
    head = trained.filled(lambda: Head(config), weights, names, target, folder, _WHAT, {trained.RANKING})
    return head, Stored(trained.token_ranking(weights, target, folder), calibration, dict(knobs))


def save_head(folder: Path, head: Head, stored: Stored) -> None:
    """Write `head` and what belongs to it: two files in an existing folder, in half precision."""
    trained.save(folder / FILES[0], head, NAMES, head.config, stored)
