"""Kangaroo's knobs and the settings of its training. Needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.config import setting
from bench.drafting.knobs import DRAFT_WEIGHTS
from bench.drafting.level_knobs import LevelConfig
from bench.train_config import ChainTraining


@dataclass(frozen=True)
class KangarooConfig(LevelConfig):
    """Kangaroo's knobs. Defaults are stored with the weights, else the paper's."""

    name: ClassVar[str] = "kangaroo"
    defaults: ClassVar[dict[str, Any]] = {"gamma": 6, "beam": 1, "stop": "threshold", "threshold": 0.6}

    draft_weights: str = setting("q8", DRAFT_WEIGHTS + "; q8 drafts with a copy of the exit layers, too")
    exit_layer: int = setting(0, "layers of the draft model; 0: those of the adapter")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit_layer < 0:
            raise ValueError(f"exit_layer={self.exit_layer} must not be negative")


Config = KangarooConfig
presets: dict[str, dict[str, Any]] = {
    "chain": {"beam": 1},
    "tree": {"beam": 3},
    "paper": {
        "gamma": 6,
        "beam": 1,
        "stop": "threshold",
        "threshold": 0.6,
        "draft_vocab": 0,
        "weights": "paper",
        "draft_weights": "plain",
    },
    "paper-tree": {
        "gamma": 6,
        "beam": 10,
        "stop": "threshold",
        "threshold": 0.4,
        "draft_vocab": 0,
        "weights": "paper",
        "draft_weights": "plain",
    },
}


@dataclass(frozen=True)
class KangarooTraining(ChainTraining):
    """How to train a Kangaroo adapter."""

    exit_layer: int = setting(2, "layers of the draft model", metavar="N", bounds=(1, 1000))
    architecture: str = setting(
        "feedback",
        "feedback: the adapter also reads the target's final state one position before; paper: attention only, as "
        "published; the others are of the paper's Table 2: attention with its own LM head, a whole transformer layer, "
        "two matrices without attention and with their own LM head",
        choices=("feedback", "paper", "paper-own-head", "paper-layer", "paper-mlp"),
    )
    ffn: int = setting(
        0,
        "width of the adapter's feed-forward block; 0: none (paper-layer: the target's; paper-mlp: the hidden size)",
        metavar="N",
        bounds=(0, 1_000_000),
    )

    @property
    def form(self) -> str:
        """The architecture; "" for ours."""
        return "" if self.architecture == "feedback" else self.architecture


Training = KangarooTraining
