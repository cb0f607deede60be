"""Spec-Bench's question files and the bundled mini set.

A file holds one JSON object a line: `question_id` (int), `category` (str), `turns` (list of str). Files in this
format from elsewhere work too; categories that Spec-Bench does not know are tasks of their own.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import random
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonlines

from bench.errors import UserError, did_you_mean
from bench.files import cache_root, user_path

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
MINI = Path(__file__).parent / "data" / "mini.jsonl"
OFFICIAL_COMMIT = "fd2c1cd"
OFFICIAL_URL = f"https://raw.githubusercontent.com/hemingkx/Spec-Bench/{OFFICIAL_COMMIT}/data/spec_bench/question.jsonl"
OFFICIAL_SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"


@dataclass(frozen=True)
class Question:
    """One question; each turn is asked after the answers to those before it."""

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def task(self) -> str:
        """One of Spec-Bench's six, or the category of another file."""
        return "mt_bench" if self.category in MT_BENCH_CATEGORIES else self.category


@dataclass(frozen=True)
class QuestionSet:
    """Questions with where they come from."""

    name: str  # mini | official | the file's name
    sha256: str  # of the whole file, whatever part of it is asked
    questions: tuple[Question, ...]

    @property
    def tasks(self) -> list[str]:
        """Tasks present: Spec-Bench's in its order, then others in the file's."""
        present = dict.fromkeys(question.task for question in self.questions)
        return [*(task for task in TASKS if task in present), *(task for task in present if task not in TASKS)]

    def in_turns(self) -> list[tuple[int, Question]]:
        """The questions as they are asked, the tasks taking turns, so that a slow minute hits all tasks alike.

        Tasks of different sizes are spread evenly over the whole. With each question stands a number whose parity
        changes from question to question and within each task: who answers first.
        """
        placed = []
        for column, task in enumerate(self.tasks):
            members = [question for question in self.questions if question.task == task]
            placed += [((i + 0.5) / len(members), column, i, question) for i, question in enumerate(members)]
        return [(i + column, question) for _, column, i, question in sorted(placed, key=lambda item: item[:2])]

    def select(self, tasks: str = "all", limit: int | None = None, seed: int = 0) -> QuestionSet:
        """The questions of some tasks (comma-separated, or all), at most `limit` of each, in the file's order.

        A limited task is drawn evenly over its categories (the first ten of MT-bench are all writing), by `seed`
        within each category.

        Raises:
            UserError: a task that the file does not have.

        """
        wanted = self.tasks if tasks == "all" else [task.strip() for task in tasks.split(",")]
        for task in wanted:
            if task not in self.tasks:
                hint = did_you_mean(task, self.tasks)
                raise UserError(f"unknown task {task!r}{hint}; {self.name} has: all, {', '.join(self.tasks)}")
        chosen = {
            question
            for task in wanted
            for question in _draw([q for q in self.questions if q.task == task], limit, random.Random(seed))
        }
        return QuestionSet(self.name, self.sha256, tuple(q for q in self.questions if q in chosen))


def _draw(questions: Sequence[Question], limit: int | None, rng: random.Random) -> list[Question]:
    if limit is None or limit >= len(questions):
        return list(questions)
    by_category: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_category[question.category].append(question)
    for members in by_category.values():
        rng.shuffle(members)
    rounds = max(map(len, by_category.values()))
    evenly = [members[i] for i in range(rounds) for members in by_category.values() if i < len(members)]
    return evenly[:limit]


def load(source: str, flag: str = "--questions") -> QuestionSet:
    """Return the question set called `mini` or `official`, or the file of that path. Errors name `flag`.

    Raises:
        UserError: no such file, or a line of it is not a question (with its number).

    """
    if source == "mini":
        return parse("mini", MINI.read_bytes(), str(MINI))
    if source == "official":
        path = fetch_official(flag)
        return parse("official", path.read_bytes(), str(path))
    path = user_path(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"questions {source!r} cannot be read ({reason}): give mini, official or a file") from error
    digest_is_official = hashlib.sha256(content).hexdigest() == OFFICIAL_SHA256
    return parse("official" if digest_is_official else path.name, content, str(path))


def parse(name: str, content: bytes, where: str) -> QuestionSet:
    """The questions in a file's content; `where` names the file in errors."""
    questions: list[Question] = []
    seen: set[int] = set()
    number = 0
    try:
        for value in jsonlines.Reader(io.StringIO(content.decode("utf-8").rstrip())):
            number += 1
            question = _question(value)
            if question.question_id in seen:
                raise ValueError(f"question_id {question.question_id} stands there twice")
            seen.add(question.question_id)
            questions.append(question)
    except jsonlines.InvalidLineError as error:
        reason = error.__cause__ or error
        raise UserError(f"{where}, line {error.lineno}: not a question in Spec-Bench's format: {reason}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error}") from error
    except (ValueError, KeyError) as error:
        fault = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}, line {number}: not a question in Spec-Bench's format: {fault}") from error
    if not questions:
        raise UserError(f"{where} holds no questions: it needs one JSON object a line")
    return QuestionSet(name, hashlib.sha256(content).hexdigest(), tuple(questions))


def _question(value: Any) -> Question:
    if not isinstance(value, dict):
        raise ValueError("a line must be a JSON object")
    identifier, category, turns = value["question_id"], value["category"], value["turns"]
    if not isinstance(identifier, int) or isinstance(identifier, bool):
        raise ValueError(f"question_id {identifier!r} is not an integer")
    if not isinstance(category, str) or not category:
        raise ValueError(f"category {category!r} is not a name")
    if category == "overall":
        raise ValueError("category 'overall' is what tables call the mean of all tasks: name it otherwise")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError("turns must be a list of texts, at least one")
    return Question(identifier, category, tuple(turns))


def fetch_official(flag: str = "--questions") -> Path:
    """Spec-Bench's own file, downloaded once at a pinned commit and checked by its hash.

    Raises:
        UserError: no network and no cached copy, or the content is another.

    """
    path = cache_root() / "questions" / f"spec_bench-{OFFICIAL_COMMIT}.jsonl"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == OFFICIAL_SHA256:
        return path
    try:
        with urllib.request.urlopen(OFFICIAL_URL, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"Spec-Bench's questions cannot be downloaded ({reason}): "
            f"fetch {OFFICIAL_URL} elsewhere and give its path with {flag} FILE"
        ) from error
    if hashlib.sha256(content).hexdigest() != OFFICIAL_SHA256:
        raise UserError(f"{OFFICIAL_URL} is not the file that was pinned (sha256 differs): nothing was kept")
    return _keep(path, content)


def _keep(path: Path, content: bytes) -> Path:
    temporary = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; set ROOBENCH_CACHE to another folder") from error
    return path
