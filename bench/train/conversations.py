"""Self-made conversations: the model answers prompts of all kinds, so that any chat model gets training data offline.

Prompts come from seeded grammars (`prompts.py`); answers are the target's own, greedy, since greedy decoding is what
drafts are measured on. All sequences of a batch are decoded in lock-step: each row follows its own queue of forced
tokens (template, user turns), else its own choice.

Finished batches are cached as they come: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.checkpoints import Checkpoint
from bench.engine.decoder import Decoder
from bench.engine.kv_cache import KVCache
from bench.errors import UserError
from bench.files import writing
from bench.questions import ChatFormat
from bench.train import prompts
from bench.train.pieces import load_or_make
from bench.train.prompts import Prompt

_PREFILL = 32  # positions of a prefilling pass
PACKAGED = Path(__file__).parent / "data"
_LOOP_NGRAM = 12  # an answer that repeats this many tokens in a row is looping and is ended
_BATCHES_SORTED = 8  # prompts of as many batches are sorted by length, so that a batch's rows end together
_WORTH_PACKING = 0.8  # rows are dropped once no more than this share of them is still being written


@dataclass(frozen=True)
class Recipe:
    """All that determines the conversations of a model."""

    tokens: int  # of answers, at least
    seed: int = 0
    batch: int = 256  # sequences in lock-step
    length: int = 768  # most tokens of a conversation, template included; longer prompts are left out
    answer_tokens: int = 128


@dataclass
class Conversations:
    """N conversations of T tokens in all, one after the other."""

    tokens: Tensor  # [T] int32
    chosen: Tensor  # [T] bool: the model's own choice (its answers)
    lengths: Tensor  # [N] int32
    kinds: Tensor  # [N] int8, index into prompts.KINDS
    templates: Tensor  # [N] int32, a hash: prompts of one template are alike

    @property
    def answer_tokens(self) -> int:
        """How many tokens the model chose."""
        return int(self.chosen.sum())

    def fits(self) -> bool:
        """Whether the parts belong together, as those of a damaged file do not."""
        count, total = len(self.lengths), int(self.lengths.sum())
        return len(self.kinds) == len(self.templates) == count and len(self.tokens) == len(self.chosen) == total

    def keep(self, wanted: Sequence[bool]) -> Conversations:
        """Some of the conversations."""
        rows = torch.tensor(wanted)
        inside = rows.repeat_interleave(self.lengths)
        return Conversations(
            self.tokens[inside], self.chosen[inside], self.lengths[rows], self.kinds[rows], self.templates[rows]
        )

    def drawn(self, tokens: int, seed: int) -> Conversations:
        """Some conversations of at least so many answer tokens (all, if they have fewer), in their order here."""
        order = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(seed))
        answers = torch.stack([row.sum() for row in self.chosen.split(self.lengths.tolist())])
        count = 1 + int((answers[order].cumsum(0) < tokens).sum())
        return self.keep(torch.zeros(len(order), dtype=torch.bool).index_fill(0, order[:count], True).tolist())

    def digest(self) -> str:
        """Names the very tokens, and which of them were chosen."""
        return hashlib.sha256(b"".join(column.numpy().tobytes() for column in vars(self).values())).hexdigest()

    @classmethod
    def joined(cls, parts: Iterable[Conversations]) -> Conversations:
        """All conversations of several sets."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


def make(
    target: Decoder,
    chat: ChatFormat,
    eos: frozenset[int],
    recipe: Recipe,
    cache: Path,
    progress: Callable[[int], None] = lambda tokens: None,
    sha256: str | None = None,
) -> Conversations:
    """At least `recipe.tokens` answer tokens, from the cache folder where they lie there already.

    `progress` is told the number of answer tokens as they come. `sha256`: of the target's weights, see `recipe_key`.

    Raises:
        UserError: the model writes no answers, or the cache cannot be written.

    """
    folder = cache / "conversations" / recipe_key(target, recipe, sha256)
    batches: list[Conversations] = []
    while sum(batch.answer_tokens for batch in batches) < recipe.tokens:
        number = len(batches)

        def write(number: int = number) -> dict[str, Tensor]:
            return vars(Writer(target, chat, eos, recipe, number).run(progress))

        stored, was_cached = load_or_make(folder / f"batch-{number:04d}.safetensors", _is_batch, write)
        batches.append(Conversations(**stored))
        # One batch may be empty, since the longest prompts are left out, but not as many as are sorted together.
        if not any(batch.answer_tokens for batch in batches[-_BATCHES_SORTED:]) and len(batches) >= _BATCHES_SORTED:
            raise UserError(f"{target.name} comes to no answer within {recipe.length} tokens of its chat template")
        if was_cached:
            progress(batches[-1].answer_tokens)
    return Conversations.joined(batches)


def _is_batch(stored: dict[str, Tensor]) -> bool:
    return stored.keys() == Conversations.__dataclass_fields__.keys() and Conversations(**stored).fits()


def load_packaged(checkpoint: Checkpoint) -> Conversations | None:
    """The conversations that come with the project for this very model, if any."""
    path = PACKAGED / f"{checkpoint.name}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["weights"]) != checkpoint.sha256:
                return None
            columns = {name: torch.from_numpy(stored[name]) for name in Conversations.__dataclass_fields__}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or make other conversations (--tokens N)") from error
    return Conversations(**columns | {"tokens": columns["tokens"].int()})


def save_packaged(made: Conversations, checkpoint: Checkpoint) -> Path:
    """Write conversations where `load_packaged` finds them; token ids take two bytes where the vocabulary allows."""
    path = PACKAGED / f"{checkpoint.name}.npz"
    columns = {name: column.numpy() for name, column in vars(made).items()}
    if made.tokens.max() < 2**16:
        columns["tokens"] = columns["tokens"].astype(np.uint16)
    temporary = path.with_suffix(".partial.npz")
    with writing(PACKAGED):
        PACKAGED.mkdir(exist_ok=True)
        try:
            np.savez_compressed(temporary, weights=np.array(checkpoint.sha256), **columns)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def recipe_key(target: Decoder, recipe: Recipe, sha256: str | None = None) -> str:
    """Names what the conversations depend on; more of the same recipe extends them.

    `sha256`: of the target's weights, where its name does not say which they are (a folder, a branch).
    """
    value = {key: item for key, item in asdict(recipe).items() if key != "tokens"}
    value |= {"model": target.name, "prompts": prompts.digest()}
    if sha256 is not None:
        value["weights"] = sha256
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return f"{target.name.replace('/', '--')}-{digest[:12]}"


@dataclass
class _Row:
    """One conversation being written."""

    prompt: Prompt
    forced: deque[int]  # tokens to write next, whatever the model says
    later: deque[list[int]]  # what is forced after each answer but the last
    tokens: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    said: int = 0  # tokens of this answer
    grams: set[tuple[int, ...]] = field(default_factory=set)  # of this answer
    done: bool = False


class Writer:
    """One batch of conversations."""

    def __init__(self, target: Decoder, chat: ChatFormat, eos: frozenset[int], recipe: Recipe, number: int):
        self.target, self.chat, self.recipe, self.eos = target, chat, recipe, eos
        _, self.to_reply, self.to_user = chat.pieces()
        self.rows = self._choose(number)  # those still being written

    def _choose(self, number: int) -> list[_Row]:
        """The batch's prompts: of every few batches' prompts in a row, each takes those of about the same length."""
        size, group = self.recipe.batch, _BATCHES_SORTED
        first = number // group * group * size
        rows = [self._row(prompts.prompt(self.recipe.seed, first + i)) for i in range(group * size)]
        rows.sort(key=lambda row: len(row.forced) + sum(map(len, row.later)))
        begin = number % group * size
        fits = self.recipe.length - self.recipe.answer_tokens
        return [row for row in rows[begin : begin + size] if len(row.forced) <= fits]

    def _row(self, prompt: Prompt) -> _Row:
        first, *rest = prompt.turns
        later = [self.chat.encode(self.to_user + turn + self.to_reply) for turn in rest]
        return _Row(prompt, deque(self.chat.prompt([], first)), deque(later))

    @torch.inference_mode()
    def run(self, progress: Callable[[int], None]) -> Conversations:
        """Write them all; `progress` is told the number of answer tokens as they come."""
        written = self.rows
        cache = self.target.new_cache(batch=len(written), max_len=self.recipe.length)
        greedy = [0] * len(written)  # not read at first: every prompt begins with the template
        for position in range(self._prefill(cache), self.recipe.length):
            progress(sum(self._write(row, choice) for row, choice in zip(self.rows, greedy, strict=True)))
            alive = [i for i, row in enumerate(self.rows) if not row.done]
            if not alive:
                break
            if len(alive) <= _WORTH_PACKING * len(self.rows):
                cache.keep(alive, position)
                self.rows = [self.rows[i] for i in alive]
            newest = torch.tensor([[row.tokens[-1]] for row in self.rows])
            states = self.target.run_layers(self.target.embed(newest), position, cache)
            greedy = self.target.logits(states[:, 0]).argmax(-1).tolist()
        return _conversations(written)

    def _prefill(self, cache: KVCache) -> int:
        """Read what all prompts have in length, in wide passes; returns the position after it."""
        common = min((len(row.forced) for row in self.rows), default=1) - 1
        for row in self.rows:
            row.tokens = [row.forced.popleft() for _ in range(common)]
            row.chosen = [False] * common
        tokens = torch.tensor([row.tokens for row in self.rows])
        for start in range(0, common, _PREFILL):
            self.target.run_layers(self.target.embed(tokens[:, start : start + _PREFILL]), start, cache)
        return common

    def _write(self, row: _Row, choice: int) -> bool:
        """The row's next token: forced, or (True) the model's choice; and what that makes of its turn."""
        if row.done:
            return False
        if row.forced:
            row.tokens.append(row.forced.popleft())
            row.chosen.append(False)
            return False
        row.tokens.append(choice)
        row.chosen.append(True)
        row.said += 1
        ended = choice in self.eos
        if ended or row.said == self.recipe.answer_tokens or self._loops(row):
            self._end_answer(row, ended)
        return True

    def _loops(self, row: _Row) -> bool:
        gram = tuple(row.tokens[-min(row.said, _LOOP_NGRAM) :])
        seen = len(gram) == _LOOP_NGRAM and gram in row.grams
        row.grams.add(gram)
        return seen

    def _end_answer(self, row: _Row, ended: bool) -> None:
        if not row.later or len(row.tokens) + len(row.later[0]) >= self.recipe.length:
            row.done = True
            return
        following = row.later.popleft()
        row.forced.extend(following[1:] if ended and following[0] == row.tokens[-1] else following)
        row.said, row.grams = 0, set()


def _conversations(rows: Sequence[_Row]) -> Conversations:
    templates = [int(hashlib.sha256(row.prompt.template.encode()).hexdigest()[:7], 16) for row in rows]
    return Conversations(
        tokens=torch.tensor([token for row in rows for token in row.tokens], dtype=torch.int32),
        chosen=torch.tensor([own for row in rows for own in row.chosen], dtype=torch.bool),
        lengths=torch.tensor([len(row.tokens) for row in rows], dtype=torch.int32),
        kinds=torch.tensor([prompts.KINDS.index(row.prompt.kind) for row in rows], dtype=torch.int8),
        templates=torch.tensor(templates, dtype=torch.int32),
    )
