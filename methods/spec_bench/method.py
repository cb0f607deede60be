"""A method of Spec-Bench in its own interpreter (Xia et al., arXiv 2401.07851, github.com/hemingkx/Spec-Bench).

`file` is one of Spec-Bench's `evaluation/inference_*.py`, or one that ends as they do: it loads its model and calls
`run_eval` with a `forward_func(inputs, model, tokenizer, max_new_tokens, ...)` that returns ids, new tokens, steps and
accept lengths. The file runs unchanged under `python`, with the libraries installed there. Its answers are cut at the
first end token and at the limit, and audited.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench.drafting.method import Answer, Peer
from bench.errors import UserError
from bench.files import sha256, user_path
from bench.models.hf_peer import kept

if TYPE_CHECKING:
    from bench.drafting.sampling import Sampler
    from bench.engine.decoder import Decoder
    from bench.models.checkpoints import Checkpoint

_WORKER = Path(__file__).with_name("worker.py")
_SHOWN_LINES = 5  # of what the file printed before it failed


@dataclass(frozen=True)
class SpecBenchConfig:
    """The file, and how it is run."""

    file: str = field(default="", metadata={"help": "a file like Spec-Bench's evaluation/inference_eagle.py"})
    python: str = field(
        default="", metadata={"help": "interpreter of the environment that the file needs; default: this one"}
    )
    args: str = field(
        default="--model-path {model} --model-id roobench --dtype {dtype}",
        metadata={"help": "the file's arguments; {model}: the model's folder, {dtype}: the run's number format"},
    )
    audit: bool = field(default=True, metadata={"help": "answers must be vanilla's; false: for one that is lossy"})

    def __post_init__(self) -> None:
        try:
            self.arguments("", "")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"args={self.args!r} cannot be read ({error}): it takes {{model}} and {{dtype}}") from None

    def arguments(self, model: str, dtype: str) -> list[str]:
        """The file's arguments for a model."""
        return [word.format(model=model, dtype=dtype) for word in shlex.split(self.args)]

    def check_files(self, model: str) -> None:
        """Raise UserError if the file or its interpreter is not there."""
        if not self.file:
            raise UserError("spec-bench: file= is missing: spec-bench:file=evaluation/inference_eagle.py")
        for knob, path in (("file", self.file), ("python", self.python)):
            if path and not user_path(path).is_file():
                raise UserError(f"spec-bench: {knob}={path}: there is no such file; give its path")


class SpecBench(Peer):
    """A `forward_func` of Spec-Bench's form; greedy decoding only.

    The LM head's first output ends the prefill. Where the file has no such layer, the prefill's time counts as
    decoding, and its token too.
    """

    Config = SpecBenchConfig
    lossless = False
    example = "spec-bench:file=templates/spec-bench/inference_lookup.py"

    def __init__(self, target: Decoder, config: SpecBenchConfig, checkpoint: Checkpoint):
        super().__init__(target, config, checkpoint)
        self.lossless = config.audit and target.quantize == "none"  # the file reads the weights as they are stored
        path = user_path(config.file).absolute()
        dtype = str(target.dtype).removeprefix("torch.")
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        command = [str(user_path(config.python)) if config.python else sys.executable, str(_WORKER), str(path)]
        self._process = subprocess.Popen(
            [*command, *config.arguments(str(checkpoint.folder.absolute()), dtype)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(target),
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for us
        )
        weakref.finalize(self, _end, self._process, self._log)
        began = self._reply()
        self._versions = began["versions"]
        self._notes: dict[str, Any] = {"file_sha256": sha256(path), "device": began["device"]}

    @property
    def engine(self) -> dict[str, Any]:
        """The file, the libraries that it runs on, and its arguments."""
        versions = ", ".join(f"{name} {version}" for name, version in self._versions.items())
        return {"name": Path(self.config.file).name, "version": versions, "flags": self.config.args}

    @property
    def notes(self) -> dict[str, Any]:
        """The file's digest, and how its times are to be read."""
        return self._notes

    def elsewhere_s(self) -> float | None:
        """What the file's process has used, and those that it started."""
        import psutil

        try:
            process = psutil.Process(self._process.pid)
            every = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        except psutil.Error:  # it has ended
            return None
        return float(sum(sum(times[:4]) for times in every))  # its own and that of ended children, user and system

    def generate(
        self, prompt: Sequence[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None
    ) -> Answer:
        """Let the file answer.

        Raises:
            UserError: the run samples, or the file fails.

        """
        if sampler is not None:
            raise UserError("spec-bench decodes as its args= say: leave --temperature or the peer out")
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: the reply says how
            self._process.stdin.write(json.dumps({"prompt": list(prompt), "limit": limit}) + "\n")
            self._process.stdin.flush()
        said = self._reply()
        tokens = kept(said["ids"], limit, eos)
        if not tokens:
            raise UserError(f"{self.config.file} gave an empty answer to a prompt of {len(prompt)} tokens")
        # Such lists may or may not begin with the prefill's token: they do where each entry is a call of the LM head.
        lengths = said["accept_lengths"][len(said["accept_lengths"]) == said["head_calls"] :]
        first_s = said["first_s"]
        first = 0 if first_s is None else 1
        if first_s is None:
            self._notes["times"] = "the prefill could not be told apart: its time counts as decoding"
        return Answer(
            tokens,
            first_s or 0.0,
            said["total_s"] - (first_s or 0.0),
            first_tokens=first,
            decode_passes=_passes(lengths, len(said["ids"]) - first, len(tokens) - first),
        )

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            printed = [text.strip() for text in self._log.read().splitlines() if text.strip()]
            shown = " | ".join(printed[-_SHOWN_LINES:]) or "it printed nothing"
            why = "without calling run_eval" if status == 0 else f"with status {status}"
            raise UserError(f"{self.config.file} ended {why}: {shown}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise UserError(f"{self.config.file} fails: {found['error']}")
        return found


def _passes(lengths: Sequence[int], came: int, kept: int) -> int | None:
    """Steps that gave the first `kept` of `came` tokens; None: the lengths do not account for all that came."""
    if sum(lengths) < came:
        return len(lengths) if kept == came else None
    return sum(before < kept for before in itertools.accumulate(lengths, initial=0))


def _environment(target: Decoder) -> dict[str, str]:
    """The environment of the file's process: the run's threads and its device."""
    import torch

    threads = str(torch.get_num_threads())
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONIOENCODING": "utf-8"}
    if target.device.type != "cuda":
        own["CUDA_VISIBLE_DEVICES"] = ""
    elif target.device.index:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        own["CUDA_VISIBLE_DEVICES"] = visible[target.device.index] if visible else str(target.device.index)
    return {**os.environ, **own}


def _end(process: subprocess.Popen[str], log: IO[str]) -> None:
    """Let the process go with its peer."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
