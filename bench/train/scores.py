"""Held-out scores of trained weights, as `scores.json` next to them. Their card shows the same scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.errors import UserError
from bench.typed_json import Count, MismatchError, Real, Share, read

SCORES_FILE = "scores.json"
_DIGITS = 3  # of scores, which come from about ten thousand held-out tokens


@dataclass(frozen=True)
class Data:
    """The training data."""

    conversations: Count
    tokens: Count
    answer_tokens: Count  # chosen by the target
    mixture: dict[str, Share]  # of answer tokens, by kind of prompt; empty: unknown
    held_out: Count  # conversations that the scores are measured on


@dataclass(frozen=True)
class Epoch:
    """Scores after an epoch."""

    epoch: Count
    loss: Real  # in training
    scores: dict[str, Real]  # `agreement` with the target's own choices among them
    by_kind: dict[str, Share]  # agreement by kind of prompt; empty: unknown


@dataclass(frozen=True)
class Scores:
    """The training data of weights and their scores."""

    model: str  # the target
    model_sha256: str
    parameters: Count
    data: Data
    epochs: Annotated[list[Epoch], Field(min_length=1)]

    @property
    def agreement(self) -> float:
        """The share of the target's own choices that the first draft hits, after the last epoch."""
        return self.epochs[-1].scores["agreement"]

    def table(self) -> list[dict[str, float]]:
        """Return one flat row per epoch."""
        return [{"epoch": e.epoch, "loss": e.loss, **e.scores, **e.by_kind} for e in self.epochs]


def epochs_of(history: Sequence[dict[str, float]], kinds: Sequence[str]) -> list[Epoch]:
    """Convert the result of a trainer's `fit`; `kinds`: of prompts."""
    return [
        Epoch(
            int(row["epoch"]),
            round(row["loss"], _DIGITS),
            {name: round(value, _DIGITS) for name, value in row.items() if name not in ("epoch", "loss", *kinds)},
            {kind: round(row[kind], _DIGITS) for kind in kinds if kind in row},
        )
        for row in history
    ]


def read_scores(folder: Path) -> Scores | None:
    """Return the scores of the weights in a folder; None if there are none.

    Raises:
        UserError: they are malformed.

    """
    path = folder / SCORES_FILE
    try:
        found = read(Scores, path)
        if "agreement" not in found.epochs[-1].scores:
            raise MismatchError(f"epochs[{len(found.epochs) - 1}].scores.agreement: missing")
        return found
    except FileNotFoundError:
        return None
    except MismatchError as error:
        raise UserError(f"{path} cannot be read ({error}): train again, or remove the file") from error
