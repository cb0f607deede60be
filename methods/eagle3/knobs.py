"""EAGLE-3's knobs, which are EAGLE's. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.config import setting
from bench.train_config import ChainTraining
from methods.eagle.knobs import BEST, EagleConfig


@dataclass(frozen=True)
class Eagle3Config(EagleConfig):
    """EAGLE-3's knobs. Defaults are stored with the weights."""

    name: ClassVar[str] = "eagle3"


Config = Eagle3Config
presets: dict[str, dict[str, Any]] = {
    "chain": {"beam": 1},
    "tree": {"beam": 4},
    "paper": {"tree": BEST, "gamma": 6, "beam": 10, "nodes": 59, "draft_weights": "plain"},
}


@dataclass(frozen=True)
class Eagle3Training(ChainTraining):
    """How to train an EAGLE-3 head."""

    batch: int = setting(8, "conversations per optimiser step", metavar="N", bounds=(1, 10_000))


Training = Eagle3Training
