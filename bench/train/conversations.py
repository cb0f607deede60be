"""Self-made conversations: the model writes both sides, so that any chat model gets training data offline.

User turns are sampled and start with an opening drawn from `openings.txt`, so that they resemble all kinds of tasks
(without one, a small model's own user turns are often noise); answers are greedy, since greedy decoding is what drafts
are measured on. All sequences of a batch are decoded in lock-step: each row follows its own queue of forced tokens
(template, openings), else its own choice. After Magpie (Xu et al., arXiv 2406.08464).

Finished batches are cached as they come: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.questions import ChatFormat
from bench.train.pieces import load_or_make

OPENINGS = Path(__file__).parent / "openings.txt"
_LOOP_NGRAM = 12  # an answer that repeats this many tokens in a row is looping and is ended


@dataclass(frozen=True)
class Recipe:
    """All that determines the conversations of a model."""

    tokens: int  # of answers, at least
    seed: int = 0
    batch: int = 192  # sequences in lock-step
    length: int = 448  # tokens of a conversation, template included
    user_tokens: int = 48
    long_user_tokens: int = 200  # where the opening asks for a passage
    answer_tokens: int = 160
    temperature: float = 0.8  # of user turns
    top_k: int = 50


@dataclass
class Conversations:
    """Token ids [N, length] and a mask of the tokens that the model chose as its answers."""

    tokens: Tensor  # int32
    chosen: Tensor  # bool

    @property
    def answer_tokens(self) -> int:
        """How many tokens the model chose."""
        return int(self.chosen.sum())


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
    shape = (recipe.batch, recipe.length)
    batches: list[Conversations] = []
    while sum(batch.answer_tokens for batch in batches) < recipe.tokens:

        def write(number: int = len(batches)) -> dict[str, Tensor]:
            made = _Writer(target, chat, eos, recipe, number).run(progress)
            return {"tokens": made.tokens, "chosen": made.chosen}

        path = folder / f"batch-{len(batches):04d}.safetensors"
        stored, was_cached = load_or_make(path, {"tokens": shape, "chosen": shape}, write)
        batches.append(Conversations(stored["tokens"], stored["chosen"]))
        if not batches[-1].answer_tokens:
            raise UserError(f"{target.name} comes to no answer within {recipe.length} tokens of its chat template")
        if was_cached:
            progress(batches[-1].answer_tokens)
    return Conversations(torch.cat([b.tokens for b in batches]), torch.cat([b.chosen for b in batches]))


def recipe_key(target: Decoder, recipe: Recipe, sha256: str | None = None) -> str:
    """Names what the conversations depend on; more of the same recipe extends them.

    `sha256`: of the target's weights, where its name does not say which they are (a folder, a branch).
    """
    value = {key: item for key, item in asdict(recipe).items() if key != "tokens"}
    value |= {"model": target.name, "openings": hashlib.sha256(OPENINGS.read_bytes()).hexdigest()}
    if sha256 is not None:
        value["weights"] = sha256
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return f"{target.name.replace('/', '--')}-{digest[:12]}"


@dataclass
class _Row:
    forced: deque[int]  # tokens to write next, whatever the model says
    asking: bool = True  # whose turn it is once nothing is forced
    room: int = 0  # tokens left in this turn
    said: list[int] = field(default_factory=list)  # this turn's own tokens
    grams: set[tuple[int, ...]] = field(default_factory=set)


class _Writer:
    """One batch of conversations."""

    def __init__(self, target: Decoder, chat: ChatFormat, eos: frozenset[int], recipe: Recipe, number: int):
        self.target, self.recipe, self.eos = target, recipe, eos
        self.generator = torch.Generator(device=target.device).manual_seed(recipe.seed * 100_003 + number)
        before, to_reply, to_user = chat.pieces()
        self.before, self.to_reply, self.to_user = (chat.encode(piece) for piece in (before, to_reply, to_user))
        lines = OPENINGS.read_text(encoding="utf-8").splitlines()
        self.openings = [(chat.encode(line), line.startswith(("Summarize", "Passage", "Read"))) for line in lines]

    @torch.inference_mode()
    def run(self, progress: Callable[[int], None]) -> Conversations:
        recipe, target = self.recipe, self.target
        rows = [_Row(deque(self.before)) for _ in range(recipe.batch)]
        for row in rows:
            self._open(row)
        cache = target.new_cache(batch=recipe.batch, max_len=recipe.length)
        tokens = torch.zeros(recipe.batch, recipe.length, dtype=torch.int32)
        chosen = torch.zeros(recipe.batch, recipe.length, dtype=torch.bool)
        logits = None
        for position in range(recipe.length):
            if logits is not None:
                greedy, sampled = logits.argmax(-1).tolist(), self._sample(logits)
            else:
                greedy = sampled = [0] * recipe.batch  # never read: the template is forced
            for i, row in enumerate(rows):
                own = not row.forced and not row.asking
                tokens[i, position] = self._next(row, greedy[i], sampled[i])
                chosen[i, position] = own
            progress(int(chosen[:, position].sum()))
            states = target.run_layers(target.embed(tokens[:, position : position + 1]), position, cache)
            logits = target.logits(states[:, 0])
        return Conversations(tokens, chosen)

    def _sample(self, logits: Tensor) -> list[int]:
        top = logits.topk(self.recipe.top_k)
        probabilities = (top.values / self.recipe.temperature).softmax(-1)
        picks = torch.multinomial(probabilities, 1, generator=self.generator)
        ids: list[int] = top.indices.gather(1, picks)[:, 0].tolist()
        return ids

    def _next(self, row: _Row, greedy: int, sampled: int) -> int:
        """The row's next token: forced, or its own; and what that makes of its turn."""
        if row.forced:
            return row.forced.popleft()
        token = sampled if row.asking else greedy
        ends = token in self.eos or token == (self.to_reply if row.asking else self.to_user)[0]
        row.room -= 1
        row.said.append(token)
        if ends or row.room <= 0 or (not row.asking and self._loops(row)):
            self._pass_turn(row, already=token if ends else None)
        return token

    def _loops(self, row: _Row) -> bool:
        gram = tuple(row.said[-_LOOP_NGRAM:])
        seen = len(gram) == _LOOP_NGRAM and gram in row.grams
        row.grams.add(gram)
        return seen

    def _pass_turn(self, row: _Row, already: int | None) -> None:
        piece = self.to_reply if row.asking else self.to_user
        row.forced.extend(piece[1:] if already == piece[0] else piece)
        row.said, row.grams = [], set()
        if row.asking:
            row.asking, row.room = False, self.recipe.answer_tokens
        else:
            self._open(row)

    def _open(self, row: _Row) -> None:
        """A user turn begins."""
        pick = int(torch.randint(len(self.openings), (1,), generator=self.generator, device=self.target.device))
        opening, long = self.openings[pick]
        row.forced.extend(opening)
        row.asking, row.room = True, self.recipe.long_user_tokens if long else self.recipe.user_tokens
