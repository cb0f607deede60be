"""Compositions of methods, `a+b`: the first member that has a draft drafts, and all observe the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.drafting.method import QUESTION, SpeculativeMethod
from bench.drafting.sequence import NO_DRAFT, Draft, Outcome, Sequence, States
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.drafting.trained import Dimensioned
    from bench.engine.decoder import Decoder


@dataclass(frozen=True)
class Member:
    """A method in a composition, with its knobs."""

    label: str
    method: type[SpeculativeMethod]
    config: Any


@dataclass(frozen=True)
class CompositionConfig:
    """The members, in the order in which they are asked for a draft."""

    members: tuple[Any, ...]  # like `Member`, but a class may be imported when it is used

    def check_files(self, model: str) -> None:
        """Raise UserError if a file of a member is not there."""
        for member in self.members:
            member.check_files(model)


class Composition(SpeculativeMethod):
    """Asks its members in order and takes the first draft. A sequence's notes are a list with one entry per member."""

    Config = CompositionConfig
    family = "composition"

    def __init__(self, target: Decoder, config: CompositionConfig):
        super().__init__(target, config)
        self.members = [member.method(target, member.config) for member in config.members]
        for member in self.members[:-1]:
            member.followed = True
        self.taps = tuple(sorted({layer for member in self.members for layer in member.taps}))
        for label, member in self._named():
            if not member.lossless:
                raise UserError(f"{label} is not lossless and cannot be part of a composition: leave it out")
            if any(layer < member.resume_layer for layer in self.taps):
                raise UserError(
                    f"{label} drafts with the first {member.resume_layer} layers, and another member needs states from "
                    "within these: give both the same exit layer"
                )
        remembered = dict.fromkeys(member.memory for member in self.members)
        self.memory = ", ".join(memory for memory in remembered if memory != QUESTION) or QUESTION

    @classmethod
    def check_weights(cls, config: CompositionConfig, model: Dimensioned) -> None:
        """Check those of all members."""
        for member in config.members:
            member.method.check_weights(member.config, model)

    def _named(self) -> list[tuple[str, SpeculativeMethod]]:
        return [(given.label, member) for given, member in zip(self.config.members, self.members, strict=True)]

    @property
    def extra_parameters(self) -> int:
        """The sum over all members."""
        return sum(member.extra_parameters for member in self.members)

    @property
    def notes(self) -> dict[str, Any]:
        """The notes of each member, and the members' names in the order of `Draft.part`."""
        return {"parts": [label for label, _ in self._named()]} | {
            label: member.notes for label, member in self._named() if member.notes
        }

    def knobs(self) -> dict[str, Any]:
        """Return the knobs of each member."""
        return {label: member.knobs() for label, member in self._named()}

    @property
    def measured(self) -> dict[str, Any]:
        """The measured values of each member."""
        return {label: member.measured for label, member in self._named() if member.measured}

    @classmethod
    def repeated(
        cls, config: CompositionConfig, recorded: dict[str, Any], *, lenient: bool = False
    ) -> CompositionConfig:
        """Return the configuration with each member's own recorded values."""

        def member(one: Any) -> Any:
            values = recorded.get(one.label, {})
            return replace(one, config=one.method.repeated(one.config, values, lenient=lenient))

        return CompositionConfig(tuple(map(member, config.members)))

    @property
    def widest(self) -> int:
        """The widest of any member."""
        return max(member.widest for member in self.members)

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Every member opens the sequence."""
        sequence.notes = [None] * len(self.members)
        for part, member in enumerate(self.members):
            with _own_notes([sequence], part):
                member.open(sequence, prompt)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return for each sequence the first draft that has tokens."""
        drafts = [NO_DRAFT] * len(sequences)
        for part, member in enumerate(self.members):
            asked = [i for i, draft in enumerate(drafts) if not draft.tokens]
            if not asked:
                break
            with _own_notes([sequences[i] for i in asked], part):
                found = member.propose([sequences[i] for i in asked], [budgets[i] for i in asked])
            for i, draft in zip(asked, found, strict=True):
                if draft.tokens or drafts[i].states is None:  # keep states of the newest token
                    drafts[i] = replace(draft, part=part) if part else draft
        return drafts

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Every member sees every outcome."""
        for part, member in enumerate(self.members):
            with _own_notes(sequences, part):
                member.observe(sequences, outcomes)

    def forget(self) -> None:
        """Every member forgets."""
        for member in self.members:
            member.forget()


@contextmanager
def _own_notes(sequences: Many[Sequence], part: int) -> Iterator[None]:
    """Put a member's own notes where it expects a method's."""
    whole = [sequence.notes for sequence in sequences]
    for sequence, notes in zip(sequences, whole, strict=True):
        sequence.notes = notes[part]
    try:
        yield
    finally:
        for sequence, notes in zip(sequences, whole, strict=True):
            notes[part], sequence.notes = sequence.notes, notes
