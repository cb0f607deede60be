"""Self-made conversations: the model answers prompts of all kinds, so that any chat model has training data offline.

Prompts come from seeded grammars (`prompts.py`); answers are the target's own (`writer.py`). Finished conversations are
appended to the cache (`journal.py`); those that come with the project are packed files (`packed.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from bench.train.writer import PromptQueue, Recipe, Writer, prompt_key


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


def make(
    target: Decoder,
    chat: ChatFormat,
    eos: frozenset[int],
    recipe: Recipe,
    folder: Path,
    progress: Callable[[int], None] = lambda tokens: None,
    packed: Conversations = NONE,
) -> Conversations:
    """Return `packed` and further conversations of about `recipe.tokens` answer tokens in all, in equal shares by kind.

    Conversations of this recipe in `folder` (see `journals_of`) are used first. `progress` is called with the number of
    new answer tokens.

    Raises:
        UserError: the model writes no answers, the cache cannot be written, or another process writes there.

    """
    journal = Journal(folder / f"{recipe_key(recipe)}.jsonl")
    with journal.appending() as add:
        # Conversations in the journal may have been packed since.
        found = Conversations.joined([packed, Conversations.of(journal.read()).fresh(packed)])
        counts, rows = Counter(found.by_kind()), Counter(prompts.KINDS[kind] for kind in found.kinds)
        progress(counts.total())
        answered = set(found.prompt_keys())
        queues = {kind: PromptQueue(kind, chat, recipe, answered) for kind in prompts.KINDS}
        written = []
        while counts.total() < recipe.tokens:
            if not queues:
                raise UserError(
                    f"{target.name} has answered every prompt that leaves room for an answer within {recipe.length} "
                    f"tokens of its chat template; that makes {counts.total()} answer tokens: ask for fewer --tokens"
                )
            kind = min(queues, key=counts.__getitem__)
            missing = min(recipe.tokens - counts.total(), max(1, recipe.tokens // len(queues) - counts[kind]))
            # At first, as if all conversations had two answers of full length: what is asked for is not overshot.
            mean = counts[kind] / rows[kind] if rows[kind] else 2 * recipe.answer_tokens
            batch = queues[kind].take(-int(-missing // mean))
            if not batch:
                del queues[kind]
                continue
            for conversation in Writer(target, eos, recipe, batch).run(progress):
                add(conversation)
                written.append(conversation)
                counts[kind] += conversation.answer_tokens
                rows[kind] += 1
        return Conversations.joined([found, Conversations.of(written)])


def recipe_key(recipe: Recipe) -> str:
    """Return a name for what the answers depend on besides the model. More tokens of the same recipe extend them."""
    value = {key: item for key, item in asdict(recipe).items() if key not in ("tokens", "batch", "positions")}
    return hashlib.sha256(json.dumps(value | {"prompts": prompts.digest()}).encode()).hexdigest()[:12]
