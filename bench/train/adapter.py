"""`train kangaroo`: conversations, features, the adapter, its held-out scores, and a card beside the weights."""

from __future__ import annotations

import dataclasses
import datetime
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from bench import checkpoints, environment, questions
from bench.config import RunConfig, TrainConfig
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.questions import ChatFormat
from bench.records import check_writable
from bench.runner import generation_config, load_target, memory_errors
from bench.train import conversations, loop
from bench.train.conversations import Conversations, Recipe
from bench.train.decontaminate import Filter
from bench.train.loop import Features, Schedule
from methods.kangaroo import WEIGHTS_ROOT, Adapter, AdapterConfig, save_adapter

HELD_OUT = 0.05  # share of conversations that scores are measured on
POSITIONS = 6  # draft positions whose acceptance is reported
_RANKED = 16384  # tokens whose order by frequency is stored with the weights, at least
CARD = "README.md"


@memory_errors("training")
def train(config: TrainConfig, log: Callable[[str], None] = print) -> list[Path]:
    """Train an adapter as `config` says; returns the files written.

    Raises:
        UserError: unknown model, no room for the exit layer, unwritable output or cache, no usable conversations.

    """
    begin_s = time.perf_counter()
    checkpoint = checkpoints.resolve(config.model, config.revision, log=log)
    out = Path(config.out) if config.out else WEIGHTS_ROOT / checkpoint.name / "kangaroo"
    _check_writable(out)
    chat = ChatFormat(checkpoints.load_tokenizer(checkpoint))
    recipe = Recipe(tokens=config.tokens, seed=config.seed)
    run = RunConfig(model=config.model, device=config.device, threads=config.threads, dtype="float32")
    target = load_target(run, checkpoint, recipe.length, log)
    if not 0 < config.exit_layer < target.config.layers:
        raise UserError(f"--exit-layer {config.exit_layer} must lie in 1..{target.config.layers - 1} for {target.name}")

    eos = questions.eos_ids(chat.tokenizer, generation_config(checkpoint))
    with _bar(config.tokens, "conversations, answer tokens") as bar:
        made = conversations.make(target, chat, eos, recipe, checkpoints.cache_root(), bar.update, checkpoint.sha256)
    made, checked = _decontaminate(made, chat, config.decontaminate, log)
    key = conversations.recipe_key(target, recipe, checkpoint.sha256)
    folder = checkpoints.cache_root() / "features" / f"{key}-{config.exit_layer}"
    with _bar(len(made.tokens), "features, conversations") as bar:
        # The decontaminated set may differ from one call to the next; its features are then another folder's.
        found = loop.features(target, made, config.exit_layer, folder / checked["key"], bar.update)

    ranking = rank_tokens(made, target.config.vocab, max(_RANKED, config.draft_vocab))
    trainer = AdapterTrainer(target, config, found, ranking)
    history = trainer.fit(log)
    wall_s = time.perf_counter() - begin_s
    files = _write(out, trainer, card(trainer, history, made, checked, checkpoint, wall_s))
    log(f"held-out top-1 agreement {history[-1]['agreement']:.3f}")
    return files


def rank_tokens(made: Conversations, vocab: int, most: int = _RANKED) -> Tensor:
    """The `most` most frequent token ids of the answers; those that never occur follow in their own order."""
    counts = torch.bincount(made.tokens[made.chosen].long(), minlength=vocab)
    return counts.argsort(descending=True, stable=True)[:most]


class AdapterTrainer:
    """The adapter's loss and scores on features of the frozen target."""

    def __init__(self, target: Decoder, config: TrainConfig, found: Features, ranking: Tensor):
        torch.manual_seed(config.seed)
        self.config, self.found, self.ranking, self.device = config, found, ranking, target.device
        c = target.config
        size = config.draft_vocab or c.vocab
        self.draft_ids = ranking[:size].sort().values if size < c.vocab else torch.arange(c.vocab)
        self.head = target.head_weight[self.draft_ids.to(self.device)].float()  # [V', d]
        self.adapter = Adapter(
            AdapterConfig(c.hidden, c.heads, c.norm_eps, config.exit_layer, size if size < c.vocab else 0)
        ).to(self.device)
        # Start as the logit lens: the exit state under the target's final norm, attention adding nothing yet.
        torch.nn.init.zeros_(self.adapter.o.weight)
        self.adapter.output_norm.data.copy_(target.norm)
        self.adapter.prepare(found.tokens.shape[1], self.device)
        self.offsets = found.offsets
        usable = found.taught.any(1).nonzero()[:, 0].tolist()  # a conversation without an answer teaches nothing
        self.train_on, self.held_out = loop.split(usable, HELD_OUT, config.seed)

    def fit(self, log: Callable[[str], None]) -> list[dict[str, float]]:
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

        with _bar(loop.steps_of(len(self.train_on), schedule), "training, steps") as bar:
            loop.fit(self.adapter, self.loss, self.train_on, schedule, after_step, after_epoch)
        return history

    def loss(self, indices: Sequence[int]) -> Tensor:
        """-sum p log q at the taught positions of some conversations, p and q over the draft vocabulary."""
        logits, teacher = self._logits(indices)
        return F.cross_entropy(logits, (teacher @ self.head.T).softmax(-1))

    @torch.inference_mode()
    def scores(self, indices: Sequence[int]) -> dict[str, float]:
        """Agreement with the target's greedy choice, and acceptance by draft position given all before it.

        Under greedy verification, drafting after accepted drafts sees the very states of the target's own text, so
        that both can be read off the target's answers without drafting.
        """
        matches = torch.zeros(len(indices), self.found.tokens.shape[1], dtype=torch.bool)
        entropy, count = 0.0, 0
        for row, index in enumerate(indices):
            logits, teacher = self._logits([index])
            taught = self.found.taught[index]
            expected = self.found.tokens[index].roll(-1)[taught]
            matches[row, taught] = self.draft_ids[logits.argmax(-1).cpu()] == expected
            entropy += float(F.cross_entropy(logits, (teacher @ self.head.T).softmax(-1), reduction="sum"))
            count += len(expected)
        scores = {"held_out_loss": entropy / max(1, count), "agreement": float(matches.sum() / max(1, count))}
        shares = loop.acceptance_by_position(matches, self.found.taught[torch.tensor(indices)], POSITIONS)
        return scores | {f"accept_{w}": share for w, share in enumerate(shares, 1)}

    def _logits(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draft logits [m, V'] and post-norm target states [m, d] at the taught positions of some conversations."""
        chosen = torch.tensor(indices)
        states = self.adapter(self.found.exit_states[chosen].to(self.device, torch.float32))
        taught = self.found.taught[chosen]
        teacher = torch.cat(
            [
                self.found.final_states[self.offsets[i] : self.offsets[i] + int(self.found.taught[i].sum())]
                for i in indices
            ]
        )
        return states[taught.to(self.device)] @ self.head.T, teacher.to(self.device, torch.float32)


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
    filters = Filter(sets)
    clean = [not filters.overlaps(chat.answer_text(row)) for row in made.tokens.tolist()]
    if sum(clean) < 2:
        raise UserError(
            f"{sum(clean)} of {len(clean)} conversations share no text with the questions: too few to train on"
        )
    keep = torch.tensor(clean)
    checked = {
        "against": [f"{s.name} ({len(s.questions)} questions, sha256 {s.sha256[:12]})" for s in sets],
        "missing": missing,
        "dropped": len(clean) - sum(clean),
        "key": "-".join(["clean", *(s.sha256[:8] for s in sets)]),
    }
    return Conversations(made.tokens[keep], made.chosen[keep]), checked


def _write(out: Path, trainer: AdapterTrainer, card_text: str) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as partial:
            save_adapter(Path(partial), trainer.adapter, trainer.ranking)
            (Path(partial) / CARD).write_text(card_text, encoding="utf-8")
            files = [path.replace(out / path.name) for path in sorted(Path(partial).iterdir())]
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {out}: {reason}; choose another folder with --out") from error
    return files


def card(
    trainer: AdapterTrainer,
    history: list[dict[str, float]],
    made: Conversations,
    checked: dict[str, Any],
    checkpoint: checkpoints.Checkpoint,
    wall_s: float,
) -> str:
    """Where the weights come from and what they are worth, as Markdown."""
    config, last = trainer.config, history[-1]
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "device", "threads")}
    columns = list(last)
    table = [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in history),
    ]
    parameters = sum(p.numel() for p in trainer.adapter.parameters())
    against = ", ".join(checked["against"]) or "nothing"
    missing = f"; not checked, because not at hand: {', '.join(checked['missing'])}" if checked["missing"] else ""
    return "\n".join(
        [
            f"# Kangaroo adapter for {checkpoint.name}",
            "",
            f"{parameters:,} parameters, exit layer {config.exit_layer}, draft vocabulary "
            f"{trainer.adapter.config.draft_vocab or 'whole'}. Made {datetime.date.today().isoformat()} by",
            "",
            f"    {environment.command_line()}",
            "",
            f"on {environment.cpu_name()} ({trainer.device.type}), torch {torch.__version__}, in {wall_s / 60:.0f} min "
            "(conversations and features taken from the cache cost nothing here).",
            "",
            f"- Target: {checkpoint.name}, sha256 of the weights {checkpoint.sha256[:16]}.",
            f"- Data: {len(made.tokens):,} conversations of {made.tokens.shape[1]} tokens, of which the target chose "
            f"{made.answer_tokens:,} (greedily) as answers; user turns sampled from the target itself.",
            f"- Decontamination: {checked['dropped']} conversations dropped for sharing 13 words in a row, or a whole "
            f"shorter question, with {against}{missing}.",
            f"- Settings: {', '.join(f'{key} {value}' for key, value in settings.items())}.",
            "- Loss: soft cross-entropy -sum p log q over the draft vocabulary; AdamW (0.9, 0.95), clip 0.5.",
            "",
            f"Scores on {len(trainer.held_out)} held-out conversations: `agreement` is the share of the target's own "
            "choices that the draft's first choice hits; `accept_w` the same for the w-th draft after w - 1 hits.",
            "",
            *table,
            "",
        ]
    )


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
    return tqdm(total=math.ceil(total), desc=what, unit="", unit_scale=True, mininterval=0.5 if _tty() else 15.0)


def _tty() -> bool:
    import sys

    return sys.stderr.isatty()
