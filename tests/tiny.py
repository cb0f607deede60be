"""Small questions and whole runs over them, through the command line, on the tiny models of `conftest.py`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from bench.cli import main
from bench.figures.records import Run, Turn, read_run, read_turns
from bench.train.prompts import Prompt
from methods.vanilla import Vanilla

# Distinct words, none of which the program writes of itself.
TWO_TURNS = (11, "writing", ("Praise the zucchini harvest.", "Now mention rhubarb twice."))
ONE_TURN = (12, "qa", ("Who invented marzipan?",))
ANOTHER = (13, "rag", ("Quote the walrus.",))
QUESTIONS = (TWO_TURNS, ONE_TURN, ANOTHER)
FRUIT = ("cherry", "date", "fig", "grape", "lychee", "medlar", "olive", "peach", "plum", "quince")


def write_questions(path: Path, *questions: tuple[int, str, Iterable[str]]) -> str:
    """A question file in Spec-Bench's format; returns its path."""
    lines = [json.dumps({"question_id": i, "category": c, "turns": list(turns)}) for i, c, turns in questions]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def words_of(*questions: tuple[int, str, Iterable[str]]) -> set[str]:
    """The long words of questions, without punctuation."""
    return {word.strip(".?") for *_, turns in questions for turn in turns for word in turn.split() if len(word) > 5}


def short_prompt(seed: int, kind: str, number: int) -> Prompt:
    """In place of `bench.train.prompts.prompt`, whose prompts are long where every letter is a token: 19 tokens of
    template and up to 20 letters a turn."""
    rng = random.Random(f"{seed} {kind} {number}")
    turns = tuple(" ".join(rng.sample(FRUIT, rng.randint(1, 3))) for _ in range(rng.randint(1, 2)))
    return Prompt(kind, turns, turns[0].split()[0])


def run_bench(model: Path, questions: str, out: Path, *flags: str) -> int:
    """The exit status of a run with short answers, without peers unless `flags` name some."""
    given = ["--model", str(model), "--questions", questions, "--out", str(out), "--max-new-tokens", "8"]
    return main([*given, *flags, *([] if "--peer" in flags else ["--peer", "none"])])


def records(out: Path) -> tuple[Run, list[Turn]]:
    """What a run left."""
    return read_run(out), read_turns(out)


class Watched(Vanilla):
    """Vanilla, but `seen` is called with each prompt and may raise."""

    @staticmethod
    def seen(prompt: list[int]) -> None:
        """A test puts its own here."""

    def open(self, sequence, prompt):
        type(self).seen(sequence.context[:-1])


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of a folder's files, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
