"""Keeps test questions out of training data: no 13 words in a row are shared, no shorter question is contained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bench import questions
from bench.errors import UserError
from bench.progress import Log
from bench.questions import QuestionSet

NGRAM = 13


class Filter:
    """Finds text that overlaps with questions."""

    def __init__(self, sets: Iterable[QuestionSet]):
        self._grams: set[tuple[str, ...]] = set()
        self._whole: set[str] = set()  # questions of fewer words (most of QA), which are matched whole
        for question_set in sets:
            for question in question_set.questions:
                for text in filter(None, (*question.turns, question.system)):
                    self._add(words(text))

    def _add(self, turn: list[str]) -> None:
        if len(turn) < NGRAM:
            self._whole.add(" " + " ".join(turn) + " ")
        self._grams.update(_ngrams(turn))

    def overlaps(self, text: str) -> bool:
        """Return whether `text` shares 13 words in a row with a question, or contains a shorter question."""
        found = words(text)
        if any(gram in self._grams for gram in _ngrams(found)):
            return True
        joined = " " + " ".join(found) + " "
        return any(question in joined for question in self._whole)


def question_sets(sources: Sequence[str], log: Log | None = None) -> tuple[list[QuestionSet], list[str]]:
    """Return the bundled question set and those asked for, and the names of those that are missing.

    `log`: only Spec-Bench's questions may be missing, with a warning, where they cannot be downloaded.

    Raises:
        UserError: one cannot be read.

    """
    sets, missing = {}, []
    for source in dict.fromkeys(["mini", *sources]):
        try:
            found = questions.load(source, "--decontaminate")
            sets[found.sha256] = found
        except UserError as error:
            if source != "official" or log is None:
                raise
            log(f"WARNING: not decontaminated against {source!r}: {error}")
            missing.append(source)
    return list(sets.values()), missing


def words(text: str) -> list[str]:
    """Split text into lower-case words without punctuation."""
    return re.findall(r"\w+", text.lower())


def _ngrams(found: list[str]) -> Iterable[tuple[str, ...]]:
    return (tuple(found[i : i + NGRAM]) for i in range(len(found) - NGRAM + 1))
