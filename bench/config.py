"""The settings of a run and their defaults: the only place that has them (a method's knobs stand in its own Config).

Command-line flags are made from these fields; `help` is what `--help` says.
"""

from __future__ import annotations

import math
import types
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from bench.errors import UserError

DEFAULT_MODEL = "smollm2-135m-instruct"  # out of a PyPI package, see bench.models.packaged
MOST_WINDOWS = 64  # drafts in a row that a probe asks for
QUANTIZE = ("none", "q4")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def setting(default: Any, help_text: str, **more: Any) -> Any:
    """A field of settings that becomes a flag; `more` are arguments for argparse."""
    return field(default=default, metadata={"help": help_text, **more})


@dataclass(frozen=True)
class RunConfig:
    """What to run, on what, and how long."""

    method: tuple[str, ...] = setting(
        ("kangaroo",),
        "method to compare with vanilla, with its knobs if any, like kangaroo:gamma=4,threshold=0; may be repeated; "
        "all: every built-in method",
        metavar="NAME[:KEY=VALUE,...]",
    )
    peer: tuple[str, ...] = setting(
        ("hf-generate",), "another library's decoding, run beside ours; may be repeated; none: without", metavar="NAME"
    )
    model: str = setting(
        DEFAULT_MODEL, "the packaged default, a Hugging Face id (lmsys/vicuna-7b-v1.3), or a folder", metavar="NAME"
    )
    revision: str | None = setting(None, "branch, tag or commit of a Hugging Face model", metavar="REV")
    questions: str = setting(
        "mini", "mini (bundled), official (Spec-Bench's, downloaded once), or a file in its format", metavar="NAME"
    )
    tasks: str = setting(
        "all",
        "all, or tasks separated by commas (mt_bench,qa); a name that is all or holds a comma goes in double quotes",
        metavar="LIST",
    )
    limit: int | None = setting(None, "at most N questions a task, drawn evenly over its categories", metavar="N")
    peer_limit: int = setting(1, "questions a task that a peer answers, because peers are slow; 0: all", metavar="N")
    max_new_tokens: int = setting(48, "tokens of an answer at most", metavar="N")
    rounds: int = setting(1, "times that everything is repeated", metavar="N")
    probe_windows: int = setting(
        0,
        "also draft N tokens in a row at every position of vanilla's answers, untimed: shows drafters without their "
        "early stopping; 0: off",
        metavar="N",
    )
    temperature: float = setting(0.0, "0: greedy decoding; above 0: sampling, lossless in distribution", metavar="X")
    top_p: float = setting(1.0, "sample from the most probable tokens that make up this share", metavar="X")
    top_k: int = setting(0, "sample from the N most probable tokens; 0: from all", metavar="N")
    seed: int = setting(0, "draws the questions of --limit, and the samples", metavar="N")
    dtype: str = setting("auto", "number format; auto: float32 on CPU, bfloat16 on CUDA", choices=DTYPES)
    quantize: str = setting(
        "none",
        "weights of the target, for vanilla and all methods alike; q4: four-bit codes as in GGUF's Q4_1, on a CPU",
        choices=QUANTIZE,
    )
    device: str = setting("auto", "cpu, cuda or cuda:N; auto: CUDA where torch can use it", metavar="NAME")
    threads: int = setting(0, "CPU threads; 0: torch's choice", metavar="N")
    out: str | None = setting(
        None, "folder for everything of this run; default: results/runs/<run id> and plots/<run id>", metavar="DIR"
    )

    def __post_init__(self) -> None:
        least = {"limit": 1, "peer_limit": 0, "max_new_tokens": 1, "rounds": 1, "threads": 0}
        least |= {"top_k": 0, "probe_windows": 0}
        check_least(self, least)
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature {self.temperature} must be a number of at least 0 (0: greedy decoding)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p} must lie above 0 and at most at 1")
        if self.temperature == 0 and (self.top_p != 1 or self.top_k):
            raise UserError("--top-p and --top-k are for sampling: give a --temperature above 0 as well")
        if self.temperature and self.probe_windows:
            raise UserError("--probe-windows is for greedy decoding: leave --temperature out")
        if self.probe_windows > MOST_WINDOWS:
            raise UserError(f"--probe-windows {self.probe_windows} is too many: at most {MOST_WINDOWS}")


# What a preset sets; flags given beside it win.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {},
    "spec-bench": {"questions": "official", "max_new_tokens": 1024, "rounds": 3, "peer_limit": 0},
}


TOKENS = 1_000_000  # of answers to train on, where nobody says how many and none come with the project


@dataclass(frozen=True)
class _OfModel:
    model: str = setting(
        DEFAULT_MODEL, "as for run: the packaged default, a Hugging Face id, or a folder", metavar="NAME"
    )
    revision: str | None = setting(None, "branch, tag or commit of a Hugging Face model", metavar="REV")


@dataclass(frozen=True)
class Writing(_OfModel):
    """How a model writes conversations into the cache."""

    tokens: int = setting(
        TOKENS, "answer tokens to have in the end, those that come with the project among them", metavar="N"
    )
    seed: int = setting(0, "of the prompts", metavar="N")
    device: str = setting("auto", "cpu, cuda or cuda:N; auto: CUDA where torch can use it", metavar="NAME")
    threads: int = setting(0, "CPU threads; 0: torch's choice", metavar="N")

    def __post_init__(self) -> None:
        check_least(self, {"tokens": 0, "threads": 0})


@dataclass(frozen=True)
class Collecting(_OfModel):
    """Which conversations of the cache to pack, and where."""

    decontaminate: tuple[str, ...] = setting(
        ("mini", "official"),
        "question sets that no conversation may share 13 words in a row with; may be repeated",
        metavar="NAME",
    )
    out: str | None = setting(None, "folder of packed conversations (default: the project's own)", metavar="DIR")


@dataclass(frozen=True)
class TrainConfig(Writing, Collecting):
    """How to train a method's weights: what all methods share. A trainer's own settings are a subclass beside it."""

    exit_layer: int = setting(
        2, "layers of the target whose states are kept beside its final ones, for methods that read them", metavar="N"
    )
    draft_vocab: int = setting(8192, "tokens of the draft's LM head, the most frequent ones; 0: whole", metavar="N")
    tokens: int = setting(
        0,
        "tokens of self-made answers to train on, at least, drawn from those that come with the project for the model "
        "where these suffice, else with as many more as are missing; 0: all of those, else a million",
        metavar="N",
    )
    epochs: int = setting(3, "passes over them", metavar="N")
    batch: int = setting(4, "conversations in an optimiser's step", metavar="N")
    learning_rate: float = setting(2e-3, "peak, after a linear warm-up, before a cosine decay", metavar="X")
    seed: int = setting(0, "of conversations, initial weights and order", metavar="N")
    out: str | None = setting(None, "folder for the weights and their card (default: where runs look)", metavar="DIR")

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate {self.learning_rate} must be a number above 0")
        super().__post_init__()
        check_least(self, {"exit_layer": 1, "draft_vocab": 0, "epochs": 1, "batch": 1})

    @property
    def form(self) -> str:
        """Which of a method's weights for a model these are: "" what runs take unless asked, "paper" as published.

        Weights of different forms are kept side by side.
        """
        return ""


# What each training of a sweep takes unless asked: a laptop's minutes.
SWEEP_TRAINING = {"tokens": 20_000, "epochs": 2}


def from_flags(given: dict[str, Any], preset: str) -> RunConfig:
    """Defaults, then the preset, then the flags that were given (those not None)."""
    asked = {name: value for name, value in given.items() if value is not None}
    return RunConfig(**(PRESETS[preset] | asked))


def flags(of: type[Any]) -> list[tuple[str, dict[str, Any]]]:
    """(flag, arguments for argparse) for every `setting`. Flags not given come out as None: classes know defaults."""
    hints = get_type_hints(of)
    return [
        (f"--{item.name.replace('_', '-')}", _argument(item, hints[item.name]))
        for item in fields(of)
        if "help" in item.metadata
    ]


def given(options: Namespace, of: type[Any]) -> dict[str, Any]:
    """The settings of a class that were given as flags."""
    values = {item.name: getattr(options, item.name, None) for item in fields(of)}
    return frozen({name: value for name, value in values.items() if value is not None})


def frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as their classes hold them: JSON and argparse give lists where they have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _argument(item: Field[Any], hint: Any) -> dict[str, Any]:
    assert item.default is not MISSING
    many = isinstance(item.default, tuple)
    options = {key: value for key, value in item.metadata.items() if key != "help"}
    shown = " ".join(item.default) if many else item.default
    text = item.metadata["help"] + (f" (default: {shown})" if shown not in (None, "") else "")
    kind = str if many else next(k for k in (get_args(hint) or (hint,)) if k is not types.NoneType)
    if kind is bool:  # a switch, off unless given
        return {"help": item.metadata["help"], "action": "store_const", "const": True, "default": None}
    return {"help": text, "type": kind, "default": None, **({"action": "append"} if many else {}), **options}


def check_least(settings: Any, least: dict[str, int]) -> None:
    """Refuse settings below their bounds with a `UserError` that names flag and value."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise UserError(f"--{name.replace('_', '-')} {value} is too small: at least {bound}")
