"""What counts as a change of speed, and how a gate decides. Light: the command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.config import setting
from bench.errors import UserError

# What must be alike before two runs can be compared.
IDENTITY = ("model", "questions", "dtype", "device", "limit of new tokens", "sampling")
ANSWERS = "answers"  # vanilla's own: other tokens than base's mean another engine, or ties resolved differently
PROMPTS = ("chat template", "tokenizer", "prompts")  # likewise, as far as both records say it
ALLOWED = (*IDENTITY, *PROMPTS, ANSWERS)
_WEEK_MIN = 7 * 24 * 60


@dataclass(frozen=True)
class Rules:
    """What counts as a change."""

    effect: float = setting(0.02, "relative change of decoding time or speedup that matters", metavar="X")
    prefill_effect: float = setting(  # one pass an answer, and noisier
        0.1, "relative change of the prefill's time that matters", metavar="X"
    )
    tolerance: float = setting(
        0.02, "relative change of CR and other counters that another machine may make", metavar="X"
    )
    allow: tuple[str, ...] = setting(
        (), f"compare in spite of a difference in {', '.join(ALLOWED)}; may be repeated", metavar="WHAT"
    )

    def __post_init__(self) -> None:
        for flag, value in (("--effect", self.effect), ("--prefill-effect", self.prefill_effect)):
            if not 0 < value < 1:
                raise UserError(f"{flag} {value} must lie between 0 and 1 (0.02: two per cent)")
        if not 0 <= self.tolerance < 1:
            raise UserError(f"--tolerance {self.tolerance} must lie between 0 and 1")
        for name in self.allow:
            if name not in ALLOWED:
                raise UserError(f"--allow {name!r}: no such difference; there are {', '.join(ALLOWED)}")


@dataclass(frozen=True)
class GateSettings:
    """How a gate decides, beside the settings of the runs that it makes."""

    budget_min: float = setting(10.0, "minutes of measuring at most", metavar="N")
    alarm: float = setting(0.02, "chance that unchanged code is called worse, over all its methods", metavar="X")
    rules: Rules = field(default_factory=Rules)
    slower: tuple[tuple[str, float], ...] = ()  # new's methods made slower by a share, to test the gate

    def __post_init__(self) -> None:
        if not 0 < self.budget_min <= _WEEK_MIN:
            raise UserError(f"--budget-min {self.budget_min} must be above 0 and at most {_WEEK_MIN} (a week)")
        if not 0 < self.alarm < 0.5:
            raise UserError(f"--alarm {self.alarm} must lie between 0 and 0.5 (0.02: two gates in a hundred)")
