"""DFlash's knobs. Needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.config import setting
from bench.drafting.knobs import CONFIG_FILE, DRAFT_WEIGHTS
from bench.drafting.pace import PacedConfig
from bench.errors import UserError
from bench.files import user_path
from bench.models import checkpoints

_FILES = [CONFIG_FILE, "model*.safetensors", "model.safetensors.index.json"]


@dataclass(frozen=True)
class DFlashConfig(PacedConfig):
    """DFlash's knobs."""

    stops: ClassVar[tuple[str, ...]] = ("gain", "threshold")
    name: ClassVar[str] = "dflash"
    example: ClassVar[str] = "z-lab/Qwen3-4B-DFlash-b16"  # for Qwen/Qwen3-4B

    weights: str = setting("", "folder or Hugging Face id of a checkpoint for the target; none is packaged")
    stop: str = setting(
        "gain",
        "gain: verify the drafts of a block that are expected to gain more than they cost on this device, and draft "
        "only where that pays; threshold: verify those before the first confidence below it",
    )
    threshold: float = setting(0.0, "for stop=threshold: that confidence; 0: verify the whole block, as published")
    drafts: str = setting("top", "when sampling: top, the most probable; sampled, drawn (for stop=threshold)")
    draft_weights: str = setting("q8", DRAFT_WEIGHTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be in [0, 1]")
        if self.drafts not in ("top", "sampled"):
            raise ValueError(f"drafts={self.drafts} must be top or sampled")
        if self.drafts == "sampled" and self.stop == "gain":
            # How many are verified would depend on what was drawn, and samples would not be the target's.
            raise ValueError("drafts=sampled needs stop=threshold")
        if self.draft_weights not in ("q8", "plain"):
            raise ValueError(f"draft_weights={self.draft_weights} must be q8 or plain")

    def check_files(self, model: str) -> None:
        """Raise UserError if no checkpoint is named, or the folder is not there."""
        asked = self.weights
        remedy = f"name a folder or Hugging Face id of a checkpoint for {model}, as {self.example} is for Qwen/Qwen3-4B"
        if not asked:
            raise UserError(f"{self.name} comes without weights: {remedy} ({self.name}:weights=...)")
        folder = user_path(asked)
        if not folder.is_dir() and (folder.exists() or not checkpoints.HUB_ID.fullmatch(asked)):
            raise UserError(f"{self.name}:weights={asked}: {folder} is no folder: {remedy}")

    def find_folder(self, model: str) -> Path:
        """Return the checkpoint's folder, fetched if it is a Hugging Face id.

        Raises:
            UserError: there is none.

        """
        self.check_files(model)
        folder = user_path(self.weights)
        return folder if folder.is_dir() else checkpoints.fetch_folder(self.weights, _FILES)


Config = DFlashConfig
presets: dict[str, dict[str, Any]] = {"paper": {"stop": "threshold", "threshold": 0.0, "draft_weights": "plain"}}
