"""EAGLE's papers read literally, as the reference of our head and its trees: no cache, no batch, one head at a time.

Weights are those of a file, by their names there. Differentiable, so that tests can make heads that are often right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

THETA = 10000.0  # of RoPE, unless the head's config says otherwise; the targets' in these tests


def rotate(x: Tensor, theta: float, factor: float) -> Tensor:
    """RoPE of one attention head's vectors [n, D], the n-th at position n / factor."""
    n, width = x.shape
    half = width // 2
    frequencies = torch.tensor([theta ** (-2 * i / width) for i in range(half)], dtype=x.dtype)
    angles = torch.arange(n, dtype=x.dtype)[:, None] / factor * frequencies
    first, second = x[:, :half], x[:, half:]
    turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.cat(turned, dim=-1)


class PaperHead:
    """EAGLE-1's (arXiv 2401.15077, section 4.1) or EAGLE-3's head (arXiv 2503.01840, section 3.1)."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]):
        self.w, self.c = weights, config
        self.version = config.get("version", 1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm of rows [n, d]; without weights of that name, nothing."""
        if name not in self.w:
            return x
        return x / (x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"]).sqrt() * self.w[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        """Of version 3: the states [n, d] after each of the layers -> [n, d]."""
        if self.c.get("fc_norm"):
            rows = self.w["fc_norm.weight"]
            eps = self.c["rms_norm_eps"]
            taps = [x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * row for x, row in zip(taps, rows, strict=True)]
        joined = torch.cat(list(taps), dim=-1)
        if self.c.get("norm_before_fc"):
            joined = self.norm(joined, "fc_norm.weight")
        return self.linear(joined, "fc")

    def outputs(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of n pairs of a text: what is fed back [n, d], and what the LM head reads [n, d]."""
        layer = "layers.0."
        if self.version == 1:
            residual = self.linear(torch.cat((embedded, features), dim=-1), "fc")
            read = self.norm(residual, f"{layer}input_layernorm.weight")
        else:
            normed = self.norm(features, f"{layer}hidden_norm.weight")
            residual = normed if self.c.get("norm_before_residual") else features
            read = torch.cat((self.norm(embedded, f"{layer}input_layernorm.weight"), normed), dim=-1)
        x = residual + self.linear(self._attention(read, f"{layer}self_attn."), f"{layer}self_attn.o_proj")
        inner = self.norm(x, f"{layer}post_attention_layernorm.weight")
        gate, up = self.linear(inner, f"{layer}mlp.gate_proj"), self.linear(inner, f"{layer}mlp.up_proj")
        x = x + self.linear(F.silu(gate) * up, f"{layer}mlp.down_proj")
        normed = self.norm(x, "norm.weight")
        fed_back = normed if self.version == 1 or self.c.get("norm_output") else x
        return fed_back, normed

    def _attention(self, read: Tensor, name: str) -> Tensor:
        heads, kv_heads, width = (self.c[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        rope = self.c.get("rope_theta") or THETA, self.c.get("rope_factor", 1.0)
        q, k, v = (self.linear(read, f"{name}{one}_proj") for one in "qkv")
        n = len(read)
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        found = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            own_q, own_k, own_v = (x[:, i * width : (i + 1) * width] for x, i in ((q, head), (k, shared), (v, shared)))
            own_q, own_k = self.norm(own_q, f"{name}q_norm.weight"), self.norm(own_k, f"{name}k_norm.weight")
            scores = rotate(own_q, *rope) @ rotate(own_k, *rope).T / math.sqrt(width)
            found.append(scores.masked_fill(~causal, -math.inf).softmax(-1) @ own_v)
        return torch.cat(found, dim=-1)

    def follow(self, embedded: Tensor, features: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a text [n, d] each, and the embeddings of drafts after it [m, d]: (fed back, read) of the last one.

        While it drafts, the head's own outputs are the features.
        """
        fed_back, read = self.outputs(embedded, features)
        for one in ahead:
            embedded, features = torch.cat((embedded, one[None])), torch.cat((features, fed_back[-1:]))
            fed_back, read = self.outputs(embedded, features)
        return fed_back[-1], read[-1]


Path = tuple[int, ...]
Chances = Callable[[Path], Tensor]  # of a path of drafts: log-probabilities [V] of the next, -inf where none is drafted


def ranked(chances: Chances, path: Path, count: int) -> list[tuple[int, float]]:
    """The most probable tokens after a path, with their log-probabilities."""
    best = chances(path).topk(count)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def static_tree(chances: Chances, shape: Sequence[Path], depth: int) -> set[Path]:
    """EAGLE-1: of every path of ranks the tokens, as far as `depth`."""
    found = set()
    for ranks in shape:
        path: Path = ()
        for rank in ranks:
            path = (*path, ranked(chances, path, rank + 1)[rank][0])
        if len(path) <= depth:
            found.add(path)
    return found


def dynamic_tree(chances: Chances, beam: int, depth: int, total: int) -> set[Path]:
    """EAGLE-2 (arXiv 2406.16858, sections 4.1 and 4.2): expansion of the best of each level, then reranking of all."""
    value: dict[Path, float] = {(): 0.0}
    layer: list[Path] = [()]
    for _ in range(depth):
        children = {}
        for path in layer:
            for token, chance in ranked(chances, path, beam):
                children[(*path, token)] = value[path] + chance
        value |= children
        layer = sorted(children, key=lambda path: -children[path])[:beam]
    del value[()]
    return set(sorted(value, key=lambda path: -value[path])[:total])


def beam_paths(chances: Chances, beam: int, depth: int, most: int) -> set[Path]:
    """The best paths of each level, each going on from those of the level before; `most` in all."""
    value: dict[Path, float] = {(): 0.0}
    layer: list[Path] = [()]
    found: set[Path] = set()
    for _ in range(depth):
        children = {(*p, token): value[p] + chance for p in layer for token, chance in ranked(chances, p, beam)}
        value |= children
        layer = sorted(children, key=lambda path: -children[path])[: min(beam, most - len(found))]
        found |= set(layer)
    return found
