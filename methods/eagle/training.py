"""`train eagle`: how the head begins, its drafts, and its loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.drafting.trained import Stored
from bench.engine.decoder import Decoder
from bench.train.chains import Chain, ChainTrainer
from bench.train.conversations import Conversations
from bench.train.loop import Batch, Features
from bench.train.training import REGRESSION, ridge_regression
from bench.train_config import ChainTraining
from methods.eagle.head import Head, HeadConfig, save_head
from methods.eagle.knobs import EagleTraining

# As published (arXiv 2401.15077, section 4.2): loss = SmoothL1 of features + 0.1 cross-entropy, on features with noise
# from U(-0.1, 0.1).
_OF_ENTROPY = 0.1
_NOISE = 0.1


class HeadTrainer(ChainTrainer):
    """The loss and scores of an EAGLE head, version 1."""

    Config: ClassVar[type[ChainTraining]] = EagleTraining
    title = "EAGLE head"

    def __init__(self, target: Decoder, config: Any, found: Features, made: Conversations, ranking: Tensor):
        super().__init__(target, config, found, made, ranking)
        self.embedding = target.embedding.float()
        self.module = self.network = Head(self.dimensions(target)).to(self.device)
        self.is_paper = not self.network.config.output_norm
        self.unroll = 1 if self.is_paper else config.unroll
        if self.is_paper:
            self.loss_text = f"SmoothL1 of features + {_OF_ENTROPY} {self.loss_text}"
        self.network.prepare(target)
        self._initialise(target.norm.float())

    def dimensions(self, target: Decoder) -> HeadConfig:
        """Return the form of the head."""
        normed = self.config.architecture == "normed"
        return HeadConfig.of(
            target,
            intermediate_size=self.config.ffn or target.config.intermediate,
            draft_vocab=self.draft_vocab,
            input_norm=normed,
            output_norm=normed,
            fc_bias=not normed,
        )

    def _initialise(self, norm: Tensor) -> None:
        """Start with attention and feed-forward block at zero, and `fc` as the best linear guess of the target's next
        final state (ridge regression)."""
        head = self.network
        torch.nn.init.zeros_(head.o.weight)
        torch.nn.init.zeros_(head.down.weight)
        if head.fc.bias is not None:
            torch.nn.init.zeros_(head.fc.bias)
        if head.output_norm is not None:
            head.output_norm.data.copy_(norm)
        if head.head is not None:
            head.head.weight.data.copy_(self.head)
        scale = torch.ones_like(norm) if head.output_norm is None else norm

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in self.found.batches(self.train_on[:REGRESSION], self.device):
                live = self.start(batch)[:, 1:]
                yield self._read(batch)[live], batch.final_states[:, 1:][live] / scale

        head.fc.weight.data.copy_(ridge_regression(pairs(), by_column=True))

    def _read(self, batch: Batch) -> Tensor:
        """Return what `fc` reads of all pairs, [B, n - 1, 2 d]."""
        return torch.cat((self.embedding[batch.tokens[:, 1:]], batch.final_states[:, :-1]), dim=-1)

    def features(self, batch: Batch) -> Tensor:
        """Return the features of all positions [B, n, d]."""
        features = batch.final_states
        if self.is_paper and torch.is_grad_enabled():
            features = features + _NOISE * (2 * torch.rand_like(features) - 1)
        return features

    def start(self, batch: Batch) -> Tensor:
        """Return the positions to train on; there is no feature before the first."""
        return super().start(batch).index_fill(1, torch.zeros(1, dtype=torch.long, device=self.device), False)

    def drafts(self, batch: Batch, depth: int) -> Iterator[Tensor]:
        """Yield the head's states, draft by draft. The pair of feature t - 1 and token t drafts at position t."""
        embedded, features = self.embedding[batch.tokens[:, 1:]], self.features(batch)[:, :-1]
        for outputs in self.network.unrolled(embedded, features, depth):
            yield F.pad(self.network.head_states(outputs), (0, 0, 1, 0))

    @property
    def lm_head(self) -> Tensor:
        """The head's own LM head, or the target's."""
        return self.head if self.network.head is None else self.network.head.weight

    def loss_of(self, chain: Chain, batch: Batch) -> Tensor:
        """Return the soft cross-entropy of some drafts; of a published head, with the distance of the features."""
        entropy = super().loss_of(chain, batch)
        if not self.is_paper:
            return entropy
        states, wanted = chain.states.float(), batch.final_states[chain.live]
        return F.smooth_l1_loss(states, wanted, reduction="sum") / states.shape[-1] + _OF_ENTROPY * entropy

    def save(self, folder: Path) -> None:
        """Write the head with its ranking, its calibration and, unless it is as published, a default that uses this."""
        knobs = {} if self.is_paper else {"stop": "gain"}
        save_head(folder, self.network, Stored(self.ranking, self.calibrate(self.held_out), knobs))

    def describe(self) -> str:
        """Return the head's form."""
        return f"architecture {self.config.architecture}, draft vocabulary {self.draft_vocab or 'whole'}"
