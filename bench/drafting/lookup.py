"""What methods share that look up in earlier text what followed the newest tokens: knobs, the decision, bookkeeping.

A method subclasses `Lookup` and says what its index of a text is and what it finds there. What is found is drafted
whole, as published (`stop=never`), or as far as it is worth its verification (`stop=gain`, see `bench.drafting.worth`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.config import MANY, setting
from bench.drafting.method import TextMethod
from bench.drafting.pace import PacedConfig, PacedMethod
from bench.drafting.sequence import NO_DRAFT, Draft, Outcome, Sequence, States
from bench.drafting.tree import ROOT
from bench.drafting.worth import LENGTHS, PRIOR, Found, WorthRule
from bench.engine import MAX_DRAFTS

# Tokens that must match where another member drafts otherwise. On the mini questions, before trained heads, 2 gained
# more than 1, 3 and 5 (which SAM-Decoding takes, arXiv 2411.10666): 1.68x against 1.66x, 1.63x and 1.57x.
FOLLOWED = 2


@dataclass(frozen=True)
class LookupConfig(PacedConfig):
    """The knobs that these methods share."""

    tokens: int = setting(24, "most drafts in a step")
    stop: str = setting(
        "gain",
        "gain: only drafts that are expected to gain more than they cost on this device, judged by the length of the "
        "match and by what was right so far; never: all that is found, as published",
    )
    least: int = setting(
        0,
        "tokens that must match; 0: 1, but in a composition 2 if a member after this one drafts where this one does "
        "not",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(tokens=(1, MAX_DRAFTS), least=(0, MANY))

    def check(self, **bounds: tuple[Any, Any]) -> None:
        """Check knobs: numbers by their least and their most, words by the two that there are.

        Raises:
            ValueError: one is outside.

        """
        for knob, (first, second) in bounds.items():
            value = getattr(self, knob)
            if isinstance(first, str):
                if value not in (first, second):
                    raise ValueError(f"{knob}={value} must be {first} or {second}")
            elif not first <= value <= second:
                raise ValueError(f"{knob}={value} must be in {first}..{second}")


@dataclass
class Notes:
    """The state of a sequence."""

    index: Any  # of its text
    rule: WorthRule | None
    found: Many[Found] = ()
    drafted: Many[int] | None = None  # in the step that is going on; None: it was not asked


class Lookup(PacedMethod, TextMethod):
    """Drafts what followed the newest tokens where they occurred before."""

    Config = LookupConfig
    priors: ClassVar[Many[Many[float]]] = (PRIOR,)  # by kind of text

    @abstractmethod
    def index(self, context: list[int]) -> Any:
        """Return an index of a text, prompt and first token."""

    def extend(self, index: Any, tokens: list[int]) -> None:
        """Append tokens to the text."""
        index.extend(tokens)

    @abstractmethod
    def find(self, index: Any, most: int, depth: int) -> Many[Found]:
        """Return what followed the newest tokens before: at most `most` tokens, at most `depth` in a row.

        With stop=never, the first is drafted; else the one that is worth most.
        """

    @property
    def least(self) -> int:
        """Tokens that must match."""
        return self.config.least or (FOLLOWED if self.followed else 1)

    @property
    def widest(self) -> int:
        """As many as are found, if none are left out."""
        return 1 + self.config.tokens if self.config.stop == "never" else 1

    def _notes(self, context: list[int]) -> Notes:
        rule = WorthRule(self.costs, self.priors) if self.config.stop == "gain" else None
        return Notes(self.index(context), rule)

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Index the prompt."""
        sequence.notes = self._notes(sequence.context)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return a draft for each sequence."""
        return [self._draft(sequence.notes, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def propose_text(self, context: list[int], budget: int) -> Draft:
        """Return a draft as for the first step of a question."""
        return self._draft(self._notes(context), budget)

    def _draft(self, notes: Notes, budget: int) -> Draft:
        most = self.config.tokens
        notes.found = self.find(notes.index, most, budget) if budget else ()
        long = [found for found in notes.found if found.tokens and found.length >= self.least]
        draft = NO_DRAFT
        if notes.rule is not None:
            weighed = [(found, *notes.rule.choose(found, most)) for found in long]
            found, chosen, gain = max(weighed, key=lambda option: option[-1], default=(None, [], 0.0))
            if found is not None and gain > 0:
                draft = _some(found, chosen)
        elif long:
            draft = Draft(list(long[0].tokens), long[0].parents)
        notes.drafted = draft.tokens
        return draft

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Learn from what was right, and index the new tokens."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            notes: Notes = sequence.notes
            if notes.rule is not None:
                for found in notes.found:
                    notes.rule.learn(found, outcome.emitted)
                if outcome.is_of(notes.drafted):
                    notes.rule.end(len(notes.drafted), len(outcome.emitted))
            self.extend(notes.index, outcome.emitted)
            notes.found, notes.drafted = (), None


def matching(text: Many[int], end: int, least: int = 1) -> int:
    """Return how many tokens before `end` equal the newest ones of the text, counted as far as it matters."""
    length, most = 0, min(end, max(LENGTHS[-1], least))
    while length < most and text[end - 1 - length] == text[-1 - length]:
        length += 1
    return length


def _some(found: Found, chosen: list[int]) -> Draft:
    """Return a draft of some of the tokens, by number; with a token comes its parent, before it."""
    tokens = [found.tokens[i] for i in chosen]
    if found.parents is None:
        return Draft(tokens)
    numbers = {ROOT: ROOT} | {node: number for number, node in enumerate(chosen)}
    return Draft(tokens, [numbers[found.parents[node]] for node in chosen])
