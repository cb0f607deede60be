"""Kangaroo: self-speculation with double early exit (Liu et al., arXiv 2404.18911).

The draft model is the target's first `exit_layer` layers, a small adapter and the target's LM head (section 3.1). The
remaining layers verify, starting from the exit states that drafting already computed. The exit layer is the first early
exit. The second: drafting stops once a draft's probability is below `threshold` (section 3.2). Needs a trained adapter.

Beyond the paper: a cut draft vocabulary, feedback of final states (see `methods.kangaroo.adapter`), stopping by
expected gain (see `bench.drafting.stopping`), and drafts from a copy of the exit layers in eight bits, which the whole
target verifies. `kangaroo:paper` has none of them.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from bench.drafting import trained
from bench.drafting.levels import LevelMethod
from bench.drafting.published import Published
from bench.drafting.sequence import States
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.errors import UserError
from methods.kangaroo import knobs
from methods.kangaroo.adapter import FILES, load_adapter, published_call, read_dimensions
from methods.kangaroo.drafting import can_copy, draft_model
from methods.kangaroo.knobs import KangarooConfig


class Kangaroo(LevelMethod):
    """Drafts with the target's own first layers and an adapter."""

    family = "self"
    Config = KangarooConfig
    presets = knobs.presets
    published = Published("Kangaroo's adapter", drafts=6, exit_layer=2, call_per_draft=True, call=published_call)

    @classmethod
    def check_weights(cls, config: KangarooConfig, model: trained.Dimensioned) -> None:
        """Check the adapter's config.json."""
        folder = trained.find_folder("kangaroo", config.weights, model.name, FILES)
        made, *_ = read_dimensions(folder, model)
        _choose_exit_layer(config.exit_layer, made.exit_layer, model, folder)

    def __init__(self, target: Decoder, config: KangarooConfig):
        super().__init__(target, config)
        folder = trained.find_folder("kangaroo", config.weights, target.name, FILES)
        self.adapter, stored = load_adapter(folder, target)
        self.digest = trained.digest(folder, FILES)
        made = self.adapter.config
        self.feedback = made.feedback
        self.exit_layer = _choose_exit_layer(config.exit_layer, made.exit_layer, target, folder)
        self.config = replace(config.completed(stored.knobs, made.draft_vocab), exit_layer=self.exit_layer)
        self.taps = (self.exit_layer,)
        self.adapter.prepare(target.padded(target.max_len), target.device)
        quantize = trained.draft_quantize(config.draft_weights, target)
        self.adapter.pack(target.layout, quantize)
        self.adapter.graphs = target.graphs
        self.choose_head(self.adapter.head, made.draft_vocab, stored, folder, quantize)
        # Exit states of a copy in fewer bits are good enough for drafts, but not to resume verification from.
        copied = can_copy(target, quantize) and not made.ffn
        self.resume_layer = 0 if copied else self.exit_layer
        self.draft_model = draft_model(
            target, self.exit_layer, self.adapter, self.draft_head, quantize if copied else "none"
        )
        self.choose_rule(stored)

    def new_cache(self) -> KVCache:
        """The adapter's, of one layer."""
        c, target = self.adapter.config, self.target
        heads, head_dim = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        return KVCache(1, heads, head_dim, len(self.adapter.cos), dtype=target.dtype, device=target.device)

    def prefill(self, inputs: Tensor, before: Tensor | None, cache: KVCache) -> None:
        """Run the adapter."""
        self.adapter(inputs, 0, cache, before)

    def inputs(self, tokens: Many[int], states: States) -> Tensor:
        """The exit states."""
        return states.taps[self.exit_layer]

    @property
    def extra_parameters(self) -> int:
        """The adapter's weights, including its own LM head, as cut, if it has one."""
        return sum(p.numel() for p in self.adapter.parameters())


def _choose_exit_layer(asked: int, made: int, target: trained.Dimensioned, folder: Path) -> int:
    layer = asked or made
    if not layer:
        raise UserError(f"the adapter in {folder} has no exit layer stored: give it (kangaroo:exit_layer=2,...)")
    if made and asked and asked != made:
        raise UserError(f"the adapter in {folder} was trained for exit layer {made}, not {asked}: leave exit_layer out")
    if layer >= target.config.layers:
        raise UserError(
            f"exit_layer={layer} leaves no layers to verify: {target.name} has {target.config.layers} layers; give "
            f"at most {target.config.layers - 1}"
        )
    return layer
