"""What a paper shows of a method, as runs and sweeps here: declared next to the method. No torch.

A module `reproduction` next to a method's own has a `RECIPE`, which `reproduce METHOD` carries out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.train_config import TRAIN


@dataclass(frozen=True)
class Part:
    """A table or figure of the paper: one run, or one sweep over a grid."""

    name: str  # of its folder
    shows: str  # what the paper shows
    methods: tuple[str, ...]  # as --method takes them; a sweep has one
    minutes: int  # about, on two cores with the default model
    grid: tuple[str, ...] = ()  # as --grid takes them
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the run, in which it is not as by default
    ablation: str = ""  # what the file of published figures says was varied; "": the paper's results by task
    called: Mapping[str, str] = field(default_factory=dict)  # values of the grid -> as the published figures call them
    note: str = ""  # how this differs from what the paper did
    plots: tuple[str, ...] = ()  # of a run, that show what the paper's figure does

    @property
    def trainings(self) -> int:
        """Sets of weights that are trained for it."""
        sizes = [text.count(",") + 1 for text in self.grid if text.startswith(TRAIN)]
        return math.prod(sizes) if sizes else 0


@dataclass(frozen=True)
class Recipe:
    """How to reproduce a paper."""

    source: str  # the `source` of its file in results/published
    parts: tuple[Part, ...]
