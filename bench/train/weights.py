"""What a training leaves: a folder of weights with their card, how good they are, and the command that uses them."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import operator
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

import methods
from bench.config import DEFAULT_MODEL
from bench.drafting.knobs import default_folder
from bench.drafting.method import SpeculativeMethod
from bench.engine.decoder import Decoder
from bench.errors import UserError, program
from bench.figures.records import write_json
from bench.models.loading import memory_errors
from bench.report.markdown import table_text
from bench.report.model import table
from bench.run import environment
from bench.run.processor import describe_processor
from bench.train import destination, optimiser
from bench.train.scores import SCORES_FILE, Scores, read_scores
from bench.train_config import TrainConfig

if TYPE_CHECKING:
    from bench.train.training import Trainer

CARD = "README.md"
_PLACES = ("out", "device", "threads", "workers")  # settings that weights do not depend on


@dataclass(frozen=True)
class Trained:
    """New weights of a method, in the folder `out`."""

    method: str
    config: TrainConfig
    target: Decoder
    out: Path
    files: list[Path]
    scores: Scores
    packaged: Scores | None  # of the weights of this form that runs took before, if there are any


def write(out: Path, trainer: Trainer, scores: Scores, text: str) -> list[Path]:
    """Write the weights with their scores and card. They appear in `out` once all of them are written.

    Raises:
        UserError: the folder cannot be written.

    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, suffix=destination.PARTIAL) as partial:
            trainer.save(Path(partial))
            write_json(Path(partial) / SCORES_FILE, scores)
            tried = (out / destination.TRIED).read_text(encoding="utf-8") if (out / destination.TRIED).is_file() else ""
            (Path(partial) / CARD).write_text(text + tried, encoding="utf-8")
            return [path.replace(out / path.name) for path in sorted(Path(partial).iterdir())]
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {out}: {reason}; choose another folder with --out") from error


def card(trainer: Trainer, scores: Scores, checked: dict[str, Any], wall_s: float) -> str:
    """Return how the weights were trained and what they score, as Markdown."""
    settings = {k: v for k, v in dataclasses.asdict(trainer.config).items() if k not in _PLACES}
    settings |= {"optimiser": trainer.config.chosen_optimiser, "learning_rate": trainer.config.peak_rate}
    rows, data = scores.table(), scores.data
    shown = table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows], 0)
    missing = f"; not checked, as not available: {', '.join(checked['missing'])}" if checked["missing"] else ""
    return "\n".join(
        [
            f"# {trainer.title} for {scores.model}",
            "",
            f"{scores.parameters:,} parameters, {trainer.describe()}. Trained {datetime.date.today().isoformat()} by",
            "",
            f"    {environment.command_line()}",
            "",
            f"on {describe_processor().name} ({trainer.device.type}), torch {torch.__version__}, in "
            f"{wall_s / 60:.0f} min (without the time of cached conversations and states).",
            "",
            f"- Target: {scores.model}, sha256 of the weights {scores.model_sha256[:16]}.",
            f"- Data: {data.conversations:,} conversations of {data.tokens:,} tokens, of which the target chose "
            f"{data.answer_tokens:,} (greedily) as answers to prompts of seeded grammars. Kinds of answer tokens: "
            f"{mixture_text(data.mixture)}.",
            f"- Decontamination: {checked['dropped']} conversations were dropped because they share 13 words in a row, "
            f"or a whole shorter question, with {', '.join(checked['against'])}{missing}.",
            f"- Settings: {', '.join(f'{key} {value}' for key, value in settings.items())}.",
            f"- Loss: {trainer.loss_text}; {optimiser.NAMES[trainer.config.chosen_optimiser]}, clip 0.5.",
            "",
            f"Scores on {data.held_out} conversations whose templates were held out: {trainer.scores_text}",
            "",
            table_text(shown),
            "",
        ]
    )


def mixture_text(mixture: dict[str, float]) -> str:
    """Return the shares of kinds, for readers."""
    return ", ".join(f"{share:.0%} {kind}" for kind, share in mixture.items())


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


@memory_errors("measuring forward-pass costs")
def judgement(made: Trained) -> list[str]:
    """Return how good new weights are and how to use them, a line each."""
    scores, before = made.scores, made.packaged
    lines = [f"agreement with the target: {scores.agreement:.3f} on {scores.data.held_out} held-out conversations"]
    if before is not None:
        verdict = "better than" if scores.agreement > before.agreement else "no better than"
        lines.append(
            f"  {verdict} the packaged weights: {before.agreement:.3f} on {before.data.held_out} conversations "
            f"(trained on {before.data.answer_tokens:,} answer tokens, these on {scores.data.answer_tokens:,})"
        )
    label = spelled(made)
    variant = methods.parse(label)
    assert issubclass(variant.method, SpeculativeMethod)
    speedup, drafts = predicted(variant.method(made.target, variant.config), scores.epochs[-1].scores)
    if drafts is None:
        lines.append("predicted speedup: unknown, as the method does not say what a draft costs")
    elif not drafts:
        lines.append("predicted speedup: none, as no draft is worth its cost on this device")
    else:
        lines.append(
            f"predicted decode speedup on this device: {speedup:.2f}x with chains of {drafts} drafts (from "
            "held-out scores and the forward-pass costs measured now)"
        )
    model = [] if made.config.model == DEFAULT_MODEL else ["--model", made.config.model]
    revision = ["--revision", made.config.revision] if made.config.revision else []
    command = f"{program()} {shlex.join([*model, *revision, '--method', label])}"
    return [*lines, f"run with these weights: {command}"]


def spelled(made: Trained) -> str:
    """Return the `--method` that runs with new weights."""
    if made.out.absolute() == default_folder(made.method, made.scores.model).absolute():
        return made.method
    return f"{made.method}:weights={made.out}" if destination.has_weights_knob(made.method) else made.method


def predicted(method: SpeculativeMethod, scores: dict[str, float]) -> tuple[float, int | None]:
    """Return the decode speedup of the best chain of fixed length, and that length; None: costs are not known.

    Expected tokens per step are from held-out acceptance, costs are this device's.
    """
    if not method.draft_calls():
        return 1.0, None
    accepted = [scores["agreement"]]
    while (share := scores.get(f"accept_{len(accepted) + 1}")) is not None:
        accepted.append(share)
    costs, each = method.costs, method.published is None or method.published.call_per_draft
    tokens = itertools.accumulate(itertools.accumulate(accepted, operator.mul), initial=1.0)  # by number of drafts
    options = []
    for drafts, rate in enumerate(tokens):
        calls = drafts * costs.draft[0] if each else costs.draft[min(drafts, len(costs.draft)) - 1] * bool(drafts)
        cost = costs.shallow * (1 + drafts) + calls + costs.verifying(1 + drafts)
        options.append((rate / cost, drafts))
    return max(options)


def packaged_scores(method: str, config: TrainConfig, model: str) -> Scores | None:
    """Return the scores of the weights of the same form that runs take for a model, if there are any."""
    return read_scores(default_folder(method, model, config.form))
