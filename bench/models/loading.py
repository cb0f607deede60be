"""From a model's name to a decoder on a device: its text side first, then its weights, where and as they are wanted.

Runs, sweeps, training, `generate` and the lab all load models here, and so does a method that needs a second one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.config import RunConfig
from bench.engine.decoder import Decoder
from bench.engine.huge_pages import huge_mib
from bench.engine.kernels import native
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from bench.files import first_line
from bench.models import checkpoints
from bench.models.chat import ChatFormat, eos_ids
from bench.models.checkpoints import Checkpoint
from bench.progress import weighed

Log = Callable[[str], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """What to compute on and in, as flags say it; a run's settings of the same names explain them."""

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    quantize: str = "none"

    @classmethod
    def of(cls, config: RunConfig) -> Compute:
        """A run's."""
        return cls(config.device, config.dtype, config.threads, config.quantize)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format; raises UserError where there is no such device."""
        on_cuda = choose_device(self.device).type == "cuda"
        return DTYPES.get(self.dtype, torch.bfloat16 if on_cuda else torch.float32)


@dataclass(frozen=True)
class Model:
    """A model on the disk: enough to know its prompts, and where its answers end."""

    checkpoint: Checkpoint
    chat: ChatFormat
    eos: frozenset[int]  # every token that ends an answer

    @property
    def context(self) -> int:
        """Positions that it was made for; raises UserError where the engine does not support it."""
        return DecoderConfig.from_hf(checkpoints.load_config(self.checkpoint)).context


@dataclass(frozen=True)
class Loaded(Model):
    """A model ready to decode."""

    target: Decoder


def find(name: str, revision: str | None, log: Log) -> Model:
    """The model called `name`, fetched if need be; its weights are not read yet.

    Raises:
        UserError: no such model, or its tokenizer or generation_config.json cannot be read.

    """
    checkpoint = checkpoints.resolve(name, revision, log=log)
    chat = ChatFormat(checkpoints.load_tokenizer(checkpoint))
    return Model(checkpoint, chat, eos_ids(chat.tokenizer, generation_config(checkpoint)))


def load(model: Model, compute: Compute, max_len: int | None, log: Log) -> Loaded:
    """Read its weights as `compute` says; `max_len` positions at most (None: the model's context).

    Raises:
        UserError: unsupported model, no such device, or out of memory.

    """
    device, dtype = set_up(compute, log)
    target = load_decoder(model.checkpoint, device, dtype, max_len=max_len, quantize=compute.quantize)
    return Loaded(model.checkpoint, model.chat, model.eos, target)


def load_decoder(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    max_len: int | None = None,
    quantize: str = "none",
) -> Decoder:
    """The weights of a checkpoint on a device, such as that of another decoder beside which they are to run.

    Raises:
        UserError: unsupported model, or out of memory.

    """
    with memory_errors(f"model {checkpoint.name} in {dtype}"), closing(_watched(checkpoint)) as weights:
        return Decoder.from_weights(
            checkpoints.load_config(checkpoint),
            weights,
            name=checkpoint.name,
            dtype=dtype,
            device=device,
            max_len=max_len,
            quantize=quantize,
        )


def _watched(checkpoint: Checkpoint) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The weights of a checkpoint; how much of them is read is shown."""
    files = list(checkpoint.folder.glob("*.safetensors")) or list(checkpoint.folder.glob("*.bin"))
    size = sum(file.stat().st_size for file in files)
    return weighed(checkpoints.iter_weights(checkpoint), size, "reading weights", lambda item: item[1].nbytes)


def set_up(compute: Compute, log: Log) -> tuple[torch.device, torch.dtype]:
    """Device and number format; sets the threads, and has the engine's kernels built where they are of use."""
    device, dtype = choose_device(compute.device), compute.torch_dtype
    if warning := unused_gpu_warning(device):
        log(f"WARNING: {warning}")
    if compute.threads:
        torch.set_num_threads(compute.threads)
    if device.type == "cpu" and dtype in native.DTYPES:
        if not native.is_built():
            log("building the engine's kernels for this processor: once, a few seconds")
        if reason := native.why_not():
            log(f"NOTE: the engine's own kernels are missing, and passes take about four times as long: {reason}")
    return device, dtype


def generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's generation_config.json, empty where it has none."""
    path = checkpoint.folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is malformed: {error}") from error
    return value if isinstance(value, dict) else {}


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Report running out of memory as an error of the user's."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        remedy = (
            "take a smaller model, --dtype bfloat16, --peer none (a peer loads the model again), or another --device"
        )
        raise UserError(f"not enough memory for {what} ({first_line(error)}): {remedy}") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise UserError(f"not enough memory for {what}: take a smaller model or --dtype bfloat16") from error


def engine_facts(target: Decoder) -> dict[str, Any]:
    """How the engine runs passes here."""
    facts: dict[str, Any] = {
        "weights": target.layout,
        "cache_positions": target.max_len,
        "huge_pages_mib": huge_mib(),
    }
    if target.graphs is not None:
        facts["cuda_graphs"] = target.graphs.reason or "captured"
    if len(set(target.homes)) > 1:  # untimed territory
        facts["layers_on"] = {str(home): target.homes.count(home) for home in dict.fromkeys(target.homes)}
    return facts


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto: CUDA where torch can use it, else CPU.

    Raises:
        UserError: no such device, or torch cannot use it.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: give cpu, cuda, cuda:N or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: give cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"device {name!r} is not there: this torch ({torch.__version__}) sees {found} CUDA devices")
    return device


def unused_gpu_warning(device: torch.device) -> str | None:
    """A sentence if this machine has an NVIDIA GPU that torch cannot use while the run is on the CPU."""
    if device.type != "cpu" or torch.cuda.is_available() or not has_nvidia_gpu():
        return None
    return (
        f"this machine has an NVIDIA GPU, but this torch ({torch.__version__}) cannot use it: the run is on the CPU. "
        "Install a CUDA build of torch that fits the driver (nvidia-smi shows it)"
    )


def has_nvidia_gpu() -> bool:
    """Whether the driver's own tool lists a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout
