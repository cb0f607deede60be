"""`train kangaroo`: conversations, features, the adapter, its held-out scores, and a card beside the weights."""

from __future__ import annotations

import dataclasses
import datetime
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from scipy.optimize import isotonic_regression
from torch import Tensor
from tqdm import tqdm

from bench import checkpoints, environment, questions
from bench.config import RunConfig, TrainConfig
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.questions import ChatFormat
from bench.records import check_writable
from bench.runner import generation_config, load_target, memory_errors
from bench.train import conversations, loop, prompts
from bench.train.conversations import Conversations, Recipe
from bench.train.decontaminate import Filter
from bench.train.loop import Batch, Features, Schedule
from methods.kangaroo import (
    CALIBRATED_AT,
    WEIGHTS_ROOT,
    Adapter,
    AdapterConfig,
    Calibration,
    Stored,
    one_before,
    save_adapter,
)

HELD_OUT = 0.05  # share of conversations, by template, that scores are measured on
POSITIONS = 6  # draft positions whose acceptance is reported
_TOKENS = 1_000_000  # of answers, where none come with the project
_GAMMA = 6  # stored with the weights: the paper's
# Stored as threshold is the confidence from which on this draft and the next are both right more often than a draft
# costs, in vanilla steps (as measured on two CPU cores).
_DRAFT_COST = 0.15
_UNROLL_FROM = 0.5  # of the steps: a chain's later drafts are worth learning once the first ones hit
_REGRESSION = 512  # conversations that the first linear guess is made from
_RIDGE = 0.01  # of the mean squared input
_RANKED = 16384  # tokens whose order by frequency is stored with the weights, at least
CARD = "README.md"
TRIED = "TRIED.md"  # what else was tried, written by hand; joined to the card


@memory_errors("training")
def train(config: TrainConfig, log: Callable[[str], None] = print) -> list[Path]:
    """Train an adapter as `config` says; returns the files written.

    Raises:
        UserError: unknown model, no room for the exit layer, unwritable output or cache, no usable conversations.

    """
    begin_s = time.perf_counter()
    checkpoint = checkpoints.resolve(config.model, config.revision, log=log)
    folder_name = "kangaroo-paper" if config.architecture == "paper" else "kangaroo"
    out = Path(config.out) if config.out else WEIGHTS_ROOT / checkpoint.name / folder_name
    _check_writable(out)
    chat = ChatFormat(checkpoints.load_tokenizer(checkpoint))
    target = _load_target(config, checkpoint, log)
    if not 0 < config.exit_layer < target.config.layers:
        raise UserError(f"--exit-layer {config.exit_layer} must lie in 1..{target.config.layers - 1} for {target.name}")

    made = _conversations(config, target, chat, checkpoint, log)
    made, checked = _decontaminate(made, chat, config.decontaminate, log)
    name = f"{checkpoint.name.replace('/', '--')}-{checkpoint.sha256[:8]}-{config.exit_layer}"
    folder = checkpoints.cache_root() / "features" / name
    with _bar(len(made.tokens), "features, tokens") as bar:
        # Features belong to the very tokens, which differ from one data set or decontamination to the next.
        found = loop.features(target, made, config.exit_layer, folder / made.digest()[:12], bar.update)

    ranking = rank_tokens(made, target.config.vocab, max(_RANKED, config.draft_vocab))
    trainer = AdapterTrainer(target, config, found, made, ranking)
    history = trainer.fit()
    calibration = trainer.calibrate(trainer.held_out)
    wall_s = time.perf_counter() - begin_s
    files = _write(out, trainer, calibration, card(trainer, history, made, checked, checkpoint, wall_s))
    log(f"held-out top-1 agreement {history[-1]['agreement']:.3f}")
    return files


@memory_errors("making conversations")
def keep_conversations(config: TrainConfig, log: Callable[[str], None] = print) -> list[Path]:
    """Make conversations, decontaminated, and keep them with the project, so that every training uses the same."""
    checkpoint = checkpoints.resolve(config.model, config.revision, log=log)
    check_writable(conversations.PACKAGED)
    chat = ChatFormat(checkpoints.load_tokenizer(checkpoint))
    if config.out:
        raise UserError(f"--out {config.out}: conversations are kept with the project, in {conversations.PACKAGED}")
    config = dataclasses.replace(config, tokens=config.tokens or _TOKENS)
    made = _conversations(config, _load_target(config, checkpoint, log), chat, checkpoint, log)
    made, checked = _decontaminate(made, chat, config.decontaminate, log)
    log(f"{made.answer_tokens:,} answer tokens; {checked['dropped']} conversations dropped for overlap with questions")
    return [conversations.save_packaged(made, checkpoint)]


def _load_target(config: TrainConfig, checkpoint: checkpoints.Checkpoint, log: Callable[[str], None]) -> Decoder:
    run = RunConfig(model=config.model, device=config.device, threads=config.threads, dtype="float32")
    return load_target(run, checkpoint, Recipe.length, log)


def _conversations(
    config: TrainConfig,
    target: Decoder,
    chat: ChatFormat,
    checkpoint: checkpoints.Checkpoint,
    log: Callable[[str], None],
) -> Conversations:
    """Those that come with the project for this model, or as many as asked for, made now or taken from the cache."""
    if not config.tokens:
        packaged = conversations.load_packaged(checkpoint)
        if packaged is not None:
            log(f"{packaged.answer_tokens:,} answer tokens that come with the project")
            return packaged
    recipe = Recipe(tokens=config.tokens or _TOKENS, seed=config.seed)
    eos = questions.eos_ids(chat.tokenizer, generation_config(checkpoint))
    with _bar(recipe.tokens, "conversations, answer tokens") as bar:
        return conversations.make(target, chat, eos, recipe, checkpoints.cache_root(), bar.update, checkpoint.sha256)


def rank_tokens(made: Conversations, vocab: int, most: int = _RANKED) -> Tensor:
    """The `most` most frequent token ids of the answers; those that never occur follow in their own order."""
    counts = torch.bincount(made.tokens[made.chosen].long(), minlength=vocab)
    return counts.argsort(descending=True, stable=True)[:most]


class AdapterTrainer:
    """The adapter's loss and scores on features of the frozen target."""

    def __init__(self, target: Decoder, config: TrainConfig, found: Features, made: Conversations, ranking: Tensor):
        torch.manual_seed(config.seed)
        self.config, self.found, self.made, self.ranking, self.device = config, found, made, ranking, target.device
        c = target.config
        size = config.draft_vocab or c.vocab
        self.draft_ids = ranking[:size].sort().values if size < c.vocab else torch.arange(c.vocab)
        self.head = target.head_weight[self.draft_ids.to(self.device)].float()  # [V', d]
        # Where a token stands in the draft vocabulary; -1: nowhere.
        self.places = torch.full((c.vocab,), -1).index_put((self.draft_ids,), torch.arange(len(self.draft_ids)))
        self.adapter = Adapter(
            AdapterConfig(
                c.hidden,
                c.heads,
                c.norm_eps,
                config.exit_layer,
                size if size < c.vocab else 0,
                config.architecture == "feedback",
                config.ffn,
            )
        ).to(self.device)
        # Unrolled drafts differ from the first one only where they are fed back.
        self.unroll = self.depth = config.unroll if self.adapter.config.feedback else 1
        self.adapter.prepare(int(found.lengths.max()), self.device)
        self.train_on, self.held_out = loop.split(found, made.templates, HELD_OUT)
        if not self.train_on:
            raise UserError(
                "all conversations are of one template, and nothing is left to measure on: take more --tokens"
            )
        self._initialise(target.norm)

    def _initialise(self, norm: Tensor) -> None:
        """Start as the logit lens: under the target's final norm, attention and FFN adding nothing yet.

        With feedback, the projection starts as the best linear guess of the target's final state (ridge regression),
        which alone agrees with the target on a quarter of its choices.
        """
        torch.nn.init.zeros_(self.adapter.o.weight)
        if self.adapter.config.ffn:
            torch.nn.init.zeros_(self.adapter.down.weight)
        self.adapter.output_norm.data.copy_(norm)
        if self.adapter.input is not None:
            self.adapter.input.weight.data.copy_(self._regression(norm))

    def _regression(self, norm: Tensor) -> Tensor:
        """[d, 2 d]: from exit state and final state before to the final state less the norm's weights."""
        d = len(norm)
        inner = torch.zeros(2 * d, 2 * d, dtype=torch.float64, device=self.device)
        outer = torch.zeros(2 * d, d, dtype=torch.float64, device=self.device)
        for chosen in _groups(self.train_on[:_REGRESSION]):
            batch = self.found.batch(chosen).to(self.device)
            joined = torch.cat((batch.exit_states, one_before(batch.final_states)), dim=-1)
            x = joined[batch.taught].double()
            y = (batch.final_states[batch.taught] / norm).double()
            inner += x.T @ x
            outer += x.T @ y
        ridge = _RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=torch.float64, device=inner.device)
        solution: Tensor = torch.linalg.solve(inner + ridge, outer)
        return solution.T.float()

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
            self.depth = 1 if step < _UNROLL_FROM * total else self.unroll

        self.depth = 1
        total = loop.steps_of(len(self.train_on), schedule)
        with _bar(total, "training, steps") as bar:
            loop.fit(self.adapter, self.loss, self.train_on, schedule, after_step, after_epoch)
        return history

    def loss(self, indices: Sequence[int]) -> Tensor:
        """-sum p log q per position, p and q over the draft vocabulary, summed over the drafts of a chain.

        The w-th draft counts where those before it hit: only there will it be asked for. The target's distribution
        over a prompt's next token teaches too, though the prompt is not its own.
        """
        batch = self.found.batch(indices).to(self.device)
        start = batch.inside if self.config.teach == "all" else batch.taught
        total = torch.zeros((), device=self.device)
        for chain in self._chains(batch, start, self.depth):
            total = total + self._entropy(chain, batch)
        return total / start.sum().clamp(min=1)

    def _entropy(self, chain: _Chain, batch: Batch) -> Tensor:
        teacher = (batch.final_states[chain.live] @ self.head.T).softmax(-1)
        return F.cross_entropy(chain.logits, teacher, reduction="sum")

    def _chains(self, batch: Batch, start: Tensor, depth: int) -> Iterator[_Chain]:
        """The w-th drafts, w = 1.., of chains begun at every position of `start`, as long as those before them hit.

        Under greedy verification, drafting after accepted drafts sees the very states of the target's own text, so
        that acceptance can be read off the target's answers without drafting.
        """
        expected = self.places.to(self.device)[batch.tokens.roll(-1, 1)]
        live = start
        for states in self.adapter.unrolled(batch.exit_states, batch.final_states, depth):
            logits = states[live] @ self.head.T
            hit = logits.detach().argmax(-1) == expected[live]
            yield _Chain(logits, live, hit)
            reached = torch.zeros_like(live).masked_scatter(live, hit)
            live = F.pad(reached, (1, 0))[:, :-1] & start

    @torch.inference_mode()
    def scores(self, indices: Sequence[int]) -> dict[str, float]:
        """Agreement with the target's greedy choice, acceptance by draft position given all before it, and by kind."""
        tried, hits = torch.zeros(POSITIONS), torch.zeros(POSITIONS)
        by_kind = torch.zeros(2, len(prompts.KINDS))
        entropy = 0.0
        for chosen in _groups(indices):
            batch = self.found.batch(chosen).to(self.device)
            for w, chain in enumerate(self._chains(batch, batch.taught, POSITIONS)):
                tried[w] += len(chain.hit)
                hits[w] += int(chain.hit.sum())
                if w == 0:
                    entropy += float(self._entropy(chain, batch))
                    kinds = self.made.kinds[torch.tensor(chosen)].long()[chain.live.cpu().nonzero()[:, 0]]
                    by_kind += torch.stack(
                        [
                            torch.bincount(kinds, weight, len(prompts.KINDS))
                            for weight in (chain.hit.cpu().float(), torch.ones(len(kinds)))
                        ]
                    )
        shares = (hits / tried.clamp(min=1)).tolist()
        scores = {"held_out_loss": entropy / max(1.0, float(tried[0])), "agreement": shares[0]}
        scores |= {f"accept_{w}": share for w, share in enumerate(shares[1:], 2)}
        return scores | {
            kind: float(by_kind[0, i] / by_kind[1, i]) for i, kind in enumerate(prompts.KINDS) if by_kind[1, i]
        }

    def knobs(self, calibration: Calibration) -> dict[str, Any]:
        """Defaults to be stored with the weights; none for an adapter as published, whose knobs are the paper's."""
        if not self.adapter.config.feedback:
            return {}
        curves = zip(CALIBRATED_AT, calibration.accepted, calibration.following, strict=True)
        worth = (confidence for confidence, now, then in curves if now * then >= _DRAFT_COST)
        return {"gamma": _GAMMA, "stop": "gain", "threshold": min(worth, default=1.0)}

    @torch.inference_mode()
    def calibrate(self, indices: Sequence[int]) -> Calibration:
        """What a draft's confidence is worth: how often such drafts, and the next after them, are right."""
        confident: list[Tensor] = []
        right: list[Tensor] = []
        before: list[Tensor] = []
        following: list[Tensor] = []
        for chosen in _groups(indices):
            batch = self.found.batch(chosen).to(self.device)
            last = torch.zeros(batch.taught.shape, device=self.device)
            for w, chain in enumerate(self._chains(batch, batch.taught, POSITIONS)):
                if w:
                    before.append(F.pad(last, (1, 0))[:, :-1][chain.live].cpu())
                    following.append(chain.hit.float().cpu())
                confidence = chain.logits.softmax(-1).amax(-1)
                confident.append(confidence.cpu())
                right.append(chain.hit.float().cpu())
                last = torch.zeros_like(last).masked_scatter(chain.live, confidence)
        return Calibration(_monotone(confident, right), _monotone(before, following))


@dataclasses.dataclass
class _Chain:
    """The w-th drafts of chains: logits [m, V'], the positions [B, n] that they stand at, whether they hit [m]."""

    logits: Tensor
    live: Tensor
    hit: Tensor


def _groups(indices: Sequence[int], size: int = 8) -> Iterator[Sequence[int]]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def _monotone(confidences: Sequence[Tensor], outcomes: Sequence[Tensor]) -> tuple[float, ...]:
    """The expected outcome, which never falls, at CALIBRATED_AT confidences (isotonic regression)."""
    x = torch.cat(list(confidences)).double().numpy()
    if not len(x):
        return (0.0,) * len(CALIBRATED_AT)
    distinct, place, count = np.unique(x, return_inverse=True, return_counts=True)
    mean = np.bincount(place, torch.cat(list(outcomes)).double().numpy()) / count
    fitted = isotonic_regression(mean, weights=count).x
    return tuple(round(float(value), 4) for value in np.interp(CALIBRATED_AT, distinct, fitted))


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
    rows = made.tokens.split(made.lengths.tolist())
    clean = [not filters.overlaps(chat.answer_text(row.tolist())) for row in rows]
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


def _write(out: Path, trainer: AdapterTrainer, calibration: Calibration, card_text: str) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as partial:
            save_adapter(
                Path(partial), trainer.adapter, Stored(trainer.ranking, calibration, trainer.knobs(calibration))
            )
            tried = (out / TRIED).read_text(encoding="utf-8") if (out / TRIED).is_file() else ""
            (Path(partial) / CARD).write_text(card_text + tried, encoding="utf-8")
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
            f"{parameters:,} parameters, architecture {config.architecture}, exit layer {config.exit_layer}, "
            f"draft vocabulary {trainer.adapter.config.draft_vocab or 'whole'}. "
            f"Made {datetime.date.today().isoformat()} by",
            "",
            f"    {environment.command_line()}",
            "",
            f"on {environment.cpu_name()} ({trainer.device.type}), torch {torch.__version__}, in {wall_s / 60:.0f} min "
            "(conversations and features taken from the cache cost nothing here).",
            "",
            f"- Target: {checkpoint.name}, sha256 of the weights {checkpoint.sha256[:16]}.",
            f"- Data: {len(made.lengths):,} conversations of {len(made.tokens):,} tokens, of which the target chose "
            f"{made.answer_tokens:,} (greedily) as answers to prompts of seeded grammars; of the answers' tokens "
            f"{_mixture(made)}.",
            f"- Decontamination: {checked['dropped']} conversations dropped for sharing 13 words in a row, or a whole "
            f"shorter question, with {against}{missing}.",
            f"- Settings: {', '.join(f'{key} {value}' for key, value in settings.items())}.",
            "- Loss: soft cross-entropy -sum p log q over the draft vocabulary; AdamW (0.9, 0.95), clip 0.5.",
            "",
            f"Scores on {len(trainer.held_out)} conversations whose templates were held out: `agreement` is the share "
            "of the target's own choices that the draft's first choice hits; `accept_w` the same for the w-th draft "
            "after w - 1 hits; the last columns are the agreement by kind of prompt.",
            "",
            *table,
            "",
        ]
    )


def _mixture(made: Conversations) -> str:
    kinds = made.kinds.long().repeat_interleave(made.lengths)[made.chosen]
    shares = torch.bincount(kinds, minlength=len(prompts.KINDS)) / max(1, len(kinds))
    return ", ".join(f"{share:.0%} {kind}" for kind, share in zip(prompts.KINDS, shares.tolist(), strict=True))


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
