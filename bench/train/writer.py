"""The target answers prompts: sequences in lock-step, each of which follows its forced tokens, else its own choice.

Choices are greedy, as acceptance is measured under greedy decoding.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.models.chat import ChatFormat
from bench.train import prompts
from bench.train.journal import Conversation
from bench.train.prompts import Prompt

_PREFILL = 32  # positions of a prefilling pass
_LOOP_NGRAM = 12  # an answer that repeats this many tokens in a row loops and is cut off
_WORTH_PACKING = 0.8  # finished rows are dropped once at most this share of rows is unfinished
_LOOK_AHEAD = 4  # times the number of answered prompts: how far the search for unanswered ones goes
_BATCHES_SORTED = 8  # batches whose prompts are sorted by length together, so that the rows of a batch end together


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the conversations of a model."""

    tokens: int  # least answer tokens
    seed: int = 0
    batch: int = 64  # most sequences in lock-step
    positions: int = 32768  # most positions of their cache, which limits the batch of long ones
    length: int = 2048  # most tokens of a conversation, template included; longer prompts are left out
    answer_tokens: int = 128


@dataclass
class Row:
    """One conversation being written."""

    prompt: Prompt
    forced: deque[int]  # tokens to write next, whatever the model chooses
    later: deque[list[int]]  # tokens forced after each answer but the last
    tokens: list[int] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)  # (begin, end) of those begun
    grams: set[tuple[int, ...]] = field(default_factory=set)  # n-grams of this answer
    done: bool = False
    kept: bool = False  # the caller has it

    @property
    def longest(self) -> int:
        """The number of tokens that are known beforehand."""
        return len(self.forced) + sum(map(len, self.later))

    @property
    def key(self) -> bytes:
        """The key of its prompt, while nothing of it is written."""
        return prompt_key(self.forced)

    def to_json(self) -> dict[str, Any]:
        """Return what another process needs to write it, while nothing of it is written."""
        prompt = {"kind": self.prompt.kind, "template": self.prompt.template}
        return prompt | {"forced": list(self.forced), "later": list(self.later)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Row:
        """Return a row from what `to_json` returned."""
        return cls(Prompt(row["kind"], (), row["template"]), deque(row["forced"]), deque(row["later"]))

    def finished(self) -> Conversation:
        """Return the finished conversation."""
        template = int(hashlib.sha256(self.prompt.template.encode()).hexdigest()[:7], 16)
        self.kept = True
        answers = [(begin, end) for begin, end in self.answers if begin < end]
        return Conversation(self.prompt.kind, template, self.tokens, answers)


class PromptQueue:
    """The unanswered prompts of a kind, in batches of similar length."""

    def __init__(self, kind: str, chat: ChatFormat, recipe: Recipe, answered: set[bytes]):
        """`answered`: `prompt_key` of each prompt to skip."""
        self.kind, self.chat, self.recipe, self.answered = kind, chat, recipe, answered
        _, self.to_reply, self.to_user = chat.separators()
        self.groups = 0  # groups of prompts that were looked at
        self.batches: list[list[Row]] = []

    def take(self, count: int) -> list[Row]:
        """Return a batch of at most `count` rows; none if no prompts are left that leave room for an answer."""
        if not self.batches:
            self._next_group()
        if not self.batches:
            return []
        batch = self.batches[-1]
        taken, batch[:] = batch[:count], batch[count:]
        if not batch:
            self.batches.pop()
        return taken

    def _next_group(self) -> None:
        """Make batches of the next prompts, sorted by length within the group, in random order."""
        size, seed = self.recipe.batch * _BATCHES_SORTED, self.recipe.seed
        most = self.recipe.length - self.recipe.answer_tokens
        # The search ends even where every prompt of a grammar has been answered.
        while not self.batches and self.groups * size <= _LOOK_AHEAD * (len(self.answered) + size):
            numbers = range(self.groups * size, (self.groups + 1) * size)
            self.groups += 1
            rows = [self._row(prompts.prompt(seed, self.kind, number)) for number in numbers]
            fitting = {row.key: row for row in rows if len(row.forced) <= most}
            fresh = [row for key, row in fitting.items() if key not in self.answered]
            self.answered.update(fitting)
            self.batches = self._split(sorted(fresh, key=lambda row: row.longest))
        random.Random(f"{seed}/{self.kind}/{self.groups}").shuffle(self.batches)

    def _split(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Split rows into batches that fit in the cache."""
        batches: list[list[Row]] = []
        for row in rows:
            most = min(self.recipe.batch, self.recipe.positions // needed_positions(row, self.recipe))
            if not batches or len(batches[-1]) >= max(1, most):
                batches.append([])
            batches[-1].append(row)
        return batches

    def _row(self, prompt: Prompt) -> Row:
        first, *rest = prompt.turns
        later = [self.chat.encode(self.to_user + turn + self.to_reply) for turn in rest]
        return Row(prompt, deque(self.chat.prompt([], first)), deque(later))


def needed_positions(row: Row, recipe: Recipe) -> int:
    """Return the most positions that a conversation may take."""
    return min(recipe.length, row.longest + recipe.answer_tokens * (1 + len(row.later)))


def prompt_key(tokens: Sequence[int]) -> bytes:
    """Return a key of a prompt's tokens, up to the first answer."""
    return hashlib.sha256(",".join(map(str, tokens)).encode()).digest()[:12]


class Writer:
    """One batch of conversations."""

    def __init__(self, target: Decoder, eos: frozenset[int], recipe: Recipe, rows: Sequence[Row]):
        self.target, self.eos, self.recipe = target, eos, recipe
        self.rows = list(rows)  # in the cache
        self.limit = max(needed_positions(row, recipe) for row in rows)

    @torch.inference_mode()
    def run(self, progress: Callable[[int], None]) -> Iterator[Conversation]:
        """Yield each conversation as it ends; `progress` is called with the number of new answer tokens."""
        cache = self.target.new_cache(batch=len(self.rows), max_len=self.limit)
        greedy = [0] * len(self.rows)  # not used at first, as every prompt begins with the template
        for position in range(self._prefill(cache), self.limit):
            progress(sum(self._write(row, choice) for row, choice in zip(self.rows, greedy, strict=True)))
            yield from (row.finished() for row in self.rows if row.done and not row.kept)
            alive = [i for i, row in enumerate(self.rows) if not row.done]
            if not alive:
                return
            if len(alive) <= _WORTH_PACKING * len(self.rows):
                self.rows = [self.rows[i] for i in alive]
                cache.keep(alive, position)
            newest = torch.tensor([[row.tokens[-1]] for row in self.rows])
            states = self.target.run_layers(self.target.embed(newest), position, cache)
            greedy = self.target.logits(states[:, 0]).argmax(-1).tolist()
        yield from (row.finished() for row in self.rows if not row.kept)

    def _prefill(self, cache: KVCache) -> int:
        """Prefill the length that all prompts have, in wide passes; returns the position after it."""
        common = min(len(row.forced) for row in self.rows) - 1
        for row in self.rows:
            row.tokens = [row.forced.popleft() for _ in range(common)]
        tokens = torch.tensor([row.tokens for row in self.rows])
        for start in range(0, common, _PREFILL):
            self.target.run_layers(self.target.embed(tokens[:, start : start + _PREFILL]), start, cache)
        return common

    def _write(self, row: Row, choice: int) -> bool:
        """Write the row's next token, forced or (True) the model's choice, and end the answer if it is complete."""
        if row.done:
            return False
        if row.forced:
            row.tokens.append(row.forced.popleft())
            if not row.forced:
                row.answers.append((len(row.tokens), len(row.tokens)))
                row.grams = set()
            return False
        row.tokens.append(choice)
        begin, _ = row.answers[-1]
        row.answers[-1] = begin, len(row.tokens)
        said, ended = len(row.tokens) - begin, choice in self.eos
        if ended or said == self.recipe.answer_tokens or _loops(row, said):
            self._end_answer(row, ended)
        return True

    def _end_answer(self, row: Row, ended: bool) -> None:
        if not row.later or len(row.tokens) + len(row.later[0]) >= self.recipe.length:
            row.done = True
            return
        following = row.later.popleft()
        row.forced.extend(following[1:] if ended and following[0] == row.tokens[-1] else following)


def _loops(row: Row, said: int) -> bool:
    gram = tuple(row.tokens[-min(said, _LOOP_NGRAM) :])
    seen = len(gram) == _LOOP_NGRAM and gram in row.grams
    row.grams.add(gram)
    return seen
