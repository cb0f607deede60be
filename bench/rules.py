"""What counts as a change of speed, and how a gate decides. Light: the command line reads its defaults from here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bench.errors import UserError

# What must be alike before two runs can be compared.
IDENTITY = ("model", "questions", "dtype", "device", "limit of new tokens", "sampling")
ANSWERS = "answers"  # vanilla's own: other tokens than base's mean another engine, or ties that fell otherwise
ALLOWED = (*IDENTITY, ANSWERS)


@dataclass(frozen=True)
class Rules:
    """What counts as a change."""

    effect: float = 0.02  # relative change of decoding time or speedup below which nothing is better or worse
    prefill_effect: float = 0.1  # the same of the prefill, which is one pass an answer and noisier
    tolerance: float = 0.02  # relative change of a counter that another machine may make
    allowed: tuple[str, ...] = ()  # differences between the runs that were said to be meant, of ALLOWED

    def __post_init__(self) -> None:
        for flag, value in (("--effect", self.effect), ("--prefill-effect", self.prefill_effect)):
            if not 0 < value < 1:
                raise UserError(f"{flag} {value} must lie between 0 and 1 (0.02: two per cent)")
        if not 0 <= self.tolerance < 1:
            raise UserError(f"--tolerance {self.tolerance} must lie between 0 and 1")
        for name in self.allowed:
            if name not in ALLOWED:
                raise UserError(f"--allow {name!r}: no such difference; there are {', '.join(ALLOWED)}")


@dataclass(frozen=True)
class GateSettings:
    """How a gate decides, beside the settings of the runs that it makes."""

    budget_min: float = 10.0  # minutes of asking
    alarm: float = 0.02  # chance that unchanged code is called worse, over all methods of a gate
    rules: Rules = field(default_factory=Rules)
    slower: tuple[tuple[str, float], ...] = ()  # new's methods made slower by a share, to test the gate

    def __post_init__(self) -> None:
        if not 0 < self.budget_min < math.inf:
            raise UserError(f"--budget-min {self.budget_min} must be a number above 0")
        if not 0 < self.alarm < 0.5:
            raise UserError(f"--alarm {self.alarm} must lie between 0 and 0.5 (0.02: two gates in a hundred)")
