"""DSpark's knobs. Needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from methods.dflash import knobs
from methods.dflash.knobs import DFlashConfig


@dataclass(frozen=True)
class DSparkConfig(DFlashConfig):
    """DSpark's knobs: DFlash's."""

    name: ClassVar[str] = "dspark"
    example: ClassVar[str] = "deepseek-ai/dspark_qwen3_4b_block7"  # for Qwen/Qwen3-4B


Config = DSparkConfig
presets: dict[str, dict[str, Any]] = {"paper": knobs.presets["paper"] | {"drafts": "sampled"}}
