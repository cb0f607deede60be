"""What checks of a run find: a sentence for each kind, and where in the run it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.figures.metrics import pairs
from bench.figures.records import Run, Turn


@dataclass
class Findings:
    """What is wrong with a run, in the order in which it was found; those of one kind are one sentence."""

    _found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, method: str, kind: str, sentence: str) -> None:
        """Note a finding; only the first of its kind is told in full."""
        self._found.setdefault((method, kind), []).append(sentence)

    def sentences(self) -> list[str]:
        """A sentence for each kind of finding."""
        return [said[0] + (f" (and {len(said) - 1} more like it)" if said[1:] else "") for said in self._found.values()]


def pairs_at(run: Run, turns: Sequence[Turn], name: str, baseline: str) -> Iterator[tuple[Turn, Turn]]:
    """A method's turns, each with the baseline's, at every value of the run's axis."""
    for value in sorted({turn.at for turn in turns}, key=lambda at: (at is not None, at)):
        yield from pairs([turn for turn in turns if turn.at == value], name, baseline)


def key_of(turn: Turn) -> tuple[int, int, int, float | None]:
    """What was asked: alike for everybody who was asked it."""
    return turn.question_id, turn.turn, turn.round, turn.at


def where(turn: Turn) -> str:
    """A turn as people count."""
    at = "" if turn.at is None else f" at {turn.at:g}"
    return f"{turn.method}, question {turn.question_id}{at}, turn {turn.turn + 1}, round {turn.round + 1}"
