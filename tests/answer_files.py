"""Runs and answer files made up for tests, and Spec-Bench's definitions spelt out anew."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from bench.figures.machine import Machine
from bench.figures.records import MethodInfo, Run, Turn, write_json, write_turns

EOS = 9
MT_BENCH = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
QUESTIONS = {81: ("writing", 2), 95: ("math", 2), 241: ("qa", 1), 300: ("qa", 1), 401: ("rag", 1)}


def a_run(kinds: dict[str, str]) -> Run:
    methods = {name: MethodInfo(kind, True, 0, {}) for name, kind in kinds.items()}
    started = {"started": "2026-11-22T07:10:13+00:00"}
    return Run("20261122-run", "", {"name": "tiny"}, {}, Machine(), "float32", {}, methods, {}, started)


def a_turn(method: str, question: int, turn: int, rng: random.Random, number: int = 0, longest: int = 4) -> Turn:
    emitted = [rng.randint(1, longest) for _ in range(rng.randint(1, 6))]
    category = QUESTIONS[question][0]
    return Turn(
        method,
        question,
        "mt_bench" if category in MT_BENCH else category,
        category,
        turn,
        number,
        token_ids=[rng.randint(0, 5) for _ in range(sum(emitted) + 1)],
        prefill_s=rng.uniform(0.01, 0.2),
        decode_s=rng.uniform(0.1, 2),
        finish="length",
        per_step_drafted=[longest - 1] * len(emitted),
        per_step_accepted=[count - 1 for count in emitted],
        per_step_emitted=emitted,
    )


def some_turns(methods: dict[str, int], rounds: int = 1) -> list[Turn]:
    """Answers of methods (name -> most tokens of a step) to all questions."""
    rng = random.Random(7)
    return [
        a_turn(name, question, turn, rng, number, longest)
        for number in range(rounds)
        for question, (_, turns) in QUESTIONS.items()
        for turn in range(turns)
        for name, longest in methods.items()
    ]


def saved(folder: Path, run: Run, turns: list[Turn]) -> Path:
    write_json(folder / "run.json", run)
    write_turns(folder / "turns.jsonl", turns)
    return folder


def spell(token_ids: list[int]) -> str:
    return " ".join(f"t{token}" for token in token_ids)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spec_bench_speed(path: Path, base: Path, task: str) -> tuple[float, float, float, float]:
    """As Spec-Bench's `speed.py` has it, but for the baseline's tokens, which it counts from the text."""

    def chosen(file: Path) -> list[dict]:
        def wanted(category: str) -> bool:
            return task == "overall" or (category in MT_BENCH if task == "mt_bench" else category == task)

        return [row["choices"][0] for row in lines(file) if wanted(row["category"])]

    rates, rates_base = (
        [sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in chosen(file)] for file in (path, base)
    )
    lengths = [length for choice in chosen(path) for length in choice["accept_lengths"]]
    return np.mean(rates), np.mean(rates_base), np.mean(rates) / np.mean(rates_base), np.mean(lengths)


def spec_bench_equal(path: Path, other: Path) -> bool:
    """As Spec-Bench's `equal.py` has it."""
    mine, theirs = ([str(row["choices"][0]["turns"]) for row in lines(file)] for file in (path, other))
    return all(a == b for a, b in zip(mine, theirs, strict=False))


def row(question: int, tokens: list[int], seconds: list[float], category: str = "qa", **more) -> dict:
    choice = {"index": 0, "turns": [f"answer {question}"] * len(tokens), "new_tokens": tokens, "wall_time": seconds}
    return {"question_id": question, "category": category, "model_id": "vicuna", "choices": [choice | more]}


def written(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
