"""Training of draft models that draft in chains, each draft from the one before it: loss, scores and calibration."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor

from bench.drafting.stopping import CALIBRATED_AT, Calibration
from bench.train import prompts
from bench.train.entropy import soft_cross_entropy
from bench.train.loop import Batch
from bench.train.training import Trainer, count_by_kind, shares_by_kind

POSITIONS = 6  # draft positions whose acceptance is reported


@dataclass
class Chain:
    """The w-th drafts of chains."""

    states: Tensor  # [m, d], before the LM head
    logits: Tensor  # [m, V']
    live: Tensor  # [B, n] bool: their m positions
    hit: Tensor  # [m] bool: whether the draft is the target's choice


class ChainTrainer(Trainer):
    """The loss and scores of chains. Settings: a `bench.train_config.ChainTraining`."""

    loss_text = "soft cross-entropy -sum p log q over the draft vocabulary"
    scores_text = (
        "`agreement` is the share of the target's own choices that the draft's first choice hits; `accept_w` the same "
        "for the w-th draft after w - 1 hits; the last columns are the agreement by kind of prompt."
    )
    unroll = 1  # drafts in a row that are trained on
    unroll_from: ClassVar[float] = 0.5  # share of the steps: later drafts are trained once the first ones hit
    only_after_hits: ClassVar[bool] = True  # train later drafts where those before them hit: only there it matters
    decay: ClassVar[float] = 1.0  # weight of a draft, as a share of the one before it

    @abstractmethod
    def drafts(self, batch: Batch, depth: int) -> Iterator[Tensor]:
        """Yield states for the LM head [B, n, d] of the 1st, 2nd, .. draft of chains that begin at every position.

        The w-th states at position t belong to the chain begun at t - w + 1.
        """

    @property
    def lm_head(self) -> Tensor:
        """The LM head [V', d] of the drafts: the target's."""
        return self.head

    def loss(self, indices: Sequence[int]) -> Tensor:
        """Return the loss per position, summed over the drafts of a chain."""
        batch = self.found.batch(indices).to(self.device)
        start = self.start(batch)
        total = torch.zeros((), device=self.device)
        depth = 1 if self.done < self.unroll_from else self.unroll
        for w, chain in enumerate(self.chains(batch, start, depth, self.only_after_hits)):
            total = total + self.decay**w * self.loss_of(chain, batch)
        return total / start.sum().clamp(min=1)

    def start(self, batch: Batch) -> Tensor:
        """Return the positions [B, n] to train on: those of answers, or with teach=all of prompts too."""
        return batch.inside if self.config.teach == "all" else batch.taught

    def loss_of(self, chain: Chain, batch: Batch) -> Tensor:
        """Return -sum p log q of some drafts, p and q over the draft vocabulary."""
        return soft_cross_entropy(chain.logits, batch.final_states[chain.live] @ self.head.T)

    def chains(self, batch: Batch, start: Tensor, depth: int, only_after_hits: bool = True) -> Iterator[Chain]:
        """Yield the w-th drafts, w = 1.., of chains begun at every position of `start`, while those before them hit.

        Under greedy verification, drafting after accepted drafts sees the states of the target's own text, so that
        acceptance can be computed on the target's answers without decoding.
        """
        expected = self.places[batch.tokens.roll(-1, 1)]
        live = start
        for states in self.drafts(batch, depth):
            own = states[live]
            logits = own @ self.lm_head.T
            hit = logits.detach().argmax(-1) == expected[live]
            yield Chain(own, logits, live, hit)
            reached = torch.zeros_like(live).masked_scatter(live, hit) if only_after_hits else live
            live = F.pad(reached, (1, 0))[:, :-1] & start

    @torch.inference_mode()
    def scores(self, indices: Sequence[int]) -> dict[str, float]:
        """Return agreement with the target's greedy choice, acceptance by draft position, and agreement by kind."""
        tried, hits = torch.zeros(POSITIONS), torch.zeros(POSITIONS)
        by_kind = torch.zeros(2, len(prompts.KINDS))
        loss = 0.0
        for batch in self.found.batches(indices, self.device):
            for w, chain in enumerate(self.chains(batch, batch.taught, POSITIONS)):
                tried[w] += len(chain.hit)
                hits[w] += int(chain.hit.sum())
                if w == 0:
                    loss += float(self.loss_of(chain, batch))
                    by_kind += count_by_kind(self.made.kinds[batch.indices], chain.live, chain.hit)
        shares = (hits / tried.clamp(min=1)).tolist()
        scores = {"held_out_loss": loss / max(1.0, float(tried[0])), "agreement": shares[0]}
        scores |= {f"accept_{w}": share for w, share in enumerate(shares[1:], 2)}
        return scores | shares_by_kind(by_kind)

    @torch.inference_mode()
    def calibrate(self, indices: Sequence[int]) -> Calibration:
        """Calibrate confidences: how often drafts of a confidence, and the drafts after them, are right."""
        confident: list[Tensor] = []
        right: list[Tensor] = []
        before: list[Tensor] = []
        following: list[Tensor] = []
        for batch in self.found.batches(indices, self.device):
            last = torch.zeros(batch.taught.shape, device=self.device)
            for w, chain in enumerate(self.chains(batch, batch.taught, POSITIONS)):
                if w:
                    before.append(F.pad(last, (1, 0))[:, :-1][chain.live].cpu())
                    following.append(chain.hit.float().cpu())
                confidence = chain.logits.softmax(-1).amax(-1)
                confident.append(confidence.cpu())
                right.append(chain.hit.float().cpu())
                last = torch.zeros_like(last).masked_scatter(chain.live, confidence)
        return Calibration(monotone(confident, right), monotone(before, following))


def monotone(confidences: Sequence[Tensor], outcomes: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the expected outcome at CALIBRATED_AT confidences, which never falls (isotonic regression)."""
    x = torch.cat(list(confidences)).double().numpy()
    if not len(x):
        return (0.0,) * len(CALIBRATED_AT)
    distinct, place, count = np.unique(x, return_inverse=True, return_counts=True)
    mean = np.bincount(place, torch.cat(list(outcomes)).double().numpy()) / count
    fitted = isotonic_regression(mean, weights=count).x
    return tuple(round(float(value), 4) for value in np.interp(CALIBRATED_AT, distinct, fitted))
