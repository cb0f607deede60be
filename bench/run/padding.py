"""Questions padded to a prompt length with passages of their own kind, for runs over prompt lengths.

Random tokens would not do: with them, speculation looks a quarter better than it is (SPEED-Bench, arXiv 2604.09557).
Passages are documents and requests of the project's grammars, of the question's kind, or paragraphs of a file of the
user's. They precede the question, and those nearest to it are the same at every length.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from bench.config import RunConfig
from bench.errors import UserError
from bench.files import read_bounded, user_file
from bench.models.chat import ChatFormat
from bench.questions import Question
from bench.train import prompts

_BEFORE = "The texts up to the line of dashes are background. Reply to what follows that line.\n\n"
_AFTER = "\n\n-----\n\n"
_KINDS = {"mt_bench": "conversation"} | {kind: kind for kind in prompts.KINDS}  # of passages, by task
_OTHERS = "rag"  # likewise, for all other tasks
# Kinds whose grammar has documents: an item of these. Passages of other kinds are whole prompts.
_DOCUMENTS = {"summarization": "{article}", "rag": "{filler}"}
_WORD = re.compile(r"\S{1,12}\s*")  # some scripts have no spaces: then a part of a sentence


@dataclass(frozen=True)
class Padding:
    """How questions of a run are padded. Equal seeds and questions give equal prompts."""

    chat: ChatFormat
    seed: int
    paragraphs: tuple[str, ...] = ()  # of a file; (): the project's own passages
    _made: dict[tuple[int, int], Question] = field(default_factory=dict)

    def pad(self, question: Question, tokens: int) -> Question:
        """The question with as many words of passages as fit in a first prompt of `tokens` tokens.

        One that is longer by itself, or so long that no word fits, is returned as it is.
        """
        key = (question.question_id, tokens)
        if key not in self._made:
            self._made[key] = self._padded(question, tokens)
        return self._made[key]

    @property
    def digest(self) -> str:
        """Changes whenever the passages do."""
        own = "\n\n".join(self.paragraphs)
        return hashlib.sha256(own.encode()).hexdigest() if own else prompts.digest()

    def own_tokens(self, question: Question) -> int:
        """Tokens of the question's first prompt as it is."""
        return len(self.chat.prompt([], question.turns[0], question.system))

    def _padded(self, question: Question, tokens: int) -> Question:
        words: list[str] = []  # with the space behind each; the last is next to the question
        passages = self._passages(question)

        def of(count: int) -> Question:
            text = "".join(words[len(words) - count :]).rstrip()
            return replace(question, turns=(f"{_BEFORE}{text}{_AFTER}{question.turns[0]}", *question.turns[1:]))

        size = last = self.own_tokens(of(0))
        while last <= tokens:
            enough = len(words) + tokens
            while len(words) < enough:
                words[:0] = _WORD.findall(next(passages) + "\n\n")
            last = self.own_tokens(of(len(words)))
        fits, fits_not = 0, len(words)
        while fits_not - fits > 1:  # a prompt grows with its words, nearly in proportion
            share = (tokens - size) / max(1, last - size)
            count = min(max(fits + int(share * (fits_not - fits)), fits + 1), fits_not - 1)
            found = self.own_tokens(of(count))
            if found <= tokens:
                fits, size = count, found
            else:
                fits_not, last = count, found
        return of(fits) if fits else question

    def _passages(self, question: Question) -> Iterator[str]:
        """Passages without an end, in an order of the question's own."""
        if self.paragraphs:
            while True:
                yield from random.Random(f"{self.seed}/{question.question_id}").sample(
                    self.paragraphs, len(self.paragraphs)
                )
        kind = _KINDS.get(question.task, _OTHERS)
        for number in itertools.count(question.question_id << 20):  # no two questions have the same passages
            if kind in _DOCUMENTS:
                slots, rng = prompts._grammar(kind)["slots"], random.Random(f"{self.seed}/{kind}/{number}")
                yield prompts._expand(_DOCUMENTS[kind], slots, rng, {})
            else:
                yield prompts.prompt(self.seed, kind, number).turns[0]


def paragraphs_of(config: RunConfig) -> tuple[str, ...]:
    """The passages in the file that the run names; () if it names none.

    Raises:
        UserError: it cannot be read, is not UTF-8 text, or has no text.

    """
    if config.passages is None:
        return ()
    path = user_file(config.passages)
    try:
        text = read_bounded(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--passages {path} cannot be read ({reason}): give a text file in UTF-8") from error
    found = tuple(part.strip() for part in re.split(r"\n\s*\n", text) if part.strip())
    if not found:
        raise UserError(f"--passages {path} has no text: give paragraphs, separated by blank lines")
    return found
