"""The knobs of methods that draft level by level, see `bench.drafting.levels`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from bench.config import setting
from bench.drafting.knobs import COSTS, DRAFT_WEIGHTS, check_folder, check_knobs
from bench.engine import MAX_DRAFTS

STOPS = ("gain", "threshold")


@dataclass(frozen=True)
class LevelConfig:
    """Knobs. A subclass names its method and has defaults for what is not stored with the weights."""

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]  # gamma, beam, stop, threshold
    as_chain: ClassVar[dict[str, Any]] = {}  # what the knobs of a chain are besides beam=1

    gamma: int = setting(0, "most drafts in a row; 0: as stored with the weights, else 6")
    beam: int = setting(0, "most drafts per level: 1 is a chain, more a tree; 0: as stored with the weights")
    nodes: int = setting(24, "most drafts in a step")
    drafts: str = setting(
        "",
        "when sampling: sampled, drafts are drawn (chains only); top, the most probable; default: sampled for a chain",
    )
    stop: str = setting(
        "",
        "when to stop drafting: threshold, once a draft's probability is below it; gain, once one more draft is "
        "expected to cost more than it gains on this device; default: threshold if one is given, else as stored with "
        "the weights",
    )
    threshold: float = setting(-1.0, "that probability; 0: never stop; -1: as stored with the weights")
    draft_vocab: int = setting(
        -1,
        "draft from the n most frequent tokens only (FR-Spec, arXiv 2502.14856); 0: from all; -1: as "
        "stored with the weights",
    )
    draft_weights: str = setting("q8", DRAFT_WEIGHTS)
    weights: str = setting(
        "",
        "folder or Hugging Face id of the weights; default: those packaged for the model; paper: the packaged ones "
        "that are built and trained as published",
    )
    costs: str = setting("", f"for stop=gain: {COSTS}")

    def __post_init__(self) -> None:
        check_knobs(self.draft_vocab, self.drafts, self.costs, self.draft_weights)
        for name in ("gamma", "beam"):
            if not 0 <= (value := getattr(self, name)) <= MAX_DRAFTS:
                raise ValueError(
                    f"{name}={value} must be at least 1 and at most {MAX_DRAFTS} (0: as stored with the weights)"
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
        check_folder(self.name, self.weights, model)

    def completed(self, stored: dict[str, Any], draft_vocab: int) -> Self:
        """Fill in what was not asked for: the defaults `stored` with the weights, else the method's."""
        return replace(self, **self.filled(stored, draft_vocab))

    def filled(self, stored: dict[str, Any], draft_vocab: int) -> dict[str, Any]:
        """Return the values of `completed` that depend on what is stored."""
        known = self.defaults | stored
        asked = "threshold" if self.threshold != -1 else ""  # whoever gives a threshold wants it used
        beam = self.beam or (1 if self.drafts == "sampled" else known["beam"])  # drawn drafts are a chain
        return {
            "gamma": self.gamma or known["gamma"],
            "beam": beam,
            "drafts": self.drafts or ("sampled" if beam == 1 else "top"),
            "stop": self.stop or asked or known["stop"],
            "threshold": known["threshold"] if self.threshold == -1 else self.threshold,
            "draft_vocab": draft_vocab if self.draft_vocab < 0 else self.draft_vocab,
        }
