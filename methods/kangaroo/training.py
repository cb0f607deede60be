"""`train kangaroo`: the adapter's loss, its held-out scores, and the calibration of its confidences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor

from bench.drafting.levels import one_before
from bench.drafting.stopping import CALIBRATED_AT, Calibration
from bench.drafting.trained import Stored
from bench.engine.decoder import Decoder
from bench.train import prompts
from bench.train.conversations import Conversations
from bench.train.loop import Batch, Features
from bench.train.training import REGRESSION, Trainer, count_by_kind, ridge_regression, shares_by_kind
from methods.kangaroo.adapter import Adapter, AdapterConfig, save_adapter
from methods.kangaroo.knobs import KangarooTraining

POSITIONS = 6  # draft positions whose acceptance is reported
_GAMMA = 6  # stored with the weights: the paper's
# The stored threshold is the least confidence at which this draft and the next are both right more often than the cost
# of a draft in vanilla steps (measured on two CPU cores).
_DRAFT_COST = 0.15
_UNROLL_FROM = 0.5  # share of the steps: later drafts of a chain are trained once the first ones hit


class AdapterTrainer(Trainer):
    """The adapter's loss and scores."""

    Config = KangarooTraining
    title = "Kangaroo adapter"
    loss_text = "soft cross-entropy -sum p log q over the draft vocabulary"
    scores_text = (
        "`agreement` is the share of the target's own choices that the draft's first choice hits; `accept_w` the same "
        "for the w-th draft after w - 1 hits; the last columns are the agreement by kind of prompt."
    )

    def __init__(
        self, target: Decoder, config: KangarooTraining, found: Features, made: Conversations, ranking: Tensor
    ):
        super().__init__(target, config, found, made, ranking)
        dimensions = _dimensions(target, config, self.draft_vocab)
        self.module = self.adapter = Adapter(dimensions).to(self.device)
        # Without feedback, later drafts are computed as the first one.
        self.unroll = config.unroll if dimensions.feedback else 1
        self.adapter.prepare(int(found.lengths.max()), self.device)
        self._initialise(target.norm)

    def _initialise(self, norm: Tensor) -> None:
        """Start as the logit lens: the target's final norm and LM head, with zero attention and FFN.

        With feedback, the projection starts as the best linear guess of the target's final state (ridge regression),
        which already agrees with the target on a quarter of its choices.
        """
        if self.adapter.config.attention:
            torch.nn.init.zeros_(self.adapter.o.weight)
        if self.adapter.config.ffn:
            torch.nn.init.zeros_(self.adapter.down.weight)
        self.adapter.output_norm.data.copy_(norm)
        if self.adapter.head is not None:
            self.adapter.head.weight.data.copy_(self.head)
        if self.adapter.input is not None:
            self.adapter.input.weight.data.copy_(self._regression(norm))

    def _regression(self, norm: Tensor) -> Tensor:
        """Return the map [d, 2 d] from exit state and previous final state to the final state without norm weights."""

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in self.found.batches(self.train_on[:REGRESSION], self.device):
                joined = torch.cat((batch.exit_states, one_before(batch.final_states)), dim=-1)
                yield joined[batch.taught], batch.final_states[batch.taught] / norm

        return ridge_regression(pairs())

    def save(self, folder: Path) -> None:
        """Write the adapter with its ranking, calibration and default knobs."""
        calibration = self.calibrate(self.held_out)
        save_adapter(folder, self.adapter, Stored(self.ranking, calibration, self.knobs(calibration)))

    def describe(self) -> str:
        """Return the adapter's form."""
        return (
            f"architecture {self.config.architecture}, exit layer {self.config.exit_layer}, "
            f"draft vocabulary {self.draft_vocab or 'whole'}"
        )

    def loss(self, indices: Sequence[int]) -> Tensor:
        """Return -sum p log q per position, p and q over the draft vocabulary, summed over the drafts of a chain.

        The w-th draft counts where those before it hit, as only there it matters. With teach=all, the target's
        distributions over prompts are trained on too.
        """
        batch = self.found.batch(indices).to(self.device)
        start = batch.inside if self.config.teach == "all" else batch.taught
        total = torch.zeros((), device=self.device)
        depth = 1 if self.done < _UNROLL_FROM else self.unroll
        for chain in self._chains(batch, start, depth):
            total = total + self._entropy(chain, batch)
        return total / start.sum().clamp(min=1)

    def _entropy(self, chain: _Chain, batch: Batch) -> Tensor:
        teacher = (batch.final_states[chain.live] @ self.head.T).softmax(-1)
        return F.cross_entropy(chain.logits, teacher, reduction="sum")

    def _chains(self, batch: Batch, start: Tensor, depth: int) -> Iterator[_Chain]:
        """Yield the w-th drafts, w = 1.., of chains begun at every position of `start`, while those before them hit.

        Under greedy verification, drafting after accepted drafts sees the states of the target's own text, so that
        acceptance can be computed on the target's answers without decoding.
        """
        expected = self.places[batch.tokens.roll(-1, 1)]
        head = self.head if self.adapter.head is None else self.adapter.head.weight
        live = start
        for states in self.adapter.unrolled(batch.exit_states, batch.final_states, depth):
            logits = states[live] @ head.T
            hit = logits.detach().argmax(-1) == expected[live]
            yield _Chain(logits, live, hit)
            reached = torch.zeros_like(live).masked_scatter(live, hit)
            live = F.pad(reached, (1, 0))[:, :-1] & start

    @torch.inference_mode()
    def scores(self, indices: Sequence[int]) -> dict[str, float]:
        """Return agreement with the target's greedy choice, acceptance by draft position, and agreement by kind."""
        tried, hits = torch.zeros(POSITIONS), torch.zeros(POSITIONS)
        by_kind = torch.zeros(2, len(prompts.KINDS))
        entropy = 0.0
        for batch in self.found.batches(indices, self.device):
            for w, chain in enumerate(self._chains(batch, batch.taught, POSITIONS)):
                tried[w] += len(chain.hit)
                hits[w] += int(chain.hit.sum())
                if w == 0:
                    entropy += float(self._entropy(chain, batch))
                    by_kind += count_by_kind(self.made.kinds[batch.indices], chain.live, chain.hit)
        shares = (hits / tried.clamp(min=1)).tolist()
        scores = {"held_out_loss": entropy / max(1.0, float(tried[0])), "agreement": shares[0]}
        scores |= {f"accept_{w}": share for w, share in enumerate(shares[1:], 2)}
        return scores | shares_by_kind(by_kind)

    def knobs(self, calibration: Calibration) -> dict[str, Any]:
        """Return default knobs to store with the weights; none for a published form, whose knobs are the paper's."""
        if not self.adapter.config.feedback:
            return {}
        curves = zip(CALIBRATED_AT, calibration.accepted, calibration.following, strict=True)
        worth = (confidence for confidence, now, then in curves if now * then >= _DRAFT_COST)
        return {"gamma": _GAMMA, "stop": "gain", "threshold": min(worth, default=1.0)}

    @torch.inference_mode()
    def calibrate(self, indices: Sequence[int]) -> Calibration:
        """Calibrate confidences: how often drafts of a confidence, and the drafts after them, are right."""
        confident: list[Tensor] = []
        right: list[Tensor] = []
        before: list[Tensor] = []
        following: list[Tensor] = []
        for batch in self.found.batches(indices, self.device):
            last = torch.zeros(batch.taught.shape, device=self.device)
            for w, chain in enumerate(self._chains(batch, batch.taught, POSITIONS)):
                if w:
                    before.append(F.pad(last, (1, 0))[:, :-1][chain.live].cpu())
                    following.append(chain.hit.float().cpu())
                confidence = chain.logits.softmax(-1).amax(-1)
                confident.append(confidence.cpu())
                right.append(chain.hit.float().cpu())
                last = torch.zeros_like(last).masked_scatter(chain.live, confidence)
        return Calibration(_monotone(confident, right), _monotone(before, following))


def _dimensions(target: Decoder, config: KangarooTraining, draft_vocab: int) -> AdapterConfig:
    """Return an architecture by name: ours, and those of the paper's Table 2."""
    c, name = target.config, config.architecture
    own_width = {"paper-layer": target.layers[0].down.in_features, "paper-mlp": c.hidden}
    return AdapterConfig(
        c.hidden,
        c.heads,
        c.norm_eps,
        config.exit_layer,
        draft_vocab,
        feedback=name == "feedback",
        ffn=config.ffn or own_width.get(name, 0),
        attention=name != "paper-mlp",
        gated=name != "paper-mlp",
        own_head=(draft_vocab or c.vocab) if name in ("paper-own-head", "paper-mlp") else 0,
    )


@dataclass
class _Chain:
    """The w-th drafts of chains: logits [m, V'], their positions [B, n], and whether they hit [m]."""

    logits: Tensor
    live: Tensor
    hit: Tensor


def _monotone(confidences: Sequence[Tensor], outcomes: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the expected outcome at CALIBRATED_AT confidences, which never falls (isotonic regression)."""
    x = torch.cat(list(confidences)).double().numpy()
    if not len(x):
        return (0.0,) * len(CALIBRATED_AT)
    distinct, place, count = np.unique(x, return_inverse=True, return_counts=True)
    mean = np.bincount(place, torch.cat(list(outcomes)).double().numpy()) / count
    fitted = isotonic_regression(mean, weights=count).x
    return tuple(round(float(value), 4) for value in np.interp(CALIBRATED_AT, distinct, fitted))
