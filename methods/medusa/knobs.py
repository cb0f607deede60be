"""Medusa's knobs and the settings of its training. Needs no torch: mistakes in them are reported at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from bench.config import TrainConfig, setting
from bench.drafting.knobs import check_folder, check_knobs
from bench.files import user_file

PUBLISHED = "mc_sim_7b_63"
NO_DRAFTS = "none"  # the tree that is chosen where no draft pays
SPELLED = re.compile(r"\d+(-\d+)*(/\d+(-\d+)*)*")
_NAMED = ("", "auto", "chain", NO_DRAFTS, PUBLISHED)


@dataclass(frozen=True)
class MedusaConfig:
    """The knobs of Medusa. Left open, they are as stored with the weights, else the paper's."""

    heads: int = field(default=0, metadata={"help": "use the first n heads; 0: all there are"})
    tree: str = field(
        default="",
        metadata={
            "help": "chain: as long as is expected to be fastest, or of all the heads that are asked for; "
            "mc_sim_7b_63: the paper's, 63 drafts; a JSON file with a list of rank paths; such paths spelled like "
            "0/0-0/1; auto: what is expected to be fastest with these heads on this device; default: auto where the "
            "weights say how often each rank is right, else the paper's"
        },
    )
    draft_vocab: int = field(
        default=-1,
        metadata={"help": "cut the LM head to the n most frequent tokens; 0: all; -1: as the weights say"},
    )
    accept: str = field(
        default="exact",
        metadata={"help": "exact, or typical: the paper's typical acceptance when sampling, which is NOT lossless"},
    )
    drafts: str = field(
        default="",
        metadata={"help": "when sampling: sampled, or top, the most probable; default: sampled for a chain, else top"},
    )
    weights: str = field(
        default="",
        metadata={
            "help": "folder or Hugging Face id of the heads; default: the packaged ones of the model; paper: those "
            "built as published, if you trained them"
        },
    )
    costs: str = field(
        default="",
        metadata={"help": "for tree=auto: forward-pass costs as run.json records them; default: measured at start"},
    )

    def __post_init__(self) -> None:
        if self.heads < 0:
            raise ValueError(f"heads={self.heads} must be at least 1 (0: all)")
        if self.accept not in ("exact", "typical"):
            raise ValueError(f"accept={self.accept} must be exact or typical")
        check_knobs(self.draft_vocab, self.drafts, self.costs)
        if self.accept == "typical" and self.drafts == "sampled":
            raise ValueError("accept=typical looks at the target alone: it takes drafts=top")

    def check_files(self, model: str) -> None:
        """Raise UserError if there are no weights, or no file for the tree."""
        check_folder("medusa", self.weights, model)
        if self.tree not in _NAMED and not SPELLED.fullmatch(self.tree):
            user_file(self.tree)


Config = MedusaConfig
presets: dict[str, dict[str, Any]] = {
    "chain": {"tree": "chain"},
    "paper": {"tree": PUBLISHED, "weights": "paper"},
}


@dataclass(frozen=True)
class MedusaTraining(TrainConfig):
    """How to train Medusa heads."""

    architecture: str = setting(
        "newest",
        "newest: the heads also read the newest token; paper: the state alone, as published",
        choices=("newest", "paper"),
    )
    epochs: int = setting(2, "passes over the tokens", metavar="N", least=1, most=1000)
    heads: int = setting(4, "heads, each for a token further ahead", metavar="N", least=1, most=64)
    own_lm_heads: bool = setting(
        False, "each head has its own LM head, as published (Medusa-1), instead of sharing the target's"
    )

    @property
    def form(self) -> str:
        """As published, or ours."""
        return "paper" if self.own_lm_heads or self.architecture == "paper" else ""


Training = MedusaTraining
