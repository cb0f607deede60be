"""Hydra's knobs. Needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.config import setting
from bench.drafting.knobs import DRAFT_WEIGHTS, check_folder, check_knobs
from bench.drafting.tree_files import CHAIN, PUBLISHED, read_tree

AUTHORS = "ankner/hydra-vicuna-7b-v1.3"


@dataclass(frozen=True)
class HydraConfig:
    """Hydra's knobs."""

    tree: str = setting(
        PUBLISHED,
        "mc_sim_7b_63: the authors' tree of 63 drafts; chain: the first choice of every head; rank paths such as "
        "0/0-0/0-1; a JSON file with a list of rank paths; none",
    )
    draft_weights: str = setting("q8", DRAFT_WEIGHTS)
    weights: str = setting("", f"folder or Hugging Face id of the heads, such as {AUTHORS}")

    def __post_init__(self) -> None:
        if self.tree != CHAIN:
            read_tree(self.tree, CHAIN)
        check_knobs(0, "", "", self.draft_weights)

    def check_files(self, model: str) -> None:
        """Raise UserError if there are no weights."""
        check_folder("hydra", self.weights, model, AUTHORS)


Config = HydraConfig
presets: dict[str, dict[str, Any]] = {
    "chain": {"tree": CHAIN},
    "paper": {"tree": PUBLISHED, "draft_weights": "plain"},
}
