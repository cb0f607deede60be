"""`train eagle3`: the head of version 3, with taps, an LM head of its own and the training-time test from the start."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.engine.decoder import Decoder
from bench.train.loop import Batch
from methods.eagle.head import HeadConfig
from methods.eagle.training import HeadTrainer
from methods.eagle3.knobs import Eagle3Training


class Head3Trainer(HeadTrainer):
    """The loss and scores of an EAGLE head, version 3 (arXiv 2503.01840, section 3)."""

    Config = Eagle3Training
    title = "EAGLE-3 head"
    # The training-time test trains all drafts of all chains from the first step on, each weighted 0.8 of the one before
    # it (the authors' code).
    unroll_from = 0.0
    only_after_hits = False
    decay = 0.8
    loss_text = f"{HeadTrainer.loss_text}, the w-th draft of a chain (from 0) weighted {decay}^w"

    @classmethod
    def taps(cls, config: Eagle3Training, target: Decoder) -> tuple[int, ...]:
        """Return a low, a middle and a high layer, as in the authors' code (fewer of a target with few layers)."""
        layers = target.config.layers
        return tuple(sorted({max(1, min(layer, layers - 1)) for layer in (2, layers // 2, layers - 3)}))

    def dimensions(self, target: Decoder) -> HeadConfig:
        """Return the published form."""
        return HeadConfig.of(
            target,
            version=3,
            taps=self.taps(self.config, target),
            draft_vocab=self.draft_vocab,
            own_head=len(self.draft_ids),
        )

    def _read(self, batch: Batch) -> Tensor:
        return self._tapped(batch)[:, :-1]

    def _tapped(self, batch: Batch) -> Tensor:
        return torch.cat([batch.taps[layer] for layer in self.network.config.taps], dim=-1)

    def features(self, batch: Batch) -> Tensor:
        """Return the projections of the taps."""
        return self.network.join_taps(self._tapped(batch))

    def describe(self) -> str:
        """Return the head's form."""
        taps = ", ".join(map(str, self.network.config.taps))
        return f"states after {taps} layers, draft vocabulary {self.draft_vocab or 'whole'} with an LM head of its own"
