"""Prompts for training: a seeded grammar for each kind of task, so that answers cover what a benchmark asks.

A grammar is a TOML file of templates with slots: `{city}` becomes an item of the list `city` (the same one wherever it
stands in that template; `{city_2}` is another), items may hold slots of their own, and `{10-90:5}` is a number. Where
a grammar says `main = "article"`, an item of that list is the template of all prompts that hold it.
All text was written for this project; no question of a test set is among it.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAMMARS = Path(__file__).parent / "grammars"
KINDS = ("conversation", "translation", "summarization", "qa", "math_reasoning", "rag")
_FOLLOW_UP = 0.5  # share of conversations with a second turn
_SLOT = re.compile(r"\{(?:([a-z]+)(?:_\d)?|(\d+)-(\d+)(?::(\d+))?)\}")


@dataclass(frozen=True)
class Prompt:
    """A user's turns, and the template behind them: prompts of one template are alike, and are held out together."""

    kind: str
    turns: tuple[str, ...]
    template: str


def prompt(seed: int, kind: str, number: int) -> Prompt:
    """Prompt `number` of the endless list of a kind that belongs to `seed`."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    grammar = _grammar(kind)
    main = grammar["slots"][grammar["main"]] if "main" in grammar else ()
    form = rng.choice(grammar["first"])
    parts: dict[str, str] = {}
    turns = [_expand(form, grammar["slots"], rng, parts)]
    template = next((item for item in parts if item in main), None) or _longest(parts, turns[0]) or form
    if "second" in grammar and rng.random() < _FOLLOW_UP:
        turns.append(_expand(rng.choice(grammar["second"]), grammar["slots"], rng, {}))
    return Prompt(kind, tuple(turns), template)


def _longest(parts: dict[str, str], turn: str) -> str | None:
    """The item that makes up most of a turn: a sentence is the template rather than "Translate: {sentence}", a mere
    word is not."""
    grown = [item for item in parts if "{" in item and len(parts[item]) > len(turn) / 3]
    return max(grown, key=lambda item: len(parts[item]), default=None)


def digest() -> str:
    """Changes whenever the prompts do."""
    files = sorted(GRAMMARS.glob("*.toml"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in [*files, Path(__file__)])).hexdigest()


@functools.cache
def _grammar(kind: str) -> dict[str, Any]:
    return tomllib.loads((GRAMMARS / f"{kind}.toml").read_text(encoding="utf-8"))


def _expand(template: str, slots: dict[str, list[str]], rng: random.Random, parts: dict[str, str]) -> str:
    """`template` with its slots filled; the items that filled them are noted in `parts`, with their text."""
    filled: dict[str, str] = {}  # slot as written -> text
    drawn: dict[str, list[str]] = {}  # list -> items taken from it

    def fill(slot: re.Match[str]) -> str:
        name, low, high, step = slot.groups()
        if name is None:
            return str(rng.randrange(int(low), int(high) + 1, int(step or 1)))
        if slot.group() not in filled:
            taken = drawn.setdefault(name, [])
            item = rng.choice([item for item in slots[name] if item not in taken] or slots[name])
            taken.append(item)
            filled[slot.group()] = parts[item] = _expand(item, slots, rng, {})
        return filled[slot.group()]

    return _SLOT.sub(fill, template)
