"""EAGLE's draft model: head and LM head over a level of drafts, in one call where kernels run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from bench.drafting.levels import ByOperations
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.kernels.draft import DraftModel
from bench.engine.places import Places
from bench.engine.products import Linear
from methods.eagle.head import Head, HeadConfig

PUBLISHED_VOCAB = 32_000  # of version 3's own LM head


def draft_model(target: Decoder, head: Head, lm_head: Linear) -> DraftModel | ByOperations:
    """Return the draft model in its fastest form here."""
    layer = _for_kernels(head)
    if target.native_layers is None or layer is None or lm_head.product is None or head.output_norm is None:
        return ByOperations(target, 0, network(head), lm_head, head.head_states)
    return DraftModel(
        target.native_layers, 0, (target.cos, target.sin), join=head.packed["fc"], layers=layer,
        own_tables=(head.cos, head.sin), norm=head.output_norm, head=lm_head,
    )  # fmt: skip


def network(head: Head) -> Callable[[Tensor, Places, KVCache, Tensor | None], Tensor]:
    """Return the head as `ByOperations` calls it."""

    def run(embedded: Tensor, places: Places, cache: KVCache, features: Tensor | None) -> Tensor:
        assert features is not None
        return head(embedded, features, places, cache)

    return run


def _for_kernels(head: Head) -> native.Layers | None:
    """Return its layer for the kernels, which run our form of version 1; None: another form, or no kernels here."""
    c, packed = head.config, head.packed
    if c.version != 1 or not (c.input_norm and c.output_norm) or packed["qkv"].product is None:
        return None
    layer = SimpleNamespace(
        input_norm=head.input_norm, q_norm=head.q_norm, k_norm=head.k_norm, post_norm=head.post_norm,
        qkv=packed["qkv"], out=packed["out"], gate_up=packed["gate_up"], down=packed["down"],
    )  # fmt: skip
    sizes = (c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rms_norm_eps)
    return native.Layers(native.Dimensions(*sizes), [layer])


def new_cache(head: Head, target: Decoder) -> KVCache:
    """Return a cache for the head."""
    c, length = head.config, target.padded(target.max_len)
    return KVCache(1, c.num_key_value_heads, c.head_dim, length, dtype=target.dtype, device=target.device)


def published_config(target: Decoder, version: int) -> HeadConfig | None:
    """Return the published form for a target of these sizes; None: it has too few layers for the taps."""
    layers = target.config.layers
    if version == 1:
        return HeadConfig.of(target, fc_bias=True, qk_norm=False, input_norm=False, output_norm=False)
    taps = (2, layers // 2, layers - 3)
    if not taps[0] < taps[1] < taps[2]:
        return None
    vocab = min(PUBLISHED_VOCAB, target.config.vocab)
    return HeadConfig.of(target, qk_norm=False, version=3, taps=taps, own_head=vocab, draft_vocab=vocab)


def published_call(target: Decoder, version: int) -> Callable[[], object] | None:
    """Return a call of the published head, with its LM head, over one pair."""
    config = published_config(target, version)
    if config is None:
        return None
    with torch.device(target.device):
        head = Head(config).to(target.dtype).requires_grad_(False)
    head.prepare(target)
    head.pack(target.layout)
    head.graphs = target.graphs
    lm_head = target.head if head.head is None else Linear(head.head.weight, layout=target.layout)
    cache = new_cache(head, target)
    cache.zero()
    pair = torch.randn(2, 1, 1, config.hidden_size, device=target.device).to(target.dtype)
    place = target.max_len // 2
    return lambda: lm_head(head.head_states(head(*pair, place, cache))[0]).argmax(-1).tolist()
