"""EAGLE: a decoder layer continues the target's own features (Li et al., arXiv 2401.15077 and 2406.16858).

The head reads the target's post-norm final state at a position and the embedding of the token after it, and gives the
next feature, which the target's LM head turns into drafts and which is fed back with each of them (EAGLE-1, section
4.1). EAGLE-1 drafts a static tree, EAGLE-2 the best of all candidates of a beam. Needs a trained head.

Beyond the papers: a tree that grows as long as more drafts are expected to gain more than they cost on this device, a
cut draft vocabulary, norms before and after the layer, and drafts in eight bits. `eagle:paper` is EAGLE-1 and
`eagle:paper2` is EAGLE-2.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bench.drafting import trained
from bench.drafting.levels import LevelMethod, Rule
from bench.drafting.published import Published
from bench.drafting.sequence import Draft, States
from bench.engine import MAX_DRAFTS
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.errors import UserError
from methods.eagle import drafting, formats, knobs
from methods.eagle.drafting import draft_model
from methods.eagle.head import FILES, HeadConfig, load_head, read_dimensions
from methods.eagle.knobs import BEST, GROWN, EagleConfig
from methods.eagle.trees import BestTree, StaticTree, WholeTree


class Eagle(LevelMethod):
    """Drafts with a decoder layer on the target's features."""

    family = "heads"
    Config = EagleConfig
    presets = knobs.presets
    published = Published(
        "EAGLE-1's head", drafts=5, call_per_draft=True, call=partial(drafting.published_call, version=1)
    )
    config: EagleConfig
    skipped = 1  # a pair is a token and the feature before it: the first token has none
    version: ClassVar[int] = 1  # of the heads

    @classmethod
    def check_weights(cls, config: EagleConfig, model: trained.Dimensioned) -> None:
        """Check the head's config.json."""
        folder = trained.find_folder(config.name, config.weights, model.name, FILES)
        made, *_ = read_dimensions(folder, model)
        cls._check_version(made, folder)

    @classmethod
    def _check_version(cls, made: HeadConfig, folder: Path) -> None:
        if made.version != cls.version:
            other = "eagle3" if made.version == 3 else "eagle"
            raise UserError(
                f"the head in {folder} is of version {made.version}, which is another method: {other}:weights={folder}"
            )

    def __init__(self, target: Decoder, config: EagleConfig):
        super().__init__(target, config)
        folder = trained.find_folder(config.name, config.weights, target.name, FILES)
        self.head, stored = load_head(folder, target)
        self.digest = trained.digest(folder, FILES)
        made = self.head.config
        self._check_version(made, folder)
        self._check_draft_vocab(made, folder)
        self.taps = made.taps
        self.config = config.completed(stored.knobs, made.draft_vocab)
        self.head.prepare(target)
        quantize = trained.draft_quantize(config.draft_weights, target)
        self.head.pack(target.layout, quantize)
        self.head.graphs = target.graphs
        self.choose_head(self.head.head, made.draft_vocab, stored, folder, quantize)
        self.draft_model = draft_model(target, self.head, self.draft_head)
        if self.config.tree == GROWN:
            self.choose_rule(stored)
        else:
            self._choose_tree()

    def _check_draft_vocab(self, made: HeadConfig, folder: Path) -> None:
        """Refuse a part of a published draft vocabulary, whose tokens are not ranked."""
        if 0 < self.config.draft_vocab < made.draft_vocab and formats.is_published(folder, FILES[0]):
            raise UserError(
                f"draft_vocab={self.config.draft_vocab}: the published head in {folder} tells which {made.draft_vocab} "
                "tokens it drafts, but not how frequent they are: leave draft_vocab out"
            )

    def _choose_tree(self) -> None:
        """Set the rule of a tree that is drafted whole."""
        config, tokens = self.config, self.draft_head.out_features
        if (paths := config.paths) is None:
            self.new_rule = partial(BestTree, config.nodes)
            return
        if config.beam > tokens:
            raise UserError(
                f"tree={config.tree} has rank {config.beam - 1}, but only {tokens} tokens are drafted: take a larger "
                "draft_vocab or another tree"
            )
        self.new_rule = partial(StaticTree, paths)

    def most(self, drafted: int) -> int:
        """Of a tree that is drafted whole, what is drafted further in each level."""
        if self.config.tree == GROWN:
            return super().most(drafted)
        # More rows than a tree may have would not fit into the cache behind the last token.
        return min(self.config.beam, MAX_DRAFTS - drafted) if self.config.tree == BEST else self.config.nodes

    def chosen(self, rule: Rule, draft: Draft) -> Draft:
        """Return the tree."""
        return rule.finish(draft) if isinstance(rule, WholeTree) else draft

    @property
    def widest(self) -> int:
        """A chain of gamma drafts, or all nodes."""
        return super().widest if self.config.tree == GROWN else 1 + self.config.nodes

    @property
    def extra_parameters(self) -> int:
        """The head's weights, including its own LM head, as cut, if it has one."""
        return sum(p.numel() for p in self.head.parameters())

    def new_cache(self) -> KVCache:
        """The head's, of one layer."""
        return drafting.new_cache(self.head, self.target)

    def prefill(self, inputs: Tensor, before: Tensor | None, cache: KVCache) -> None:
        """Run the head."""
        self.head(inputs, before, 0, cache)

    def inputs(self, tokens: Many[int], states: States) -> Tensor:
        """The tokens' embeddings."""
        return self.target.embed(tokens)

    def features(self, states: States) -> Tensor:
        """The final states, or the projection of those after the tapped layers."""
        if not self.taps:
            return states.final
        return self.head.join_taps(torch.cat([states.taps[layer] for layer in self.taps], dim=-1))
