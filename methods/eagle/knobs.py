"""EAGLE's knobs. Needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.config import setting
from bench.drafting.level_knobs import LevelConfig
from bench.drafting.tree_files import RankPath, read_tree
from bench.train_config import ChainTraining

GROWN, BEST = "grown", "best"
STATIC = "mc_sim_25"  # of EAGLE-1


@dataclass(frozen=True)
class EagleConfig(LevelConfig):
    """EAGLE's knobs. Defaults are stored with the weights."""

    name: ClassVar[str] = "eagle"
    defaults: ClassVar[dict[str, Any]] = {"gamma": 6, "beam": 4, "stop": "gain", "threshold": 0.3}
    as_chain: ClassVar[dict[str, Any]] = {"tree": GROWN}

    tree: str = setting(
        GROWN,
        f"the shape of a step's drafts: {GROWN}, the best paths of each level until `stop` ends it (a chain with "
        f"beam=1); {BEST}, EAGLE-2's, the `nodes` most probable of all candidates of gamma levels, in each of which "
        f"`beam` are expanded; {STATIC}, EAGLE-1's 25 drafts; rank paths such as 0/0-0/1; a JSON file with a list of "
        "rank paths",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        paths = self.paths
        if self.tree == GROWN:
            return
        if paths == []:
            raise ValueError(f"tree={self.tree} has no drafts: take a tree that has, or vanilla")
        if self.drafts == "sampled":
            raise ValueError(f"drafts=sampled is for a chain (tree={GROWN},beam=1)")
        if self.stop or self.threshold != -1:
            raise ValueError(f"stop and threshold are for tree={GROWN}: leave them out, or tree={self.tree}")

    @property
    def paths(self) -> list[RankPath] | None:
        """The rank paths of a static tree; None: it is not static."""
        return None if self.tree in (GROWN, BEST) else read_tree(self.tree, f"{GROWN}, {BEST}")

    def filled(self, stored: dict[str, Any], draft_vocab: int) -> dict[str, Any]:
        """As for all; a tree that is not grown is never stopped, and a static one has its own sizes."""
        values = super().filled(stored, draft_vocab)
        if self.tree == GROWN:
            return values
        values |= {"stop": "", "threshold": -1.0, "drafts": "top"}
        if (paths := self.paths) is not None:
            ranks, depth = 1 + max(map(max, paths)), max(map(len, paths))
            values |= {"gamma": self.gamma or depth, "beam": ranks, "nodes": len(paths)}
        return values


Config = EagleConfig
_PUBLISHED: dict[str, Any] = {"draft_vocab": 0, "weights": "paper", "draft_weights": "plain"}
presets: dict[str, dict[str, Any]] = {
    "chain": {"beam": 1},
    "tree": {"beam": 4},
    "paper": {"tree": STATIC, **_PUBLISHED},
    "paper2": {"tree": BEST, "gamma": 6, "beam": 10, "nodes": 59, **_PUBLISHED},
}


@dataclass(frozen=True)
class EagleTraining(ChainTraining):
    """How to train an EAGLE head."""

    architecture: str = setting(
        "normed",
        "normed: a Llama layer with all of its norms, trained on the target's distributions; paper: without a norm "
        "before and after, trained to copy the features, as published",
        choices=("normed", "paper"),
    )
    ffn: int = setting(0, "width of the feed-forward block; 0: the target's", metavar="N", bounds=(0, 2**20))
    batch: int = setting(8, "conversations per optimiser step", metavar="N", bounds=(1, 10_000))

    @property
    def form(self) -> str:
        """The architecture; "" for ours."""
        return "" if self.architecture == "normed" else self.architecture


Training = EagleTraining
