"""The bundled mini set, and files of questions: Spec-Bench's, SPEED-Bench's, chat logs.

A file holds one JSON object a line; blank lines are skipped, fields that are not named here are ignored:

- Spec-Bench's format: `question_id` (int), `category` (str), `turns` (list of str). Categories that Spec-Bench does not
  have are tasks of their own.
- SPEED-Bench's (arXiv 2604.09557), prepared by its own script, as JSON lines or Parquet: `sub_category` and `multiturn`
  as well. Every category (an entropy tier, in its throughput files) is a task.
- Chat logs: `messages` as OpenAI's API takes them, or `conversations` as ShareGPT has them. What the user says is asked
  again, after the answers of the model that is measured; those in the log are not used.
"""

from __future__ import annotations

import csv
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
from typing import Annotated, Any

from pydantic import Field

from bench.errors import UserError, did_you_mean
from bench.files import cache_root, first_line, read_bounded, replacing, user_path
from bench.typed_json import Count, MismatchError, decode_lines, decode_value

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
UNCATEGORIZED = "uncategorized"  # the task of questions with an empty category
MINI = Path(__file__).parent / "data" / "mini.jsonl"
OFFICIAL_COMMIT = "fd2c1cd"
OFFICIAL_URL = f"https://raw.githubusercontent.com/hemingkx/Spec-Bench/{OFFICIAL_COMMIT}/data/spec_bench/question.jsonl"
OFFICIAL_SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"
_LOGS = {"messages": ("role", "content"), "conversations": ("from", "value")}  # form: who speaks, what is said
_SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED"  # instead of a prompt, in SPEED-Bench's files as published
_SPEED_BENCH = ("sub_category", "multiturn")  # fields that tell its files from Spec-Bench's


def task_of(category: str, turns: int) -> str:
    """One of Spec-Bench's six tasks, or the category of another file.

    Others use the names of MT-bench's categories too: its questions are those with several turns.
    """
    return "mt_bench" if category in MT_BENCH_CATEGORIES and turns > 1 else category or UNCATEGORIZED


@dataclass(frozen=True)
class Question:
    """One question; each turn is asked after the answers to those before it."""

    question_id: Count
    category: str
    turns: Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]
    sub_category: str = ""
    system: str = ""  # the message that opens the conversation; "": none
    task: str = ""  # that it counts for; "": by Spec-Bench's categories

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", self.task or task_of(self.category, len(self.turns)))


@dataclass(frozen=True)
class QuestionSet:
    """Questions with where they come from."""

    name: str  # mini | official | the file's name
    sha256: str  # of the whole file, even if only a part of it is asked
    questions: tuple[Question, ...]

    @property
    def tasks(self) -> list[str]:
        """Tasks present: Spec-Bench's in its order, then others in the file's."""
        present = dict.fromkeys(question.task for question in self.questions)
        return [*(task for task in TASKS if task in present), *(task for task in present if task not in TASKS)]

    def in_turns(self) -> list[tuple[int, Question]]:
        """The questions as they are asked, the tasks taking turns, so that a slow minute hits all tasks alike.

        Tasks of different sizes are spread evenly over the whole. Each question comes with a number whose parity
        changes from question to question and within each task: who answers first.
        """
        placed = []
        for column, task in enumerate(self.tasks):
            members = [question for question in self.questions if question.task == task]
            placed += [((i + 0.5) / len(members), column, i, question) for i, question in enumerate(members)]
        return [(i + column, question) for _, column, i, question in sorted(placed, key=lambda item: item[:2])]

    def select(self, tasks: str = "all", limit: int | None = None, seed: int = 0) -> QuestionSet:
        """The questions of some tasks (comma-separated, or all), at most `limit` of each, in the file's order.

        A task's name goes in double quotes where it is ambiguous: `"all"`, `"code, hard"`. A limited task
        is drawn evenly over its categories and their sub-categories (the first ten of MT-bench are all writing), by
        `seed` within each.

        Raises:
            UserError: a task that the file does not have.

        """
        wanted = self.tasks if tasks == "all" else [self._task(name) for name in _split(tasks)]
        chosen = {
            question
            for task in wanted
            for question in _draw([q for q in self.questions if q.task == task], limit, random.Random(seed))
        }
        return QuestionSet(self.name, self.sha256, tuple(q for q in self.questions if q in chosen))

    def _task(self, name: str) -> str:
        """The task called `name`; "" is that of questions without a category."""
        for task in (name, name.strip(), *([] if name else [UNCATEGORIZED])):
            if task in self.tasks:
                return task
        listed = ", ".join(map(spelled, self.tasks))
        raise UserError(f"unknown task {name!r}{did_you_mean(name, self.tasks)}; {self.name} has: all, {listed}")


def spelled(task: str) -> str:
    """A task's name as `--tasks` takes it."""
    is_plain = task not in ("", "all") and task == task.strip() and not set(task) & set(',"\r\n')
    return task if is_plain else '"' + task.replace('"', '""') + '"'


def _split(tasks: str) -> list[str]:
    """The names in a comma-separated list, some of them in double quotes."""
    try:
        return next(csv.reader([tasks], skipinitialspace=True, strict=True), []) or [""]
    except csv.Error as error:
        raise UserError(
            f"--tasks {tasks!r} cannot be read ({error}): separate names by commas, and put a name that holds a comma "
            "or a quote in double quotes, its own quotes doubled"
        ) from error


def _draw(questions: Sequence[Question], limit: int | None, rng: random.Random) -> list[Question]:
    if limit is None or limit >= len(questions):
        return list(questions)
    by_category: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in questions:
        by_category[question.category, question.sub_category].append(question)
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
        content = read_bounded(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"questions {source!r} cannot be read ({reason}): give mini, official or a file") from error
    digest_is_official = hashlib.sha256(content).hexdigest() == OFFICIAL_SHA256
    return parse("official" if digest_is_official else path.name, content, str(path))


def parse(name: str, content: bytes, where: str) -> QuestionSet:
    """The questions in a file's content; `where` names the file in errors."""
    found: dict[int, Question] = {}
    numbered = set()  # whether lines have ids that are numbers

    def check(line: dict[str, Any]) -> None:
        place = len(found) + 1
        numbered.add(has_number := not isinstance(line.get("question_id", "" if "turns" not in line else None), str))
        question = _question(line if has_number else line | {"question_id": place})
        if len(numbered) > 1:
            raise MismatchError("question_id: some lines have numbers and others do not: give all a number, or none")
        if question.question_id in found:
            raise MismatchError(f"question_id: {question.question_id} was used before")
        if question.category.lower() == "overall":
            raise MismatchError(f"category: {question.category!r} is what tables call the mean of all tasks: rename it")
        found[question.question_id] = question

    lines = _as_lines(content, where)
    if lines.lstrip().startswith(b"["):
        raise UserError(f"{where} is one JSON array: write each of its objects on a line of its own (jq -c '.[]' FILE)")
    decode_lines(dict[str, Any], lines, where, "a question", check=check)
    if not found:
        raise UserError(f"{where} holds no questions: it needs one JSON object a line")
    return QuestionSet(name, hashlib.sha256(content).hexdigest(), tuple(found.values()))


def _as_lines(content: bytes, where: str) -> bytes:
    """JSON lines as they are; Parquet, which begins with these four letters, as JSON lines."""
    if not content.startswith(b"PAR1"):
        return content
    import pandas as pd

    try:
        return str(pd.read_parquet(io.BytesIO(content)).to_json(orient="records", lines=True)).encode()
    except ImportError as error:
        raise UserError(
            f"{where} is in Parquet, which is read with pyarrow: pip install pyarrow, or save it as JSON lines"
        ) from error
    except Exception as error:  # pyarrow's own, of a damaged file
        raise UserError(f"{where} cannot be read as Parquet ({first_line(error)}): prepare the file again") from error


def _question(line: dict[str, Any]) -> Question:
    """A line's question, of any of the formats; raises MismatchError."""
    asked: dict[str, Any] = {key: line[key] for key in ("question_id", "category", "turns") if key in line}
    form = next((key for key in _LOGS if key in line), None)
    if "turns" not in line:
        if form is None:
            raise MismatchError("turns: missing, and so are messages and conversations")
        asked = {"category": ""} | asked | _of_log(line[form], form)
    if form is not None or any(key in line for key in _SPEED_BENCH):
        asked |= {"task": line.get("category") or UNCATEGORIZED, "sub_category": line.get("sub_category") or ""}
    question = decode_value(Question, asked)
    for index, turn in enumerate(question.turns):
        if turn.startswith(_PLACEHOLDER):
            raise MismatchError(f"turns[{index}]: a placeholder: prepare the file with SPEED-Bench's prepare_data.py")
    return question


def _of_log(messages: Any, form: str) -> dict[str, Any]:
    """What the user says in a conversation, as turns, and its system message; raises MismatchError."""
    who, what = _LOGS[form]
    if not isinstance(messages, list):
        raise MismatchError(f"{form}: must be a list of messages")
    turns, system, before = [], "", ""
    for index, message in enumerate(messages):
        field = f"{form}[{index}]"
        if not isinstance(message, dict) or who not in message:
            raise MismatchError(f"{field}: a message needs {who} and {what}")
        name = message[who]
        speaker = _SPEAKERS.get(name) if isinstance(name, str) else None
        if speaker is None:
            raise MismatchError(
                f"{field}.{who}: {str(name)[:40]!r}: only system, user and assistant can be asked again, not tools"
            )
        if speaker == before or (speaker == "system" and before) or (speaker == "assistant" and before != "user"):
            order = f"{name!r} after {before!r}" if before else f"{name!r} speaks first"
            raise MismatchError(
                f"{field}.{who}: {order}: user and assistant must take turns, the user first, after one system message "
                "at most"
            )
        before = speaker
        if speaker == "user":
            turns.append(_text(message.get(what), f"{field}.{what}"))
        elif speaker == "system":
            system = _text(message.get(what), f"{field}.{what}")
    if not turns:
        raise MismatchError(f"{form}: no message of the user")
    return {"turns": turns, "system": system}


def _text(content: Any, field: str) -> str:
    """What a message says, in one string or in parts; raises MismatchError."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    said = "".join(text for text in texts if isinstance(text, str))
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts) or not said.strip():
        raise MismatchError(f"{field}: only text can be asked, and it must not be empty")
    return said


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
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; set ROOBENCH_CACHE to another folder") from error
    return path
