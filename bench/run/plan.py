"""What a run asks: which questions, how often, in which order, and of whom."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench import questions
from bench.config import RunConfig
from bench.models.chat import ChatFormat
from bench.questions import Question, QuestionSet
from bench.run.contestants import WARM_UP, Contestant

_TEMPLATE_TOKENS = 64  # what a chat template may add to a turn


class Asked(NamedTuple):
    """A question in one round; `backwards`: who answers first in other questions is last."""

    round: int
    question: Question
    backwards: bool


@dataclass(frozen=True)
class Plan:
    """Questions, rounds and the length of answers."""

    questions: QuestionSet
    peer_ids: frozenset[int]  # of the questions that peers answer, too: they are slow
    rounds: int
    max_new_tokens: int

    @classmethod
    def of(cls, config: RunConfig) -> Plan:
        """The plan of a run; raises UserError for unknown or malformed questions and tasks."""
        asked = questions.load(config.questions).select(config.tasks, config.limit, config.seed)
        by_peers = asked.select(limit=config.peer_limit or None, seed=config.seed).questions
        return cls(asked, frozenset(q.question_id for q in by_peers), config.rounds, config.max_new_tokens)

    def todo(self, done: Collection[tuple[int, int]] = ()) -> list[Asked]:
        """All that is asked, in order, but for what is `done`, by round and question id."""
        return [
            Asked(number, question, (place + number) % 2 == 1)
            for number in range(self.rounds)
            for place, question in self.questions.in_turns()
            if (number, question.question_id) not in done
        ]

    def taking_part(self, question: Question, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Who answers the question."""
        return [c for c in contestants if not c.is_peer or question.question_id in self.peer_ids]

    def context_needed(self, chat: ChatFormat) -> int:
        """Positions that the longest conversation may take, the warm-up's included."""
        longest = max(self.prompt_lengths(question, chat)[-1] for question in self.questions.questions)
        longest = max(longest, len(chat.prompt([], WARM_UP)))
        return longest + self.max_new_tokens + _TEMPLATE_TOKENS

    def prompt_lengths(self, question: Question, chat: ChatFormat) -> list[int]:
        """Tokens of each turn's prompt, earlier answers taken as long as they may become."""
        lengths, before = [], 0
        for user in question.turns:
            lengths.append(before + len(chat.prompt([], user)))
            before = lengths[-1] + self.max_new_tokens
        return lengths
