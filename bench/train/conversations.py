"""Self-made conversations: the model answers prompts of all kinds, so that any chat model has training data offline.

Prompts come from seeded grammars (`prompts.py`); answers are the target's own (`writer.py`). Finished conversations are
appended to the cache (`journal.py`); those that come with the project are packed files (`packed.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.models.chat import ChatFormat
from bench.models.gguf_file import model_of
from bench.train import prompts
from bench.train.journal import Conversation, Journal
from bench.train.writer import PromptQueue, Recipe, Row, Writer, prompt_key


@dataclass
class Conversations:
    """N conversations of T tokens in all, concatenated."""

    tokens: Tensor  # [T] int32
    chosen: Tensor  # [T] bool: the model's own choice (its answers)
    lengths: Tensor  # [N] int32
    kinds: Tensor  # [N] int8, index into prompts.KINDS
    templates: Tensor  # [N] int32, a hash: prompts of one template are alike

    @property
    def answer_tokens(self) -> int:
        """The number of tokens that the model chose."""
        return int(self.chosen.sum())

    def by_kind(self) -> dict[str, int]:
        """Return the answer tokens of each kind."""
        kinds = self.kinds.long().repeat_interleave(self.lengths)[self.chosen]
        counts = torch.bincount(kinds, minlength=len(prompts.KINDS))
        return dict(zip(prompts.KINDS, counts.tolist(), strict=True))

    def mixture(self) -> dict[str, float]:
        """Return the share of each kind in the answer tokens."""
        total = max(1, self.answer_tokens)
        return {kind: round(count / total, 3) for kind, count in self.by_kind().items()}

    def prompt_keys(self) -> list[bytes]:
        """Return the key of each conversation's prompt."""
        rows = zip(*(column.split(self.lengths.tolist()) for column in (self.tokens, self.chosen)), strict=True)
        return [prompt_key(tokens[: int(chosen.int().argmax())].tolist()) for tokens, chosen in rows]

    def keep(self, wanted: Sequence[bool]) -> Conversations:
        """Return some of the conversations."""
        rows = torch.tensor(wanted, dtype=torch.bool)
        inside = rows.repeat_interleave(self.lengths)
        return Conversations(
            self.tokens[inside], self.chosen[inside], self.lengths[rows], self.kinds[rows], self.templates[rows]
        )

    def up_to(self, most: int) -> Conversations:
        """Return the conversations of at most `most` tokens, prompts included.

        Raises:
            UserError: there are none.

        """
        if (shortest := int(self.lengths.min())) > most:
            raise UserError(f"--longest {most} leaves no conversation: the shortest has {shortest} tokens; give more")
        return self.keep((self.lengths <= most).tolist())

    def fresh(self, known: Conversations) -> Conversations:
        """Return those whose prompts are not among the known ones, each prompt once."""
        seen = set(known.prompt_keys())
        return self.keep([not (key in seen or seen.add(key)) for key in self.prompt_keys()])  # type: ignore[func-returns-value]

    def drawn(self, tokens: int, seed: int) -> Conversations:
        """Return conversations of at least `tokens` answer tokens (all, if they have fewer), in their order here.

        They are drawn at random, but evenly over the kinds: each has about its share of the whole set.
        """
        order = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(seed))
        place = torch.zeros(len(order), dtype=torch.float64)
        for kind in self.kinds.unique():
            own = order[self.kinds[order] == kind]
            place[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
        order = place.argsort(stable=True)
        answers = torch.stack([row.sum() for row in self.chosen.split(self.lengths.tolist())])
        count = 1 + int((answers[order].cumsum(0) < tokens).sum())
        return self.keep(torch.zeros(len(order), dtype=torch.bool).index_fill(0, order[:count], True).tolist())

    def digest(self) -> str:
        """Return the sha256 of the tokens, and of which of them were chosen."""
        return hashlib.sha256(b"".join(column.numpy().tobytes() for column in vars(self).values())).hexdigest()

    @classmethod
    def joined(cls, parts: Iterable[Conversations]) -> Conversations:
        """Return all conversations of several sets."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    @classmethod
    def of(cls, rows: Sequence[Conversation]) -> Conversations:
        """Return the conversations of a journal."""
        chosen = torch.zeros(sum(len(row.tokens) for row in rows), dtype=torch.bool)
        start = 0
        for row in rows:
            for begin, end in row.answers:
                chosen[start + begin : start + end] = True
            start += len(row.tokens)
        return cls(
            tokens=torch.tensor([token for row in rows for token in row.tokens], dtype=torch.int32),
            chosen=chosen,
            lengths=torch.tensor([len(row.tokens) for row in rows], dtype=torch.int32),
            kinds=torch.tensor([prompts.KINDS.index(row.kind) for row in rows], dtype=torch.int8),
            templates=torch.tensor([row.template for row in rows], dtype=torch.int32),
        )


NONE = Conversations.of([])


def journals_of(cache: Path, model: str, weights_sha256: str) -> Path:
    """Return the folder of a model's journals, one for each recipe."""
    return cache / "conversations" / f"{model_of(model).replace('/', '--')}-{weights_sha256[:12]}"


class Shares:
    """How many answer tokens there are of each kind of prompt, and which prompts are to be answered next.

    All kinds get equal shares.
    """

    def __init__(self, name: str, chat: ChatFormat, recipe: Recipe, found: Conversations):
        """`name`: of the model; `found`: the conversations that are there."""
        self.name, self.recipe = name, recipe
        self.tokens, self.rows = Counter(found.by_kind()), Counter(prompts.KINDS[kind] for kind in found.kinds)
        self.begun: Counter[str] = Counter()  # rows that are being answered
        answered = set(found.prompt_keys())
        self.queues = {kind: PromptQueue(kind, chat, recipe, answered) for kind in prompts.KINDS}

    def next_batch(self) -> list[Row]:
        """Begin a batch of one kind, the one that has least; none: what there is and what is begun will do.

        Raises:
            UserError: no prompts are left.

        """
        while True:
            expected = {kind: self.tokens[kind] + self.begun[kind] * self._mean(kind) for kind in prompts.KINDS}
            missing = self.recipe.tokens - sum(expected.values())
            if missing <= 0 or (not self.queues and self.begun.total()):
                return []
            if not self.queues:
                raise UserError(
                    f"{self.name} has answered every prompt that leaves room for an answer within {self.recipe.length} "
                    f"tokens of its chat template; that makes {self.tokens.total()} answer tokens: ask for fewer "
                    "--tokens"
                )
            kind = min(self.queues, key=expected.__getitem__)
            missing = min(missing, max(1, self.recipe.tokens // len(self.queues) - expected[kind]))
            if batch := self.queues[kind].take(-int(-missing // self._mean(kind))):
                self.begun[kind] += len(batch)
                return batch
            del self.queues[kind]

    def add(self, written: Conversation) -> None:
        """Count one that was begun."""
        self.tokens[written.kind] += written.answer_tokens
        self.rows[written.kind] += 1
        self.begun[written.kind] -= 1

    def _mean(self, kind: str) -> float:
        """Answer tokens of a conversation: at first two answers of full length, so that what is asked for is not
        overshot."""
        return self.tokens[kind] / self.rows[kind] if self.rows[kind] else 2 * self.recipe.answer_tokens


Progress = Callable[[int], None]  # told how many answer tokens are new


def make(
    target: Decoder,
    chat: ChatFormat,
    eos: frozenset[int],
    recipe: Recipe,
    folder: Path,
    progress: Progress = lambda tokens: None,
    packed: Conversations = NONE,
) -> Conversations:
    """Return conversations that `target` writes; see `complete`."""

    def write(shares: Shares) -> Generator[Conversation, None, None]:
        while batch := shares.next_batch():
            yield from Writer(target, eos, recipe, batch).run(progress)

    return complete(target.name, chat, recipe, folder, write, progress, packed)


def complete(
    name: str,
    chat: ChatFormat,
    recipe: Recipe,
    folder: Path,
    write: Callable[[Shares], Generator[Conversation, None, None]],
    progress: Progress,
    packed: Conversations,
) -> Conversations:
    """Return `packed` and further conversations of about `recipe.tokens` answer tokens in all, in equal shares by kind.

    Conversations of this recipe in `folder` (see `journals_of`) are used first. `write` yields those of all batches
    that it takes, each as it ends; it is added to the journal at once.

    Raises:
        UserError: the model writes no answers, the cache cannot be written, or another process writes there.

    """
    journal = Journal(folder / f"{recipe_key(recipe)}.jsonl")
    with journal.appending() as add:
        # Conversations in the journal may have been packed since.
        found = Conversations.joined([packed, Conversations.of(journal.read()).fresh(packed)])
        shares, written = Shares(name, chat, recipe, found), []
        progress(shares.tokens.total())
        with contextlib.closing(write(shares)) as ended:
            for conversation in ended:
                add(conversation)
                shares.add(conversation)
                written.append(conversation)
        return Conversations.joined([found, Conversations.of(written)])


def recipe_key(recipe: Recipe) -> str:
    """Return a name for what the answers depend on besides the model. More tokens of the same recipe extend them."""
    value = {key: item for key, item in asdict(recipe).items() if key not in ("tokens", "batch", "positions")}
    return hashlib.sha256(json.dumps(value | {"prompts": prompts.digest()}).encode()).hexdigest()[:12]
