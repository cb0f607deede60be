"""`train kangaroo`: how the adapter begins, its drafts, and the knobs that are stored with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.drafting.levels import one_before
from bench.drafting.stopping import CALIBRATED_AT, Calibration
from bench.drafting.trained import Stored
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.train.chains import ChainTrainer
from bench.train.conversations import Conversations
from bench.train.loop import Batch, Features
from bench.train.training import REGRESSION, ridge_regression
from methods.kangaroo.adapter import Adapter, AdapterConfig, save_adapter
from methods.kangaroo.knobs import KangarooTraining

_GAMMA = 6  # stored with the weights: the paper's
# The stored threshold is the least confidence at which this draft and the next are both right more often than the cost
# of a draft in vanilla steps (measured on two CPU cores).
_DRAFT_COST = 0.15


class AdapterTrainer(ChainTrainer):
    """The adapter's loss and scores."""

    Config = KangarooTraining
    title = "Kangaroo adapter"

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

    @classmethod
    def taps(cls, config: KangarooTraining, target: Decoder) -> tuple[int, ...]:
        """Return the exit layer."""
        if not 0 < config.exit_layer < target.config.layers:
            most = target.config.layers - 1
            raise UserError(f"--exit-layer {config.exit_layer} must be in 1..{most} for {target.name}")
        return (config.exit_layer,)

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
                joined = torch.cat((batch.taps[self.config.exit_layer], one_before(batch.final_states)), dim=-1)
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

    def drafts(self, batch: Batch, depth: int) -> Iterator[Tensor]:
        """Yield the adapter's states, draft by draft."""
        return self.adapter.unrolled(batch.taps[self.config.exit_layer], batch.final_states, depth)

    @property
    def lm_head(self) -> Tensor:
        """The adapter's own LM head, or the target's."""
        return self.head if self.adapter.head is None else self.adapter.head.weight

    def knobs(self, calibration: Calibration) -> dict[str, Any]:
        """Return default knobs to store with the weights; none for a published form, whose knobs are the paper's."""
        if not self.adapter.config.feedback:
            return {}
        curves = zip(CALIBRATED_AT, calibration.accepted, calibration.following, strict=True)
        worth = (confidence for confidence, now, then in curves if now * then >= _DRAFT_COST)
        return {"gamma": _GAMMA, "stop": "gain", "threshold": min(worth, default=1.0)}


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
