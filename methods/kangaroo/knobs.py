"""Kangaroo's knobs and the settings of its training. Needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.config import ChainTraining, setting
from bench.drafting.knobs import COSTS, DRAFT_WEIGHTS, check_folder, check_knobs
from bench.engine import MAX_DRAFTS

STOPS = ("gain", "threshold")


@dataclass(frozen=True)
class KangarooConfig:
    """Kangaroo's knobs. Defaults are stored with the weights, else the paper's."""

    exit_layer: int = setting(0, "layers of the draft model; 0: those of the adapter")
    gamma: int = setting(0, "most drafts in a row; 0: as stored with the adapter, else 6")
    beam: int = setting(0, "most drafts per level: 1 is a chain, more a tree; 0: as stored with the adapter, else 1")
    nodes: int = setting(24, "most drafts in a step")
    drafts: str = setting(
        "",
        "when sampling: sampled, drafts are drawn (chains only); top, the most probable; default: sampled for a chain",
    )
    stop: str = setting(
        "",
        "when to stop drafting: threshold, once a draft's probability is below it (the paper's rule); "
        "gain, once one more draft is expected to cost more than it gains on this device; default: threshold if "
        "one is given, else as stored with the adapter",
    )
    threshold: float = setting(-1.0, "that probability; 0: never stop; -1: as stored with the adapter, else 0.6")
    draft_vocab: int = setting(
        -1,
        "draft from the n most frequent tokens only (FR-Spec, arXiv 2502.14856); 0: from all; -1: as "
        "stored with the adapter",
    )
    draft_weights: str = setting("q8", DRAFT_WEIGHTS + "; q8 drafts with a copy of the exit layers, too")
    weights: str = setting(
        "",
        "folder or Hugging Face id of the adapter; default: the one packaged for the model; paper: the "
        "packaged one that is built and trained as published",
    )
    costs: str = setting("", f"for stop=gain: {COSTS}")

    def __post_init__(self) -> None:
        if self.exit_layer < 0:
            raise ValueError(f"exit_layer={self.exit_layer} must not be negative")
        check_knobs(self.draft_vocab, self.drafts, self.costs, self.draft_weights)
        for name in ("gamma", "beam"):
            if not 0 <= (value := getattr(self, name)) <= MAX_DRAFTS:
                raise ValueError(
                    f"{name}={value} must be at least 1 and at most {MAX_DRAFTS} (0: as stored with the adapter)"
                )
        if not 1 <= self.nodes <= MAX_DRAFTS:
            raise ValueError(f"nodes={self.nodes} must be in 1..{MAX_DRAFTS}")
        if self.drafts == "sampled" and self.beam > 1:
            raise ValueError("drafts=sampled is for a chain (beam=1): a beam keeps the most probable paths")
        if self.threshold != -1 and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be in [0, 1]")
        if self.stop and self.stop not in STOPS:
            raise ValueError(f"stop={self.stop} must be {' or '.join(STOPS)}")

    def check_files(self, model: str) -> None:
        """Raise UserError if there are no weights."""
        check_folder("kangaroo", self.weights, model)


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
