"""The target: a Llama-family decoder over any range of its layers, with a static cache.

Knows no text and no method. Supports Llama 1-3 with their RoPE scalings, Vicuna, SmolLM, TinyLlama, Mistral and
Qwen 2, 2.5 and 3: grouped heads, biases, q/k norms, tied heads.

Shapes: B sequences in lock-step (1 when measuring), n positions of this pass, S positions so far, H heads, H_kv heads
of keys and values, G = H / H_kv, D per head, d hidden, V tokens.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.attention import (
    BLOCK,
    Attention,
    additive,
    apply_rope,
    attend_to,
    block_mask,
    fused_rope,
    rms_norm,
    rope_table,
)
from bench.engine.cache import KVCache
from bench.engine.graphs import Fixed, choose_graphs
from bench.engine.huge_pages import use_huge_pages
from bench.engine.kernels import native
from bench.engine.mapped import MappedFiles
from bench.engine.placement import choose_homes
from bench.engine.places import Places
from bench.engine.products import Layout, Linear, choose_layout
from bench.engine.quantize import GROUP
from bench.engine.weights import DecoderConfig, Joined, Taker, agreed, sizes
from bench.errors import UserError
from bench.progress import progress

_ALIGNED = 8  # attention's masks are copied in every layer where their rows are no multiple of it long


@dataclass(slots=True)
class _Layer:
    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear

    @property
    def products(self) -> tuple[Linear, Linear, Linear, Linear]:
        """In the order in which a pass takes them."""
        return self.qkv, self.out, self.gate_up, self.down

    def with_products(self, change: Callable[[Linear], Linear]) -> _Layer:
        """The same with every product changed."""
        qkv, out, gate_up, down = map(change, self.products)
        return replace(self, qkv=qkv, out=out, gate_up=gate_up, down=down)


class Decoder:
    """Weights on a device and the passes over them. Build with `from_weights`."""

    def __init__(
        self,
        name: str,
        config: DecoderConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_len: int,
        quantize: str = "none",
        layout: Layout | None = None,
    ):
        self.name = name
        self.config = config
        self.dtype = dtype
        self.device = device
        self.max_len = max_len
        self.layout: Layout = layout or choose_layout(dtype, device)
        self.quantize = quantize
        if quantize != "none":
            _check_quantize(dtype, device)
        self.embedding: Tensor  # [V, d]
        self.norm: Tensor
        self.head: Linear
        self.layers: list[_Layer] = []
        self.native_layers: native.Layers | None = None  # for the kernels; None: passes run operation by operation
        self.homes = [device] * config.layers  # of each layer, see `placement`
        self.graphs = choose_graphs(device)
        self.sequences = 1  # that methods decode at once, see `joined.for_batch`
        self.cos: Tensor  # [max_len + padding, D]
        self.sin: Tensor
        self._mask = additive(block_mask(config.heads // config.kv_heads, max_len, device), dtype)

    @classmethod
    def from_weights(
        cls,
        hf_config: Any,
        weights: Iterable[tuple[str, Tensor]],
        *,
        name: str = "",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        max_len: int | None = None,
        quantize: str = "none",
        homes: Sequence[torch.device] | None = None,
        layout: Layout | None = None,
    ) -> Decoder:
        """A decoder from a transformers configuration and (name, tensor) pairs in transformers' naming.

        `max_len`: positions of cache and RoPE table (default: the model's context). `quantize`: of all matrices.
        `homes`: the device of each layer (default: `device`, or several where it is too small). `layout`: of the
        matrices (default: the fastest for decoding; "plain", torch's, suits passes over hundreds of tokens).

        Raises:
            UserError: unsupported architecture; weights that are not those of the configuration, or not finite; it
                cannot be quantised here.

        """
        config = DecoderConfig.from_hf(hf_config)
        device = torch.device(device)
        self = cls(
            name or config.model_type, config, dtype=dtype, device=device, max_len=max_len or config.context,
            quantize=quantize, layout=layout,
        )  # fmt: skip
        named = {name.removeprefix("model."): tensor for name, tensor in weights}
        self.config = config = agreed(named, config)
        files = MappedFiles()
        take = Taker(named, dtype, device, files)
        self.homes = list(homes or choose_homes(device, *sizes(named, config, dtype)))
        if len(set(self.homes)) > 1:
            self.graphs = None  # a graph is of one device
        with progress(len(self.homes), "preparing layers") as bar:
            for i, home in enumerate(self.homes):
                self.layers.append(self._build_layer(Taker(named, dtype, home, files), f"layers.{i}."))
                bar.add(1)
        self.norm = take("norm.weight", (config.hidden,))
        shape = (config.vocab, config.hidden)
        embedding = take.joined([("embed_tokens.weight", shape)])
        if quantize != "none" and config.tied:  # what the codes stand for is the model
            self.head = self._head(embedding)
            self.embedding = self.head.weight
        else:
            self.embedding = embedding.whole()
            self.head = self._head(self.embedding if config.tied else take.joined([("lm_head.weight", shape)]))
        self.cos, self.sin = rope_table(hf_config, self.max_len + BLOCK, dtype, device)
        if device.type == "cpu":
            use_huge_pages()  # before anything is measured
        if self.layout == "native":
            self.native_layers = self._for_kernels(self.layers)
        return self

    def _build_layer(self, take: Taker, prefix: str) -> _Layer:
        c = self.config
        d, q, kv = c.hidden, c.heads * c.head_dim, c.kv_heads * c.head_dim
        ffn = take.rows(prefix + "mlp.up_proj.weight")

        def linear(columns: int, rows: dict[str, int], *, paired: bool = False) -> Linear:
            """Projections of one input, by name, as one product."""
            weight = take.joined([(f"{prefix}{name}_proj.weight", (n, columns)) for name, n in rows.items()])
            bias = take.bias([(f"{prefix}{name}_proj.bias", n) for name, n in rows.items()])
            return self._linear(weight, bias, paired=paired)

        return _Layer(
            input_norm=take(prefix + "input_layernorm.weight", (d,)),
            qkv=linear(d, {"self_attn.q": q, "self_attn.k": kv, "self_attn.v": kv}),
            q_norm=take(prefix + "self_attn.q_norm.weight", (c.head_dim,)) if c.qk_norm else None,
            k_norm=take(prefix + "self_attn.k_norm.weight", (c.head_dim,)) if c.qk_norm else None,
            out=linear(q, {"self_attn.o": d}),
            post_norm=take(prefix + "post_attention_layernorm.weight", (d,)),
            gate_up=linear(d, {"mlp.gate": ffn, "mlp.up": ffn}, paired=True),
            down=linear(ffn, {"mlp.down": d}),
        )

    def _linear(self, weight: Joined, bias: Tensor | None = None, *, paired: bool = False) -> Linear:
        if self.quantize != "none" and weight.shape[1] % GROUP:
            size = weight.shape[1]
            raise UserError(
                f"{self.name} cannot be quantised: a matrix has {size} columns, which is no multiple of {GROUP}; leave "
                "quantize out"
            )
        return Linear(weight, bias, layout=self.layout, quantize=self.quantize, paired=paired)

    def _head(self, weight: Tensor | Joined) -> Linear:
        """Rows of the LM head. Of four-bit models they are kept finer, as GGUF files do: in eight bits."""
        return Linear(weight, layout=self.layout, quantize="none" if self.quantize == "none" else "q8")

    @property
    def head_weight(self) -> Tensor:
        """The LM head's weights [V, d], plain."""
        return self.embedding if self.config.tied else self.head.weight

    def head_rows(self, token_ids: Tensor) -> Tensor:
        """The LM head's weights for some tokens [len(token_ids), d], plain."""
        return self.embedding[token_ids] if self.config.tied else self.head.rows(token_ids)

    def new_cache(self, batch: int = 1, max_len: int | None = None) -> KVCache:
        """A cache for all layers, with room for padding beyond `max_len` (default: the decoder's own)."""
        c, length = self.config, self.padded(max_len or self.max_len)
        return KVCache(c.layers, c.kv_heads, c.head_dim, length, batch=batch, dtype=self.dtype, homes=self.homes)

    def padded(self, max_len: int) -> int:
        """Rows of a cache for `max_len` positions: drafts beyond them are written, too."""
        return max_len + BLOCK + -(max_len + BLOCK) % _ALIGNED

    def by_operations(self, *, own_products: bool = False) -> Decoder:
        """The same weights, run operation by operation by torch: what our own kernels are held against.

        `own_products`: only what is between products is torch's. The arithmetic of products (eight-bit activations of
        quantised weights) is then the same.
        """
        other = copy.copy(self)
        other.native_layers, other.graphs = None, None
        if not own_products:
            other.head = self.head.by_torch()
            other.layers = [layer.with_products(Linear.by_torch) for layer in self.layers]
        return other

    def _for_kernels(self, layers: Sequence[_Layer]) -> native.Layers:
        c = self.config
        return native.Layers(native.Dimensions(c.hidden, c.heads, c.kv_heads, c.head_dim, c.norm_eps), layers)

    def quantized_layers(self, count: int, quantize: str) -> native.Layers:
        """The first `count` layers once more, for the kernels, in fewer bits: for drafts, which need not be exact."""

        def copied(linear: Linear) -> Linear:
            return Linear(linear.weight, linear.bias, layout=self.layout, quantize=quantize, paired=linear.paired)

        return self._for_kernels([layer.with_products(copied) for layer in self.layers[:count]])

    def draft_layers(self, count: int, weights: dict[str, Tensor], quantize: str) -> Decoder:
        """A draft model of `count` layers like this decoder's and a final norm, with its embedding and positions.

        `weights`: by `DecoderConfig.shapes()`, which they are checked against. `quantize`: of all matrices.
        """
        other, take = copy.copy(self), Taker(dict(weights), self.dtype, self.device)
        other.config, other.homes = replace(self.config, layers=count), [self.device] * count
        other.quantize = quantize
        other.layers = [other._build_layer(take, f"layers.{i}.") for i in range(count)]
        other.norm = take("norm.weight", (self.config.hidden,))
        other.native_layers = other._for_kernels(other.layers) if self.layout == "native" else None
        return other

    def embed(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Token ids [n] or [B, n] -> [B, n, d]."""
        ids = torch.as_tensor(token_ids, dtype=torch.long, device=self.device)
        return F.embedding(ids if ids.dim() == 2 else ids[None], self.embedding)

    def run_layers(
        self, x: Tensor, places: Places | int, cache: KVCache, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Layers [first, last) over x [B, n, d] at its places, reading and writing `cache`.

        `places`: an integer stands for a text that goes on from that position, for all sequences alike.
        """
        batch, n, _ = x.shape
        last = self.config.layers if last is None else last
        if isinstance(places, int):
            places = Places.after(places, n, batch)
        assert (places.batch, places.width) == (batch, n), f"{places.batch} x {places.width} places for {batch} x {n}"
        if self.native_layers is not None:
            return self.native_layers.run_in_parts(x, places, (self.cos, self.sin), cache, (first, last))
        if self.graphs is not None and first < last:
            body = functools.partial(self._run_fixed, cache, first, last)
            states = self.graphs.run(cache, (first, last), body, [x], places)
            if states is not None:
                return states
        rope, mask = self.rope_and_mask(places)
        for home, numbers in itertools.groupby(range(first, last), key=self.homes.__getitem__):
            x, mask = x.to(home), None if mask is None else mask.to(home)
            rope = rope[0].to(home), rope[1].to(home)
            for i in numbers:
                write = functools.partial(cache.update, i, places)
                x = self.run_layer(self.layers[i], x, rope, functools.partial(attend_to, write, mask))
        return x.to(self.device)

    def rope_and_mask(self, places: Places) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """The tables of `fused_rope` at these places, and what `attend` adds to the scores; None: nothing."""
        c, span = self.config, places.together
        group = c.heads // c.kv_heads
        if span is not None and span.depths is None:
            rows = slice(span.first, span.first + places.width)
            cos, sin, mask = self.cos[rows], self.sin[rows], self._mask_for(places.width, span.first)
        else:
            positions = places.positions(self.device)
            cos, sin = self.cos[positions], self.sin[positions]
            seen = additive(places.seen(self.device), self.dtype)  # [B, n, end]
            mask = seen[:, None].expand(-1, group, -1, -1).flatten(1, 2)[:, None]
        return fused_rope(cos, sin, c.heads + c.kv_heads, c.kv_heads), mask

    def _run_fixed(self, cache: KVCache, first: int, last: int, fixed: Fixed, x: Tensor) -> Tensor:
        """Layers [first, last) over x [1, w, d] with everything at fixed sizes, to be captured."""
        c = self.config
        cos, sin = self.cos[fixed.positions], self.sin[fixed.positions]
        rope = fused_rope(cos, sin, c.heads + c.kv_heads, c.kv_heads)
        mask = fixed.mask.expand(c.heads // c.kv_heads, -1, -1).reshape(-1, fixed.length)
        for i in range(first, last):
            write = functools.partial(cache.update_rows, i, fixed.rows, length=fixed.length)
            x = self.run_layer(self.layers[i], x, rope, functools.partial(attend_to, write, mask))
        return x

    def run_layer(self, layer: _Layer, x: Tensor, rope: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """One layer over x [B, n, d]; `rope`: tables of `fused_rope`."""
        c = self.config
        batch, n, _ = x.shape
        qkv = layer.qkv(rms_norm(x, layer.input_norm, c.norm_eps)).view(batch, n, -1, c.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k, v = qkv.split((c.heads, c.kv_heads, c.kv_heads), dim=2)
            q, k = rms_norm(q, layer.q_norm, c.norm_eps), rms_norm(k, layer.k_norm, c.norm_eps)
            qkv = torch.cat((q, k, v), dim=2)
        qkv = apply_rope(qkv, *rope)  # [B, n, H + 2 * H_kv, D]
        x = layer.out.plus(x, attention(qkv[:, :, : c.heads], qkv[:, :, c.heads :]))
        gate, up = layer.gate_up(rms_norm(x, layer.post_norm, c.norm_eps)).chunk(2, dim=-1)
        return layer.down.plus(x, F.silu(gate).mul_(up))

    def final_norm(self, x: Tensor) -> Tensor:
        """The norm between the last layer and the LM head: [..., d] -> [..., d]."""
        return rms_norm(x, self.norm, self.config.norm_eps)

    def logits(self, x: Tensor) -> Tensor:
        """Last-layer states [..., d] -> float32 logits [..., V]."""
        return self.project(self.final_norm(x))

    def project(self, x: Tensor) -> Tensor:
        """Post-norm states [..., d] -> float32 logits [..., V]."""
        return self.head(x).float()

    def cut_head(self, token_ids: Tensor, quantize: str = "none") -> Linear:
        """The LM head's rows for some tokens only: post-norm states [..., d] -> [..., len(token_ids)].

        `quantize`: as `Linear`'s; none: as the whole head is.
        """
        rows = self.head_rows(token_ids)
        return self._head(rows) if quantize == "none" else Linear(rows, layout=self.layout, quantize=quantize)

    def _mask_for(self, n: int, start: int) -> Tensor | None:
        """What `attend` adds to the scores, [G * n, start + n]: -inf where a query must not look; None: nothing."""
        if n == 1 or (start == 0 and n > BLOCK):
            return None
        group = self.config.heads // self.config.kv_heads
        if n > BLOCK:
            rows = torch.arange(start, start + n, device=self.device)
            seen = rows[:, None] >= torch.arange(start + n, device=self.device)
            return additive(seen, self.dtype).expand(group, -1, -1).reshape(group * n, -1)
        shift = self.max_len - start
        return self._mask[:, :n, shift : shift + start + n].reshape(group * n, -1)

    @property
    def products(self) -> list[Linear]:
        """The products of a pass, in its order: of all layers, and the LM head."""
        return [*itertools.chain.from_iterable(layer.products for layer in self.layers), self.head]

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        linears = self.products[:-1] if self.config.tied else self.products
        norms = [t for ly in self.layers for t in (ly.input_norm, ly.post_norm, ly.q_norm, ly.k_norm) if t is not None]
        biases = [lin.bias for lin in linears if lin.bias is not None]
        matrices = sum(lin.out_features * lin.in_features for lin in linears)
        return matrices + sum(t.numel() for t in [self.embedding, self.norm, *norms, *biases])

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a pass reads: all, but of an embedding that is no LM head only its tokens' rows."""
        matrices = sum(lin.out_features * lin.in_features for lin in self.products)
        others = self.parameters - matrices - (0 if self.config.tied else self.embedding.numel())
        return sum(lin.nbytes for lin in self.products) + others * self.dtype.itemsize

    @property
    def precision(self) -> str:
        """The weights' kind: a dtype, or how they are quantised."""
        return str(self.dtype).removeprefix("torch.") if self.quantize == "none" else self.quantize

    @property
    def activations(self) -> str:
        """The number format to which products round their inputs; int8: with a scale per token and GROUP inputs."""
        if self.quantize != "none":
            return "int8"
        rounded = self.layout == "plain" or native.rounds_inputs()
        return str(self.dtype if rounded else torch.float32).removeprefix("torch.")


def _check_quantize(dtype: torch.dtype, device: torch.device) -> None:
    if device.type != "cpu":
        raise UserError(f"quantised weights run on the CPU, not on {device.type}: take device cpu, or no quantize")
    if dtype != torch.float32:
        raise UserError(f"quantised weights run with float32 states, not {dtype}: take dtype float32, or no quantize")
    if reason := native.why_not():
        raise UserError(f"quantised weights need the engine's own kernels, and {reason}")
