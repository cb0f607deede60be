"""The settings of a run and their defaults: the only place that has them (a method's knobs are in its own Config).

Command-line flags are made from these fields: `help` is what `--help` shows, `bounds` are the least and the most.
"""

from __future__ import annotations

import argparse
import re
import types
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from bench.errors import UserError
from bench.files import user_path
from bench.text import counts, numbers

DEFAULT_MODEL = "smollm2-135m-instruct"  # from a PyPI package, see bench.models.packaged
MOST_WINDOWS = 64  # drafts in a row that a probe asks for
QUANTIZE = ("none", "q4")
DTYPES = ("auto", "float32", "bfloat16", "float16")
NO_PEER = "none"
MOST_SEQUENCES = 256  # of a batch
LEAST_TEMPERATURE = 1e-3  # logits divided by less overflow sooner or later
MANY = 1_000_000  # of whatever is counted: more is a slip of the keyboard
SEED = (0, 2**32 - 1)
THREADS = (0, 1024)  # the OpenMP library crashes at some number above
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def setting(default: Any, help_text: str, **more: Any) -> Any:
    """A field of settings that becomes a flag; `more`: its `bounds` (least, most), and arguments for argparse."""
    return field(default=default, metadata={"help": help_text, **more})


class Settings:
    """Settings hold their bounds: the base of all classes with fields that are made by `setting`."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # of a subclass, which is a dataclass
            value = getattr(self, item.name)
            if "bounds" in item.metadata and value is not None:
                for number in value if isinstance(value, tuple) else (value,):
                    _check(flag_of(item.name), number, *item.metadata["bounds"])


def _check(flag: str, value: float, least: float, most: float) -> None:
    """Refuse a number that is out of its bounds, or none."""
    if not least <= value <= most:
        side = f"too small: at least {least}" if value < least else f"too large: at most {most}"
        raise UserError(f"{flag} {value} is {side if value == value else f'no number: give one of {least} to {most}'}")


def number(kind: type[int] | type[float], flag: str, least: float, most: float) -> Callable[[str], float]:
    """What argparse reads a number within bounds with, where no class of settings has the flag."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {text!r}") from None
        _check(flag, value, least, most)
        return value

    return read


@dataclass(frozen=True)
class RunConfig(Settings):
    """What to run, on what, and how long."""

    method: tuple[str, ...] = setting(
        ("kangaroo",),
        "method or peer to compare with vanilla, with its knobs if any: kangaroo:gamma=4,threshold=0; a+b composes "
        "methods; all: every built-in method; may be repeated",
        metavar="NAME[:KEY=VALUE,...]",
    )
    peer: tuple[str, ...] = setting(
        ("hf-generate",),
        "another engine's decoding to run as well, besides peers named by --method: a library's, or a server's "
        "(openai:url=http://localhost:8000/v1); may be repeated; none: no peer",
        metavar="NAME[:KEY=VALUE,...]",
    )
    model: str = setting(
        DEFAULT_MODEL,
        "the packaged default, a Hugging Face id (lmsys/vicuna-7b-v1.3), a folder, a GGUF file, or one on the hub "
        "(ORG/NAME:FILE.gguf)",
        metavar="NAME",
    )
    revision: str | None = setting(None, "branch, tag or commit of a Hugging Face model", metavar="REV")
    questions: str = setting(
        "mini",
        "mini (bundled), official (Spec-Bench's, downloaded once), or a file: in its format, SPEED-Bench's prepared "
        "files, or chat logs (JSON lines with messages or conversations)",
        metavar="NAME",
    )
    tasks: str = setting(
        "all",
        "all, or tasks separated by commas (mt_bench,qa); a name that is all or holds a comma goes in double quotes",
        metavar="LIST",
    )
    limit: int | None = setting(
        None, "at most N questions per task, drawn evenly over its categories", metavar="N", bounds=(1, MANY)
    )
    peer_limit: int = setting(
        1, "questions per task for peers, because they are slow; 0: all", metavar="N", bounds=(0, MANY)
    )
    max_new_tokens: int = setting(48, "most tokens of an answer", metavar="N", bounds=(1, MANY))
    rounds: int = setting(1, "times that everything is repeated", metavar="N", bounds=(1, 1000))
    probe_windows: int = setting(
        0,
        "also draft N tokens in a row at every position of vanilla's answers, untimed: shows what a draft model could "
        "do without stopping early; 0: off",
        metavar="N",
        bounds=(0, MOST_WINDOWS),
    )
    batch: tuple[int, ...] = setting(
        (),
        "sequences to decode at once, or several numbers separated by commas: after the questions were answered one by "
        "one, vanilla and all methods (no peers) answer them in batches of each size",
        type=counts,
        metavar="B,B,...",
        bounds=(1, MOST_SEQUENCES),
    )
    temperature: float = setting(
        0.0, "0: greedy decoding; above 0: sampling, lossless in distribution", metavar="X", bounds=(0, 100)
    )
    temperatures: tuple[float, ...] = setting(
        (),
        "several temperatures in one run, each with a baseline of its own (0,0.5,1): shows what sampling costs; the "
        "report is of the first one, with tables and a figure over all",
        type=numbers,
        metavar="X,X,...",
        bounds=(0, 100),
    )
    prompt_lengths: tuple[int, ...] = setting(
        (),
        "pad every question with passages of its own kind to prompts of so many tokens (256,1k,2k), all in one run, "
        "each length with a baseline of its own; longer questions are left out",
        type=counts,
        metavar="N,N,...",
        bounds=(1, MANY),
    )
    passages: str | None = setting(
        None,
        "text file with passages for --prompt-lengths, separated by blank lines (default: the project's own, of the "
        "question's kind)",
        metavar="FILE",
    )
    top_p: float = setting(
        1.0, "sample from the most probable tokens that hold this share", metavar="X", bounds=(1e-6, 1)
    )
    top_k: int = setting(0, "sample from the N most probable tokens; 0: from all", metavar="N", bounds=(0, 10 * MANY))
    seed: int = setting(0, "seed of the draw of questions (--limit) and of the samples", metavar="N", bounds=SEED)
    dtype: str = setting(
        "auto",
        "number format; auto: float32 on CPU, bfloat16 on CUDA; products of bfloat16 weights round their inputs to "
        "bfloat16 too where the processor can multiply it",
        choices=DTYPES,
    )
    quantize: str = setting(
        "none",
        "weights of the target, for vanilla and all methods alike; q4, on a CPU: four-bit codes as in GGUF's Q4_1, "
        "activations rounded to eight bits per token and group of 32, an LM head in eight bits",
        choices=QUANTIZE,
    )
    device: str = setting("auto", "cpu, cuda or cuda:N; auto: CUDA if torch can use it", metavar="NAME")
    threads: int = setting(
        0,
        "CPU threads; 0: torch's choice, and where other programs hold cores, one for each free core (on Linux; not in "
        "sweep and gate)",
        metavar="N",
        bounds=THREADS,
    )
    workers: int = setting(
        0,
        "processes that share the questions, each with its own cores (--threads of them; default: an equal share) or "
        "its own GPU; a question is asked with all its methods by one of them; 0: one process does it all",
        metavar="N",
        bounds=(0, 1024),
    )
    ray: str | None = setting(
        None,
        "workers on a Ray cluster: its address (host:port, ray://host:port, auto), or local to start Ray here; without "
        "--workers one for each GPU, or for each machine without GPUs (needs pip install 'roobench[ray]')",
        metavar="ADDRESS",
    )
    mix_machines: bool = setting(
        False, "let workers on unlike machines share a run; each kind of machine measures costs of its own"
    )
    out: str | None = setting(
        None, "folder for everything of this run; default: results/runs/<run id> and plots/<run id>", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None:
            user_path(self.out)
        if NO_PEER in self.peer and set(self.peer) != {NO_PEER}:
            named = ", ".join(name for name in dict.fromkeys(self.peer) if name != NO_PEER)
            raise UserError(f"--peer {NO_PEER} and --peer {named} contradict each other: leave one of them out")
        if self.temperatures and (self.temperature or self.prompt_lengths):
            other = "--temperature" if self.temperature else "--prompt-lengths"
            raise UserError(f"--temperatures and {other} exclude each other: leave one of them out")
        if self.batch and (self.temperatures or self.prompt_lengths):
            other = "--temperatures" if self.temperatures else "--prompt-lengths"
            raise UserError(f"--batch and {other} exclude each other: leave one of them out")
        self._check_workers()
        if self.passages is not None and not self.prompt_lengths:
            raise UserError("--passages is what prompts are padded with: give --prompt-lengths as well")
        flag = "--temperatures" if self.temperatures else "--temperature"
        for value in self.sampled_at:
            if 0 < value < LEAST_TEMPERATURE:
                raise UserError(
                    f"{flag} {value} is too small to sample at: at least {LEAST_TEMPERATURE}, or 0 for greedy decoding"
                )
        if not any(self.sampled_at) and (self.top_p != 1 or self.top_k):
            raise UserError("--top-p and --top-k are for sampling: give a --temperature above 0 as well")
        if any(self.sampled_at) and self.probe_windows:
            raise UserError(f"--probe-windows is for greedy decoding: leave {flag} out")

    def _check_workers(self) -> None:
        if self.ray == "":
            raise UserError("--ray '' is no address: give host:port, ray://host:port, auto, or local")
        if self.mix_machines and not self.by_workers:
            raise UserError("--mix-machines is about workers: give --workers or --ray as well")
        if self.by_workers and self.batch:
            raise UserError(
                "--batch needs all answers in one process, so it excludes --workers and --ray: leave one of them out"
            )
        check_device(self.device, by_workers=self.by_workers)

    @property
    def by_workers(self) -> bool:
        """Return whether processes other than this one ask the questions."""
        return bool(self.workers or self.ray)

    @property
    def sampled_at(self) -> tuple[float, ...]:
        """Every temperature of the run."""
        return self.temperatures or (self.temperature,)

    @property
    def axis(self) -> tuple[float | None, ...]:
        """The values that one setting takes in turn: temperatures, or rising prompt lengths; (None,) without one."""
        return self.temperatures or tuple(sorted(self.prompt_lengths)) or (None,)

    def temperature_at(self, value: float | None) -> float:
        """The temperature where the axis has that value."""
        return self.temperature if value is None or not self.temperatures else value

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers asked for by --peer."""
        return tuple(name for name in self.peer if name != NO_PEER)


def check_device(name: str, *, by_workers: bool = False) -> None:
    """Refuse what is no device's name; whether the device is there, torch knows.

    Raises:
        UserError: it is none, or one GPU for several workers.

    """
    if not _DEVICE.fullmatch(name):
        raise UserError(f"device {name!r} is not supported: give cpu, cuda, cuda:N or auto")
    if by_workers and ":" in name:
        raise UserError(f"--device {name} is one GPU, but every worker has its own: give --device cuda")


# Flags of a run that a sweep does not take: it varies knobs, and nothing else.
AXES = ("--batch", "--temperatures", "--prompt-lengths", "--passages")
# What a preset sets; flags given as well win.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {},
    "spec-bench": {"questions": "official", "max_new_tokens": 1024, "rounds": 3, "peer_limit": 0},
}


def from_flags(given: dict[str, Any], preset: str) -> RunConfig:
    """Defaults, then the preset, then the flags that were given (those not None)."""
    asked = {name: value for name, value in given.items() if value is not None}
    return RunConfig(**(PRESETS[preset] | frozen(asked)))


def flags(of: type[Any]) -> list[tuple[str, dict[str, Any]]]:
    """(flag, arguments for argparse) for every `setting`. Flags not given come out as None: classes know defaults."""
    hints = get_type_hints(of)
    return [(flag_of(item.name), _argument(item, hints[item.name])) for item in fields(of) if "help" in item.metadata]


def flag_of(name: str) -> str:
    """A setting's flag."""
    return f"--{name.replace('_', '-')}"


def given(options: Namespace, of: type[Any]) -> dict[str, Any]:
    """The settings of a class that were given as flags."""
    values = {item.name: getattr(options, item.name, None) for item in fields(of)}
    return frozen({name: value for name, value in values.items() if value is not None})


def frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as their classes hold them: JSON and argparse give lists where they have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _argument(item: Field[Any], hint: Any) -> dict[str, Any]:
    assert item.default is not MISSING
    many = isinstance(item.default, tuple) and "type" not in item.metadata
    options = {key: value for key, value in item.metadata.items() if key not in ("help", "bounds")}
    shown = " ".join(item.default) if many else item.default
    text = item.metadata["help"] + (f" (default: {shown})" if shown not in (None, "", ()) else "")
    kind = str if many else next(k for k in (get_args(hint) or (hint,)) if k is not types.NoneType)
    if kind is bool:  # a switch, off unless given
        return {"help": item.metadata["help"], "action": "store_const", "const": True, "default": None}
    return {"help": text, "type": kind, "default": None, **({"action": "append"} if many else {}), **options}
