"""Medusa's knobs and the settings of its training. Needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.config import setting
from bench.drafting.knobs import COSTS, DRAFT_WEIGHTS, check_folder, check_knobs
from bench.drafting.tree_files import PUBLISHED, read_tree
from bench.train_config import TrainConfig


@dataclass(frozen=True)
class MedusaConfig:
    """Medusa's knobs. Defaults are stored with the weights, else the paper's."""

    heads: int = setting(0, "use the first n heads; 0: all there are")
    tree: str = setting(
        "",
        "auto: the tree expected to be fastest with these heads on this device; chain: the chain expected "
        "to be fastest, or of all heads where heads= is given; mc_sim_7b_63: the paper's, 63 drafts; rank paths "
        "such as 0/0-0/1; a JSON file with a list of rank paths; none; default: auto where the weights record how "
        "often each rank is right, else the paper's",
    )
    stop: str = setting(
        "",
        "gain: no drafts while the question shows that the tree is not worth its cost on this device; never: "
        "the whole tree in every step; default: gain where the tree is chosen for the device, never where it is named",
    )
    draft_vocab: int = setting(
        -1, "draft from the n most frequent tokens only; 0: from all; -1: as stored with the heads"
    )
    accept: str = setting(
        "exact", "exact; or typical: the paper's typical acceptance when sampling, which is NOT lossless"
    )
    first: str = setting(
        "",
        "for accept=typical, the target's own token after the accepted drafts: argmax, the most probable, "
        "as in the authors' code; sample, drawn from the target's distribution; default: argmax",
    )
    drafts: str = setting(
        "", "when sampling: sampled, drafts are drawn; top, the most probable; default: sampled for a chain"
    )
    draft_weights: str = setting("q8", DRAFT_WEIGHTS)
    weights: str = setting(
        "",
        "folder or Hugging Face id of the heads; default: those packaged for the model; paper: those built "
        "as published, if you trained them",
    )
    costs: str = setting("", f"for tree=auto and stop=gain: {COSTS}")

    def __post_init__(self) -> None:
        if self.heads < 0:
            raise ValueError(f"heads={self.heads} must be at least 1 (0: all)")
        if self.accept not in ("exact", "typical"):
            raise ValueError(f"accept={self.accept} must be exact or typical")
        if self.first not in ("", "argmax", "sample"):
            raise ValueError(f"first={self.first} must be argmax or sample")
        if self.first and self.accept != "typical":
            raise ValueError(f"first={self.first} is for accept=typical: leave one of them out")
        if self.tree not in ("", "auto", "chain"):
            read_tree(self.tree)
        if self.stop not in ("", "gain", "never"):
            raise ValueError(f"stop={self.stop} must be gain or never")
        check_knobs(self.draft_vocab, self.drafts, self.costs, self.draft_weights)
        if self.accept == "typical" and self.drafts == "sampled":
            raise ValueError("accept=typical does not use the drafts' distribution: it takes drafts=top")

    def check_files(self, model: str) -> None:
        """Raise UserError if there are no weights."""
        check_folder("medusa", self.weights, model)


Config = MedusaConfig
presets: dict[str, dict[str, Any]] = {
    "chain": {"tree": "chain"},
    "paper": {"tree": PUBLISHED, "weights": "paper", "draft_weights": "plain"},
}


@dataclass(frozen=True)
class MedusaTraining(TrainConfig):
    """How to train Medusa heads."""

    architecture: str = setting(
        "newest",
        "newest: the heads also read the newest token; paper: only the state, as published",
        choices=("newest", "paper"),
    )
    epochs: int = setting(2, "epochs", metavar="N", bounds=(1, 1000))
    heads: int = setting(4, "number of heads, each for a token further ahead", metavar="N", bounds=(1, 64))
    own_lm_heads: bool = setting(
        False, "each head has its own LM head, as published (Medusa-1), instead of sharing the target's"
    )

    @property
    def form(self) -> str:
        """paper for the published architectures; "" for ours."""
        return "paper" if self.own_lm_heads or self.architecture == "paper" else ""


Training = MedusaTraining
