"""What every training shares: conversations, features, the trainer that a method gives, its weights and their card."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import math
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

import methods
from bench import questions
from bench.config import TOKENS, Collecting, TrainConfig, Writing
from bench.drafting import trained
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.figures.records import check_writable, write_json
from bench.files import cache_root, user_path
from bench.models.chat import ChatFormat
from bench.models.checkpoints import Checkpoint
from bench.models.loading import Compute, Loaded, find, load, memory_errors
from bench.questions import QuestionSet
from bench.run import environment
from bench.run.processor import describe_processor
from bench.train import conversations, loop, packed, prompts
from bench.train.conversations import Conversations
from bench.train.decontaminate import Filter
from bench.train.journal import Journal
from bench.train.loop import Features, Schedule
from bench.train.scores import SCORES_FILE, Data, Scores, epochs_of
from bench.train.writer import Recipe

HELD_OUT = 0.05  # share of conversations, by template, that scores are measured on
REGRESSION = 512  # conversations that a first linear guess is made from
_RIDGE = 0.01  # of the mean squared input
_RANKED = 16384  # tokens whose order by frequency is stored with the weights, at least
CARD = "README.md"
TRIED = "TRIED.md"  # what else was tried, written by hand; joined to the card


class Trainer(ABC):
    """A method's weights in training: their loss and scores on features of the frozen target.

    A method that is trained has one subclass in a module `training` next to its own: `train METHOD` and sweeps find it.
    """

    Config: ClassVar[type[TrainConfig]] = TrainConfig  # its settings, which become the flags of `train METHOD`
    title: ClassVar[str]  # of the card
    loss_text: str
    scores_text: ClassVar[str]
    module: nn.Module
    done = 1.0  # share of the steps that are over: all but while it trains

    def __init__(self, target: Decoder, config: Any, found: Features, made: Conversations, ranking: Tensor):
        torch.manual_seed(config.seed)
        self.config, self.found, self.made, self.ranking, self.device = config, found, made, ranking, target.device
        vocab = target.config.vocab
        size = config.draft_vocab or vocab
        self.draft_vocab = size if size < vocab else 0
        self.draft_ids = ranking[:size].sort().values if self.draft_vocab else torch.arange(vocab)
        self.head = target.head_weight[self.draft_ids.to(self.device)].float()  # [V', d]
        # Where a token stands in the draft vocabulary; -1: nowhere.
        places = torch.full((vocab,), -1).index_put((self.draft_ids,), torch.arange(len(self.draft_ids)))
        self.places = places.to(self.device)
        self.train_on, self.held_out = loop.split(found, made.templates, HELD_OUT)
        if not self.train_on:
            raise UserError(
                "all conversations are of one template, and nothing is left to measure on: take more --tokens"
            )

    def fit(self) -> list[dict[str, float]]:
        """Train, with scores on the held-out conversations after every epoch."""
        config = self.config
        schedule = Schedule(config.epochs, config.batch, config.learning_rate, config.seed)
        history: list[dict[str, float]] = []
        losses: list[float] = []

        def after_epoch(epoch: int) -> None:
            history.append({"epoch": epoch, "loss": sum(losses) / len(losses), **self.scores(self.held_out)})
            losses.clear()
            bar.write(" ".join(f"{key} {value:.3f}" for key, value in history[-1].items()))

        def after_step(step: int, loss: float) -> None:
            losses.append(loss)
            bar.update(1)
            self.done = step / total

        self.done = 0.0
        total = loop.steps_of(len(self.train_on), schedule)
        with _bar(total, "training, steps") as bar:
            loop.fit(self.module, self.loss, self.train_on, schedule, after_step, after_epoch)
        return history

    @abstractmethod
    def loss(self, indices: Sequence[int]) -> Tensor:
        """The loss over some conversations."""

    @abstractmethod
    def scores(self, indices: Sequence[int]) -> dict[str, float]:
        """What is worth knowing of the weights as they are, `agreement` among it."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights and what belongs to them into a folder."""

    @abstractmethod
    def describe(self) -> str:
        """The weights' form, for the card."""


def trainer_of(method: str) -> type[Trainer]:
    """The trainer of a method that is trained (one of `methods.trained()`).

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
    log: Callable[[str], None] = print,
    exit_layers: Sequence[int] = (),
    loaded: Loaded | None = None,
) -> list[Path]:
    """Train a method's weights as `config`, its trainer's settings, says; returns the files written.

    `exit_layers`: those of trainings to come, whose features the same passes of the target may as well give. `loaded`:
    the model where it is at hand, in float32.

    Raises:
        UserError: unknown model, no room for the exit layer, unwritable output or cache, no usable conversations.

    """
    begin_s = time.perf_counter()
    model = loaded or find(config.model, config.revision, log)
    checkpoint, chat = model.checkpoint, model.chat
    out = (
        user_path(config.out)
        if config.out is not None
        else trained.default_folder(method, checkpoint.name, config.form)
    )
    _check_writable(out)
    loaded = loaded or load(model, compute(config), Recipe.length, log)
    target = loaded.target
    if not 0 < config.exit_layer < target.config.layers:
        raise UserError(f"--exit-layer {config.exit_layer} must lie in 1..{target.config.layers - 1} for {target.name}")

    made = _found(config, loaded, log)
    made, checked = _decontaminate(made, chat, config.decontaminate, log)
    layers = {config.exit_layer, *(layer for layer in exit_layers if 0 < layer < target.config.layers)}
    folders = _feature_folders(checkpoint, made, layers)
    with _bar(len(made.tokens), "features, tokens") as bar:
        found = loop.features(target, made, config.exit_layer, folders.pop(config.exit_layer), bar.update, folders)

    ranking = rank_tokens(made, target.config.vocab, max(_RANKED, config.draft_vocab))
    trainer = trainer_of(method)(target, config, found, made, ranking)
    history = trainer.fit()
    wall_s = time.perf_counter() - begin_s
    scores = _scores(trainer, history, made, checkpoint)
    files = _write(out, trainer, scores, card(trainer, scores, _mixture(made), checked, wall_s))
    log(f"held-out top-1 agreement {scores.agreement:.3f}")
    return files


@memory_errors("writing conversations")
def write_conversations(config: Writing, log: Callable[[str], None] = print) -> list[Path]:
    """Have the model write conversations into the cache; returns the folder that they are in."""
    model = find(config.model, config.revision, log)
    checkpoint = model.checkpoint
    packed_ones = packed.load(checkpoint)
    made = _written(config, load(model, compute(config), Recipe.length, log), packed_ones)
    log(f"{made.answer_tokens:,} answer tokens, {packed_ones.answer_tokens:,} of them packed before")
    return [conversations.journals_of(cache_root(), checkpoint.name, checkpoint.sha256)]


def collect_conversations(config: Collecting, log: Callable[[str], None] = print) -> list[Path]:
    """Pack the conversations in the cache that are not packed yet, decontaminated; returns the files written.

    Raises:
        UserError: unknown model, a question set that is not at hand, a folder that cannot be written.

    """
    model = find(config.model, config.revision, log)
    checkpoint = model.checkpoint
    folder = user_path(config.out) if config.out else packed.FOLDER
    check_writable(folder)
    before = packed.load(checkpoint, folder)
    journals = sorted(conversations.journals_of(cache_root(), checkpoint.name, checkpoint.sha256).glob("*.jsonl"))
    made = Conversations.of([row for path in journals for row in Journal(path).read()]).fresh(before)
    sets = [questions.load(source) for source in config.decontaminate]
    clean = made.keep(_is_clean(made, model.chat, sets))
    log(f"{len(made.lengths) - len(clean.lengths)} conversations left out for overlap with questions")
    files = [packed.add(clean, checkpoint, folder)] if len(clean.lengths) else []
    total = Conversations.joined([before, clean])
    log(f"{clean.answer_tokens:,} answer tokens packed, {total.answer_tokens:,} in all: {_mixture(total)}")
    return files


def _feature_folders(checkpoint: Checkpoint, made: Conversations, exit_layers: Iterable[int]) -> dict[int, Path]:
    """Where features are kept, by exit layer.

    They belong to the very tokens, which differ from one data set or decontamination to the next.
    """
    root, digest = cache_root() / "features", made.digest()[:12]
    name = f"{checkpoint.name.replace('/', '--')}-{checkpoint.sha256[:8]}"
    return {layer: root / f"{name}-{layer}" / digest for layer in exit_layers}


def compute(config: Writing) -> Compute:
    """What a training computes on, and in float32."""
    return Compute(config.device, "float32", config.threads)


def _found(config: TrainConfig, model: Loaded, log: Callable[[str], None]) -> Conversations:
    """Those that come with the project for this model, or some of them, drawn; where they do not suffice, with more."""
    there = packed.load(model.checkpoint)
    if not there.answer_tokens or there.answer_tokens < config.tokens:
        return _written(config, model, there)
    drawn = there.drawn(config.tokens, config.seed) if config.tokens else there
    of = f" of the {there.answer_tokens:,}" if config.tokens else ""
    log(f"{drawn.answer_tokens:,}{of} answer tokens that come with the project")
    return drawn


def _written(config: Writing, model: Loaded, there: Conversations) -> Conversations:
    """Those that are `there` and more, written now or taken from the cache, until they are as many as asked for."""
    recipe = Recipe(tokens=config.tokens or TOKENS, seed=config.seed)
    recipe = replace(recipe, length=min(recipe.length, model.target.max_len))
    folder = conversations.journals_of(cache_root(), model.checkpoint.name, model.checkpoint.sha256)
    with _bar(recipe.tokens, "conversations, answer tokens") as bar:
        return conversations.make(model.target, model.chat, model.eos, recipe, folder, bar.update, there)


def rank_tokens(made: Conversations, vocab: int, most: int = _RANKED) -> Tensor:
    """The `most` most frequent token ids of the answers; those that never occur follow in their own order."""
    counts = torch.bincount(made.tokens[made.chosen].long(), minlength=vocab)
    return counts.argsort(descending=True, stable=True)[:most]


def _decontaminate(
    made: Conversations, chat: ChatFormat, sources: Sequence[str], log: Callable[[str], None]
) -> tuple[Conversations, dict[str, Any]]:
    """The conversations that share no 13 words in a row with a question, and what was checked."""
    sets, missing = [], []
    for source in sources:
        try:
            sets.append(questions.load(source))
        except UserError as error:
            log(f"WARNING: not decontaminated against {source!r}: {error}")
            missing.append(source)
    clean = _is_clean(made, chat, sets)
    if sum(clean) < 2:
        raise UserError(
            f"{sum(clean)} of {len(clean)} conversations share no text with the questions: too few to train on"
        )
    checked = {
        "against": [f"{s.name} ({len(s.questions)} questions, sha256 {s.sha256[:12]})" for s in sets],
        "missing": missing,
        "dropped": len(clean) - sum(clean),
    }
    return made.keep(clean), checked


def _is_clean(made: Conversations, chat: ChatFormat, sets: Sequence[QuestionSet]) -> list[bool]:
    """Of each conversation, whether it shares no text with a question."""
    filters = Filter(sets)
    rows = made.tokens.split(made.lengths.tolist())
    return [not filters.overlaps(chat.answer_text(row.tolist())) for row in rows]


def _write(out: Path, trainer: Trainer, scores: Scores, card_text: str) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as partial:
            trainer.save(Path(partial))
            write_json(Path(partial) / SCORES_FILE, scores)
            tried = (out / TRIED).read_text(encoding="utf-8") if (out / TRIED).is_file() else ""
            (Path(partial) / CARD).write_text(card_text + tried, encoding="utf-8")
            files = [path.replace(out / path.name) for path in sorted(Path(partial).iterdir())]
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {out}: {reason}; choose another folder with --out") from error
    return files


def _scores(trainer: Trainer, history: list[dict[str, float]], made: Conversations, checkpoint: Checkpoint) -> Scores:
    mixture = {kind: round(count / max(1, made.answer_tokens), 3) for kind, count in made.by_kind().items()}
    data = Data(len(made.lengths), len(made.tokens), made.answer_tokens, mixture, len(trainer.held_out))
    parameters = sum(p.numel() for p in trainer.module.parameters())
    return Scores(checkpoint.name, checkpoint.sha256, parameters, data, epochs_of(history, prompts.KINDS))


def card(trainer: Trainer, scores: Scores, mixture: str, checked: dict[str, Any], wall_s: float) -> str:
    """Where the weights come from and what they are worth, as Markdown."""
    settings = {k: v for k, v in dataclasses.asdict(trainer.config).items() if k not in ("out", "device", "threads")}
    rows, data = scores.table(), scores.data
    table = [
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(map(_cell, row.values())) + " |" for row in rows),
    ]
    against = ", ".join(checked["against"]) or "nothing"
    missing = f"; not checked, because not at hand: {', '.join(checked['missing'])}" if checked["missing"] else ""
    return "\n".join(
        [
            f"# {trainer.title} for {scores.model}",
            "",
            f"{scores.parameters:,} parameters, {trainer.describe()}. Made {datetime.date.today().isoformat()} by",
            "",
            f"    {environment.command_line()}",
            "",
            f"on {describe_processor().name} ({trainer.device.type}), torch {torch.__version__}, in "
            f"{wall_s / 60:.0f} min (conversations and features taken from the cache cost nothing here).",
            "",
            f"- Target: {scores.model}, sha256 of the weights {scores.model_sha256[:16]}.",
            f"- Data: {data.conversations:,} conversations of {data.tokens:,} tokens, of which the target chose "
            f"{data.answer_tokens:,} (greedily) as answers to prompts of seeded grammars; of the answers' tokens "
            f"{mixture}.",
            f"- Decontamination: {checked['dropped']} conversations dropped for sharing 13 words in a row, or a whole "
            f"shorter question, with {against}{missing}.",
            f"- Settings: {', '.join(f'{key} {value}' for key, value in settings.items())}.",
            f"- Loss: {trainer.loss_text}; AdamW (0.9, 0.95), clip 0.5.",
            "",
            f"Scores on {data.held_out} conversations whose templates were held out: {trainer.scores_text}",
            "",
            *table,
            "",
        ]
    )


def ridge_regression(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """[d_y, d_x]: the best linear map from x [m, d_x] to y [m, d_y] over all pairs, lightly regularised; in float64."""
    inner = outer = torch.zeros((), dtype=torch.float64)
    for x, y in pairs:
        x, y = x.double(), y.double()
        inner, outer = inner.to(x.device) + x.T @ x, outer.to(x.device) + x.T @ y
    ridge = _RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=torch.float64, device=inner.device)
    solution: Tensor = torch.linalg.solve(inner + ridge, outer)
    return solution.T.float()


def count_by_kind(kinds: Tensor, live: Tensor, hit: Tensor) -> Tensor:
    """[2, kinds]: hits and tries by kind of prompt; kinds [B] of a batch, tries at live [B, n], hit [tries]."""
    own = kinds.long()[live.cpu().nonzero()[:, 0]]
    size = len(prompts.KINDS)
    return torch.stack([torch.bincount(own, hit.cpu().float(), size), torch.bincount(own, minlength=size).float()])


def shares_by_kind(counts: Tensor) -> dict[str, float]:
    """Hits by tries, of the kinds that were tried."""
    return {kind: float(counts[0, i] / counts[1, i]) for i, kind in enumerate(prompts.KINDS) if counts[1, i]}


def _mixture(made: Conversations) -> str:
    counts = made.by_kind()
    return ", ".join(f"{count / max(1, made.answer_tokens):.0%} {kind}" for kind, count in counts.items())


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _check_writable(out: Path) -> None:
    """Find out before an hour of work."""
    check_writable(out)
    existing = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < 100e6:
        raise UserError(f"cannot write {out}: only {free / 1e6:.0f} MB are free there; choose another with --out")


def _bar(total: float, what: str) -> Any:
    return tqdm(
        total=math.ceil(total), desc=what, unit="", unit_scale=True, mininterval=0.5 if sys.stderr.isatty() else 15.0
    )
