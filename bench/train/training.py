"""What all trainings share: conversations, the target's states, and the trainer that a method defines."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

import methods
from bench.decontaminate import Filter, question_sets
from bench.drafting.trained import round_to_half
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.files import IS_INSTALLED, cache_root, check_writable, user_path
from bench.models import conversation_files
from bench.models.chat import ChatFormat
from bench.models.checkpoints import Checkpoint
from bench.models.loading import Compute, Loaded, Model, find, load, memory_errors, set_up
from bench.progress import Log
from bench.questions import QuestionSet
from bench.train import conversations, crew, destination, loop, packed, precision, prompts, weights
from bench.train.conversations import Conversations
from bench.train.journal import Journal
from bench.train.loop import Features, Schedule
from bench.train.scores import Data, Scores, epochs_of
from bench.train.weights import Trained
from bench.train.writer import Recipe
from bench.train_config import TOKENS, Collecting, TrainConfig, Writing

HELD_OUT = 0.05  # share of conversations, by template, that scores are measured on
REGRESSION = 512  # conversations that a first linear guess is made from
_RIDGE = 0.01  # of the mean squared input
_RANKED = 16384  # tokens whose order by frequency is stored with the weights, at least
_TRAINING = "training (steps)"


class Trainer(ABC):
    """A method's weights in training: their loss and scores on states of the frozen target.

    A trained method has one subclass in a module `training` next to its own, where `train METHOD` and sweeps find it.
    """

    Config: ClassVar[type[TrainConfig]] = TrainConfig  # its settings, which become the flags of `train METHOD`
    title: ClassVar[str]  # of the card
    loss_text: str
    scores_text: ClassVar[str]
    module: nn.Module
    done = 1.0  # share of the steps that are done; below 1 only during training

    def __init__(self, target: Decoder, config: Any, found: Features, made: Conversations, ranking: Tensor):
        torch.manual_seed(config.seed)
        self.config, self.found, self.made, self.ranking, self.device = config, found, made, ranking, target.device
        self.dtype = precision.chosen(config.precision, self.device)  # of products
        vocab = target.config.vocab
        size = config.draft_vocab or vocab
        self.draft_vocab = size if size < vocab else 0
        self.draft_ids = ranking[:size].sort().values if self.draft_vocab else torch.arange(vocab)
        self.head = target.head_rows(self.draft_ids.to(self.device)).float()  # [V', d]
        # Places of tokens in the draft vocabulary; -1: not in it.
        places = torch.full((vocab,), -1).index_put((self.draft_ids,), torch.arange(len(self.draft_ids)))
        self.places = places.to(self.device)
        self.train_on, self.held_out = loop.split(found, made.templates, HELD_OUT)
        if not self.train_on:
            raise UserError(
                "all conversations are of one template, which leaves none to measure on: take more --tokens"
            )

    def fit(self) -> list[dict[str, float]]:
        """Train; returns the mean loss and the held-out scores of every epoch."""
        config = self.config
        schedule = Schedule(config.epochs, config.batch, config.peak_rate, config.seed, config.chosen_optimiser)
        history: list[dict[str, float]] = []
        losses: list[float] = []

        def after_epoch(epoch: int) -> None:
            bar.set_description(f"scoring epoch {epoch}")
            if epoch == config.epochs:  # what is scored is what is saved
                round_to_half(self.module)
            history.append({"epoch": epoch, "loss": sum(losses) / len(losses), **self.scores(self.held_out)})
            bar.set_description(_TRAINING)
            losses.clear()
            bar.write(" ".join(f"{key} {value:.3f}" for key, value in history[-1].items()))

        def after_step(step: int, loss: float) -> None:
            losses.append(loss)
            bar.update(1)
            self.done = step / total

        def loss(indices: Sequence[int]) -> Tensor:
            with precision.products(self.dtype, self.device):
                return self.loss(indices)

        self.done = 0.0
        total = loop.steps_of(len(self.train_on), schedule)
        with _bar(total, _TRAINING) as bar:
            loop.fit(self.module, loss, self.train_on, self.found.lengths, schedule, after_step, after_epoch)
        return history

    @classmethod
    def taps(cls, config: Any, target: Decoder) -> tuple[int, ...]:
        """Return the layers after which the states of the target are needed, besides the final ones.

        Raises:
            UserError: the settings do not fit the target.

        """
        return ()

    @abstractmethod
    def loss(self, indices: Sequence[int]) -> Tensor:
        """Return the loss over some conversations."""

    @abstractmethod
    def scores(self, indices: Sequence[int]) -> dict[str, float]:
        """Return scores of the weights as they are: `agreement`, the share of first drafts that are right, and others.

        `accept_2`, `accept_3`, ..: the share of 2nd, 3rd, .. drafts that are right after those before them were.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights and their config.json into a folder."""

    @abstractmethod
    def describe(self) -> str:
        """Return the form of the weights, for the card."""


def trainer_of(method: str) -> type[Trainer]:
    """Return the trainer of a trained method (one of `methods.trained()`).

    Raises:
        UserError: its module does not define exactly one.

    """
    module = methods.training_module(method)
    assert module is not None, f"{method} is not trained"
    only: type[Trainer] = methods.only_in(importlib.import_module(module), Trainer, "trainer")
    return only


@memory_errors("training")
def train(
    method: str,
    config: TrainConfig,
    log: Log = print,
    others: Sequence[TrainConfig] = (),
    loaded: Loaded | None = None,
    *,
    replace_weights: bool = False,
) -> Trained:
    """Train a method's weights as `config`, its trainer's settings, says.

    `others`: later trainings of the method, whose states are computed and cached in the same forward passes. `loaded`:
    the model in float32, if it is already loaded. Weights that exist are kept unless `replace_weights`.

    Raises:
        UserError: unknown model, settings that do not fit the model, no usable conversations, or an output folder that
            has weights or cannot be written.

    """
    begin_s = time.perf_counter()
    sets, missing = question_sets(config.decontaminate, log)
    model = loaded or find(config.model, config.revision, log)
    checkpoint, chat = model.checkpoint, model.chat
    out = destination.destination(method, config, checkpoint.name)
    destination.check(method, out, replace=replace_weights)
    packaged = weights.packaged_scores(method, config, checkpoint.name)
    loaded = loaded or load(model, compute(config), Recipe.length, log)
    target = loaded.target
    of = trainer_of(method)
    taps = of.taps(config, target)

    found = _found(config, loaded, log)
    made = _decontaminated(found, chat, sets)
    features = _features(config, loaded, made, taps, _taps_of(of, others, target), log)

    log("initialising the weights")
    ranking = rank_tokens(made, target.config.vocab, max(_RANKED, config.draft_vocab))
    trainer = of(target, config, features, made, ranking)
    scores = _scores(trainer, trainer.fit(), made, checkpoint)
    log("saving the weights, with statistics of the drafts on held-out conversations")
    checked = {
        "against": [f"{s.name} ({len(s.questions)} questions, sha256 {s.sha256[:12]})" for s in sets],
        "missing": missing,
        "dropped": len(found.lengths) - len(made.lengths),
    }
    files = weights.write(out, trainer, scores, weights.card(trainer, scores, checked, time.perf_counter() - begin_s))
    return Trained(method, config, target, out, files, scores, packaged)


@memory_errors("writing conversations")
def write_conversations(config: Writing, log: Log = print) -> list[Path]:
    """Have the model write conversations into the cache; returns their folder."""
    model = find(config.model, config.revision, log)
    if config.workers:
        set_up(compute(config), log)  # they find the engine's kernels built
    else:
        model = load(model, compute(config), Recipe.length, log)
    checkpoint = model.checkpoint
    packed_ones = packed.load(checkpoint)
    made = _written(config, model, packed_ones, log)
    log(f"{made.answer_tokens:,} answer tokens, {packed_ones.answer_tokens:,} of them packed before")
    return [conversations.journals_of(cache_root(), checkpoint.name, checkpoint.sha256)]


def collect_conversations(config: Collecting, log: Log = print) -> list[Path]:
    """Pack the conversations in the cache that are not packed yet, decontaminated; returns the files written.

    Raises:
        UserError: unknown model, a question set that cannot be read, or a folder that cannot be written.

    """
    if config.out is None and IS_INSTALLED:
        raise UserError("Roobench is installed here, and its folder goes with the next version: give one with --out")
    folder = conversation_files.FOLDER if config.out is None else user_path(config.out)
    check_writable(folder)
    sets, _ = question_sets(config.decontaminate)
    model = find(config.model, config.revision, log)
    checkpoint = model.checkpoint
    before = packed.load(checkpoint, folder)
    journals = sorted(conversations.journals_of(cache_root(), checkpoint.name, checkpoint.sha256).glob("*.jsonl"))
    made = Conversations.of([row for path in journals for row in Journal(path).read()]).fresh(before)
    clean = made.keep(_is_clean(made, model.chat, sets))
    log(f"{len(made.lengths) - len(clean.lengths)} conversations are left out because they share text with questions")
    files = [packed.add(clean, checkpoint, folder)] if len(clean.lengths) else []
    total = Conversations.joined([before, clean])
    log(
        f"{clean.answer_tokens:,} answer tokens packed, {total.answer_tokens:,} in all: "
        f"{weights.mixture_text(total.mixture())}"
    )
    return files


def _reader(loaded: Loaded, dtype: torch.dtype) -> Decoder:
    """Return the target as it reads and writes conversations: in float32 itself, else one in `dtype`."""
    target = loaded.target
    return (
        target if dtype == torch.float32 else precision.reader(loaded.checkpoint, target.device, dtype, target.max_len)
    )


def _features(
    config: TrainConfig, loaded: Loaded, made: Conversations, taps: Sequence[int], others: Collection[int], log: Log
) -> Features:
    """Return the states of the target, from the cache or computed now, by workers if there are any."""
    target, dtype = loaded.target, precision.chosen(config.precision, loaded.target.device)
    folder = _features_folder(loaded.checkpoint, made, dtype)
    if config.workers:
        every = loop.chunks(made, folder, target.config.hidden)
        missing = {chunk: layers for chunk in every if (layers := chunk.missing((loop.FINAL, *taps), others))}
        if missing:
            with _bar(sum(chunk.tokens for chunk in missing), "computing states by workers (tokens)") as bar:
                crew.compute(config, missing, log, bar.update)
    with _bar(len(made.tokens), "computing states (tokens)") as bar:
        reader = functools.partial(_reader, loaded, dtype)
        return loop.features(target, made, folder, taps, bar.update, others, reader)


def _features_folder(checkpoint: Checkpoint, made: Conversations, dtype: torch.dtype) -> Path:
    """Return where states are cached.

    The folder is named by the tokens, which differ from one data set or decontamination to the next.
    """
    name = f"{checkpoint.name.replace('/', '--')}-{checkpoint.sha256[:8]}"
    if dtype != torch.float32:
        name += f"-{str(dtype).removeprefix('torch.')}"
    return cache_root() / "features" / name / made.digest()[:12]


def _taps_of(of: type[Trainer], others: Iterable[TrainConfig], target: Decoder) -> set[int]:
    """Return the layers of other trainings; those that do not fit the target fail in their turn."""
    layers: set[int] = set()
    for config in others:
        with contextlib.suppress(UserError):
            layers.update(of.taps(config, target))
    return layers


def compute(config: Writing) -> Compute:
    """Return the device and threads of a training, which is in float32; it has the threads of all workers together."""
    threads = config.threads
    if config.workers:
        threads = min(threads * config.workers, max(threads, len(os.sched_getaffinity(0))))
    return Compute(config.device, "float32", threads)


def _found(config: TrainConfig, model: Loaded, log: Log) -> Conversations:
    """Return the conversations that come with the project for this model, and new ones if more are needed.

    About as many as asked for are drawn from them.
    """
    there = packed.load(model.checkpoint)
    is_enough = there.answer_tokens and there.answer_tokens >= config.tokens
    made = there if is_enough else _written(config, model, there, log)
    if config.longest:
        made = made.up_to(config.longest)
        if made.answer_tokens < config.tokens:
            log(f"WARNING: --longest leaves {made.answer_tokens:,} of the {config.tokens:,} answer tokens of --tokens")
    drawn = made.drawn(config.tokens, config.seed) if config.tokens else made
    of = f" of the {made.answer_tokens:,}" if config.tokens else ""
    log(f"{drawn.answer_tokens:,}{of} answer tokens {'that come with the project' if is_enough else 'in the cache'}")
    return drawn


def _written(config: Writing, model: Model, there: Conversations, log: Log) -> Conversations:
    """Return the conversations `there` and more, from the cache or written now, as many as asked for.

    They are written by workers if there are any, else by `model`, which must be loaded.
    """
    recipe = Recipe(config.tokens or TOKENS, seed=config.seed, length=min(Recipe.length, model.context))
    folder = conversations.journals_of(cache_root(), model.checkpoint.name, model.checkpoint.sha256)
    with _bar(recipe.tokens, "writing answers (tokens)") as bar:
        if config.workers:
            write = functools.partial(crew.write, config, recipe, log, bar.update)
            return conversations.complete(model.name, model.chat, recipe, folder, write, bar.update, there)
        assert isinstance(model, Loaded)
        target = _reader(model, precision.chosen(config.precision, model.target.device))
        return conversations.make(target, model.chat, model.eos, recipe, folder, bar.update, there)


def rank_tokens(made: Conversations, vocab: int, most: int = _RANKED) -> Tensor:
    """Return the `most` most frequent token ids of the answers. Ids that never occur follow in their own order."""
    counts = torch.bincount(made.tokens[made.chosen].long(), minlength=vocab)
    return counts.argsort(descending=True, stable=True)[:most]


def _decontaminated(made: Conversations, chat: ChatFormat, sets: Sequence[QuestionSet]) -> Conversations:
    """Return the conversations that share no 13 words in a row with a question."""
    clean = _is_clean(made, chat, sets)
    if sum(clean) < 2:
        raise UserError(
            f"{sum(clean)} of {len(clean)} conversations share no text with the questions: too few to train on; give "
            "more --tokens"
        )
    return made.keep(clean)


def _is_clean(made: Conversations, chat: ChatFormat, sets: Sequence[QuestionSet]) -> list[bool]:
    """Return for each conversation whether it shares no text with a question."""
    filters = Filter(sets)
    rows = made.tokens.split(made.lengths.tolist())
    return [not filters.overlaps(chat.answer_text(row.tolist())) for row in rows]


def _scores(trainer: Trainer, history: list[dict[str, float]], made: Conversations, checkpoint: Checkpoint) -> Scores:
    data = Data(len(made.lengths), len(made.tokens), made.answer_tokens, made.mixture(), len(trainer.held_out))
    parameters = sum(p.numel() for p in trainer.module.parameters())
    return Scores(checkpoint.name, checkpoint.sha256, parameters, data, epochs_of(history, prompts.KINDS))


def ridge_regression(pairs: Iterable[tuple[Tensor, Tensor]], *, by_column: bool = False) -> Tensor:
    """Return the best linear map [d_y, d_x] from x [m, d_x] to y [m, d_y] over all pairs, lightly regularised.

    `by_column`: in proportion to the mean square of each column of x, for columns of different scales.
    """
    inner = outer = torch.zeros((), dtype=torch.float64)
    for x, y in pairs:
        x, y = x.double(), y.double()
        inner, outer = inner.to(x.device) + x.T @ x, outer.to(x.device) + x.T @ y
    squares = inner.diagonal()
    mean = squares.mean().expand_as(squares)
    ridge = _RIDGE * (squares.maximum(1e-6 * mean) if by_column else mean)
    solution: Tensor = torch.linalg.solve(inner + ridge.diag(), outer)
    return solution.T.float()


def count_by_kind(kinds: Tensor, live: Tensor, hit: Tensor) -> Tensor:
    """Return hits and tries by kind of prompt [2, kinds]; kinds [B] of a batch, tries at live [B, n], hit [tries]."""
    own = kinds.long()[live.cpu().nonzero()[:, 0]]
    size = len(prompts.KINDS)
    return torch.stack([torch.bincount(own, hit.cpu().float(), size), torch.bincount(own, minlength=size).float()])


def shares_by_kind(counts: Tensor) -> dict[str, float]:
    """Return hits by tries of the kinds that were tried."""
    return {kind: float(counts[0, i] / counts[1, i]) for i, kind in enumerate(prompts.KINDS) if counts[1, i]}


def _bar(total: float, what: str) -> Any:
    return tqdm(
        total=math.ceil(total), desc=what, unit="", unit_scale=True, mininterval=0.5 if sys.stderr.isatty() else 15.0
    )
