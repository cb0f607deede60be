"""What methods' knobs share: what may be asked, the costs of passes as knobs spell them, and folders of weights.

Needs no torch, so that mistakes in knobs are reported at once.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError, program
from bench.files import user_path
from bench.models import checkpoints
from bench.models.gguf_file import model_of

CONFIG_FILE = "config.json"
DRAFT_WEIGHTS = (  # help of the knob `draft_weights`
    "the draft model's matrices: q8, in eight bits where the engine's kernels run (drafts need not be exact); plain, "
    "as the target's"
)
COSTS = "forward-pass costs as run.json records them; default: measured at the start"  # help of the knob `costs`
PAPER = "paper"  # in place of a folder: the weights that are built as published
WEIGHTS_ROOT = Path(__file__).parents[2] / "methods" / "weights"


@dataclass(frozen=True)
class NoKnobs:
    """The configuration of a method without knobs."""


@dataclass(frozen=True)
class Costs:
    """Times in units of a vanilla step (all layers and the LM head over one token)."""

    shallow: float  # the layers below the exit, over one token; 0 where a method has no exit
    draft: tuple[float, ...]  # one call of the draft model: an adapter and its LM head; or 1, 2, .. heads
    verify: tuple[tuple[int, float], ...]  # number of tokens -> the layers above the exit and the LM head over them

    def __str__(self) -> str:
        draft = "+".join(f"{cost:.3f}" for cost in self.draft)
        return "/".join([f"{self.shallow:.3f}", draft, *(f"{n}:{cost:.3f}" for n, cost in self.verify)])

    @classmethod
    def parse(cls, text: str) -> Costs:
        """Parse what `str` writes.

        Raises:
            ValueError: the text has another form.

        """
        try:
            shallow, draft, *rest = text.split("/")
            pairs = [item.split(":") for item in rest]
            verify = tuple((int(n), float(cost)) for n, cost in pairs)
            found = cls(float(shallow), tuple(map(float, draft.split("+"))), verify)
            whole = verify[0][0] == 1 and all(a < b for (a, _), (b, _) in itertools.pairwise(verify))
        except (ValueError, IndexError):
            whole = False
        if not whole or not all(0 <= cost < math.inf for cost in (found.shallow, *found.draft, *dict(verify).values())):
            raise ValueError(f"costs={text!r} must be shallow/draft/1:verify/2:verify/.., in vanilla steps")
        return found

    @property
    def most(self) -> int:
        """The most tokens of a verification in the table."""
        return self.verify[-1][0]

    @functools.cached_property
    def _table(self) -> list[float]:
        import numpy as np

        widths, costs = zip(*self.verify, strict=True)
        return [float(cost) for cost in np.interp(range(self.most + 1), widths, costs)]

    def verifying(self, positions: int) -> float:
        """Return the cost of verifying `positions` tokens: linear between measured widths, infinite beyond them."""
        return self._table[positions] if positions <= self.most else math.inf


def check_knobs(draft_vocab: int, drafts: str, costs: str, draft_weights: str) -> None:
    """Check the knobs that trained methods share.

    Raises:
        ValueError: outside their range.

    """
    if draft_vocab < -1:
        raise ValueError(f"draft_vocab={draft_vocab} must be at least -1")
    if draft_weights not in ("q8", "plain"):
        raise ValueError(f"draft_weights={draft_weights} must be q8 or plain")
    if drafts not in ("", "sampled", "top"):
        raise ValueError(f"drafts={drafts} must be sampled or top")
    if costs:
        Costs.parse(costs)


def find_folder(method: str, asked: str, model: str, files: Sequence[str], example: str = "") -> Path:
    """Return the folder of a method's weights: the packaged ones ("" or "paper"), a folder, or a Hugging Face id.

    `example`: of a method that is not trained here, the id of weights that others have published.

    Raises:
        UserError: there are none.

    """
    if folder := check_folder(method, asked, model, example):
        return folder
    shards = [name for file in files for name in (f"{file}.index.json", "-*.".join(file.rsplit(".", 1)))]
    return checkpoints.fetch_folder(asked, [CONFIG_FILE, *files, *shards])


def check_folder(method: str, asked: str, model: str, example: str = "") -> Path | None:
    """Do as `find_folder`, but fetch nothing: returns None for a Hugging Face id.

    Raises:
        UserError: there is no such folder.

    """
    if asked in ("", PAPER):
        return packaged(method, model, asked, example)
    folder = user_path(asked)
    if folder.is_dir():
        return folder
    if not folder.exists() and checkpoints.HUB_ID.fullmatch(asked):
        return None
    reason = "is not a folder" if folder.exists() else "is neither a folder nor a Hugging Face id (org/name)"
    made = f"such as {example}" if example else f"as `{program()} train {method} --out FOLDER` makes it"
    raise UserError(f"{method}:weights={asked}: {folder} {reason}: name a folder of {method}'s weights, {made}")


def packaged(method: str, model: str, form: str = "", example: str = "") -> Path:
    """Return the folder of the weights that come with the project for `model`; `form`: as for `default_folder`.

    `example`: as for `find_folder`.

    Raises:
        UserError: there are none.

    """
    folder = default_folder(method, model, form)
    if not any(folder.glob("*.safetensors")):
        train = f"{program()} train {method}{f' --architecture {form}' if form else ''} --model MODEL"
        which = " built as published" if form else ""
        if example:
            raise UserError(
                f"no weights of {method} come with the project: name their folder or Hugging Face id, made for "
                f"{model} ({method}:weights={example})"
            )
        raise UserError(
            f"no weights{which} of {method} come with the project for model {model!r}: train them (`{train}`, with the "
            f"model as you give it here) or name their folder ({method}:weights=FOLDER)"
        )
    return folder


def default_folder(method: str, model: str, form: str = "") -> Path:
    """Return where a method's weights for `model` are kept; `form`: as `bench.train_config.TrainConfig.form` says."""
    return WEIGHTS_ROOT / model_of(model) / (f"{method}-{form}" if form else method)
