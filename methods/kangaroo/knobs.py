"""Kangaroo's knobs and the settings of its training. Needs no torch: mistakes in them are reported at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.config import TrainConfig, setting
from bench.drafting.knobs import check_folder, check_knobs
from bench.engine import MAX_DRAFTS

STOPS = ("gain", "threshold")


@dataclass(frozen=True)
class KangarooConfig:
    """The knobs of Kangaroo. Left open, they are as stored with the weights, else the paper's."""

    exit_layer: int = field(default=0, metadata={"help": "layers of the draft model; 0: what the adapter was made for"})
    gamma: int = field(default=0, metadata={"help": "most drafts in a row; 0: as stored with the adapter, else 6"})
    beam: int = field(
        default=0,
        metadata={"help": "most drafts side by side: 1 a chain, more a tree; 0: as stored with the adapter, else 1"},
    )
    nodes: int = field(default=24, metadata={"help": "most drafts in a step"})
    drafts: str = field(
        default="",
        metadata={
            "help": "when sampling: sampled (a chain's) or top, the most probable; default: sampled where possible"
        },
    )
    stop: str = field(
        default="",
        metadata={
            "help": "when to stop drafting: threshold, below a probability of the last draft (the paper's); gain, "
            "when one more draft is expected to cost more than it saves on this device; default: threshold if one is "
            "given, else as stored with the adapter"
        },
    )
    threshold: float = field(
        default=-1.0,
        metadata={"help": "that probability; 0: never stop; -1: as stored with the adapter, else 0.6"},
    )
    draft_vocab: int = field(
        default=-1,
        metadata={
            "help": "cut the draft's LM head to the n most frequent tokens (FR-Spec); 0: all; -1: as the adapter says"
        },
    )
    weights: str = field(
        default="",
        metadata={
            "help": "folder or Hugging Face id of the adapter; default: the packaged one of the model; paper: the "
            "packaged one that is built and trained as published"
        },
    )
    costs: str = field(
        default="",
        metadata={"help": "for stop=gain: forward-pass costs as run.json records them; default: measured at start"},
    )

    def __post_init__(self) -> None:
        if self.exit_layer < 0:
            raise ValueError(f"exit_layer={self.exit_layer} must not be negative")
        check_knobs(self.draft_vocab, self.drafts, self.costs)
        for name in ("gamma", "beam"):
            if not 0 <= (value := getattr(self, name)) <= MAX_DRAFTS:
                raise ValueError(
                    f"{name}={value} must be at least 1 and at most {MAX_DRAFTS} (0: as stored with the adapter)"
                )
        if not 1 <= self.nodes <= MAX_DRAFTS:
            raise ValueError(f"nodes={self.nodes} must lie in 1..{MAX_DRAFTS}")
        if self.drafts == "sampled" and self.beam > 1:
            raise ValueError("drafts=sampled is for a chain (beam=1): a beam keeps the most probable paths")
        if self.threshold != -1 and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie in [0, 1]")
        if self.stop and self.stop not in STOPS:
            raise ValueError(f"stop={self.stop} must be {' or '.join(STOPS)}")

    def check_files(self, model: str) -> None:
        """Raise UserError if there are no weights."""
        check_folder("kangaroo", self.weights, model)


Config = KangarooConfig
presets: dict[str, dict[str, Any]] = {
    "chain": {"beam": 1},
    "tree": {"beam": 3},
    "paper": {"gamma": 6, "beam": 1, "stop": "threshold", "threshold": 0.6, "draft_vocab": 0, "weights": "paper"},
    "paper-tree": {
        "gamma": 6,
        "beam": 10,
        "stop": "threshold",
        "threshold": 0.4,
        "draft_vocab": 0,
        "weights": "paper",
    },
}


@dataclass(frozen=True)
class KangarooTraining(TrainConfig):
    """How to train a Kangaroo adapter."""

    architecture: str = setting(
        "feedback",
        "feedback: the adapter also reads the target's final state one position before; paper: as published, attention "
        "alone; the others of the paper's Table 2: attention with an LM head of its own, a whole transformer layer, "
        "two matrices without attention with an LM head of their own",
        choices=("feedback", "paper", "paper-own-head", "paper-layer", "paper-mlp"),
    )
    ffn: int = setting(
        0,
        "width of the adapter's feed-forward block; 0: none, but a whole layer has the target's, and two matrices "
        "without attention that of the states",
        metavar="N",
        least=0,
        most=1_000_000,
    )
    unroll: int = setting(
        3, "drafts in a row that a feedback adapter is trained on, in the second half", metavar="N", least=1, most=64
    )
    teach: str = setting(
        "answers", "positions that teach: all, or only those where the target answers", choices=("all", "answers")
    )

    @property
    def form(self) -> str:
        """The architecture, but for ours."""
        return "" if self.architecture == "feedback" else self.architecture


Training = KangarooTraining
