"""Keeps test questions out of training data: no 13 words in a row are shared, no shorter question is contained."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.questions import QuestionSet

NGRAM = 13


class Filter:
    """Finds text that overlaps with questions."""

    def __init__(self, sets: Iterable[QuestionSet]):
        self._grams: set[tuple[str, ...]] = set()
        self._whole: set[str] = set()  # questions of fewer words (most of QA), which are matched whole
        for question_set in sets:
            for question in question_set.questions:
                for turn in question.turns:
                    self._add(words(turn))

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


def words(text: str) -> list[str]:
    """Split text into lower-case words without punctuation."""
    return re.findall(r"\w+", text.lower())


def _ngrams(found: list[str]) -> Iterable[tuple[str, ...]]:
    return (tuple(found[i : i + NGRAM]) for i in range(len(found) - NGRAM + 1))
