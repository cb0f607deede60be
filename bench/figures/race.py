"""A race as `generate --record FILE` writes it: what each side said, and when. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.typed_json import Count, Seconds


@dataclass(frozen=True)
class Piece:
    """The text that a token completed, and when it appeared.

    The first bytes of a character that takes several tokens have no text of their own: it comes with the last of them.
    """

    t_s: Seconds  # since its own side began to read the prompt
    text: str
    accepted: bool = False  # an accepted draft, not the target's own token


@dataclass
class RaceSide:
    """One method's answer. Both sides run on one machine in turns, and each has its own clock."""

    name: str
    pieces: list[Piece] = field(default_factory=list)  # one per token
    tokens: Count = 0
    wall_s: Seconds = 0.0  # prompt and answer


@dataclass
class Race:
    """The file: JSON with these fields. `scripts/race_svg.py` draws it."""

    prompt: str
    model: str
    device: str
    dtype: str
    sides: list[RaceSide]  # vanilla first
