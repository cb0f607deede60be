"""From the name of a model to a decoder on a device: first all that takes no time, then the weights.

Runs, sweeps, training, `generate` and the lab all load models here, and so does a method that needs a second one.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from bench.config import RunConfig, check_device
from bench.engine.decoder import Decoder
from bench.engine.huge_pages import huge_mib
from bench.engine.kernels import native
from bench.engine.products import Layout
from bench.engine.quantize import GROUP
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from bench.files import first_line
from bench.models import checkpoints, config_files
from bench.models.chat import ChatFormat
from bench.models.checkpoints import Checkpoint
from bench.progress import Log, weighed

_loaded_from: WeakKeyDictionary[Decoder, Checkpoint] = WeakKeyDictionary()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Device, number format, threads and quantisation, as in the flags; see the run settings of the same names."""

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    quantize: str = "none"

    @classmethod
    def of(cls, config: RunConfig) -> Compute:
        """Those of a run."""
        return cls(config.device, config.dtype, config.threads, config.quantize)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format; UserError if there is no such device."""
        on_cuda = choose_device(self.device).type == "cuda"
        return DTYPES.get(self.dtype, torch.bfloat16 if on_cuda else torch.float32)


@dataclass(frozen=True)
class Model:
    """A model on the disk, checked but for its weights: its prompts, its dimensions, and where its answers end."""

    checkpoint: Checkpoint
    chat: ChatFormat
    eos: frozenset[int]  # every token that ends an answer
    config: DecoderConfig

    @property
    def name(self) -> str:
        """What it is called."""
        return self.checkpoint.name

    @property
    def context(self) -> int:
        """Positions that it was made for."""
        return self.config.context


@dataclass(frozen=True)
class Loaded(Model):
    """A model ready to decode."""

    target: Decoder


def find(name: str, revision: str | None, log: Log) -> Model:
    """The model called `name`, fetched if need be; its weights are not read yet.

    Raises:
        UserError: no such model, an unsupported one, or its configuration, tokenizer and chat template are damaged or
            do not belong together.

    """
    checkpoint = checkpoints.resolve(name, revision, log=log)
    hf_config = checkpoints.load_config(checkpoint)
    config = DecoderConfig.from_hf(hf_config)
    listed = config_files.end_tokens(checkpoint.folder, hf_config.eos_token_id, config.vocab)
    tokenizer = checkpoints.load_tokenizer(checkpoint)
    _check_vocabulary(checkpoint, tokenizer, config.vocab)
    chat = ChatFormat(tokenizer, config.vocab)
    chat.check()
    eos = frozenset(i for i in [*listed, tokenizer.eos_token_id] if i is not None)
    return Model(checkpoint, chat, eos, config)


def _check_vocabulary(checkpoint: Checkpoint, tokenizer: Any, vocab: int) -> None:
    """Refuse a tokenizer of another model. Added tokens may be beyond the vocabulary: prompts with them are refused."""
    beyond = {number for number in tokenizer.get_vocab().values() if number >= vocab}
    if beyond - tokenizer.added_tokens_decoder.keys():
        raise UserError(
            f"the tokenizer of {checkpoint.name} goes up to id {max(beyond)}, but the model's vocabulary has "
            f"{vocab} tokens (0 to {vocab - 1}): take both from one source"
        )


def load(model: Model, compute: Compute, max_len: int | None, log: Log) -> Loaded:
    """Load its weights for at most `max_len` positions (None: the context of the model).

    Raises:
        UserError: weights that do not fit the model, no such device, or out of memory.

    """
    device, dtype = set_up(compute, log)
    target = load_decoder(model.checkpoint, device, dtype, max_len=max_len, quantize=compute.quantize)
    return Loaded(model.checkpoint, model.chat, model.eos, target.config, target)


def load_decoder(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    max_len: int | None = None,
    quantize: str = "none",
    layout: Layout | None = None,
) -> Decoder:
    """Load a checkpoint onto a device, such as that of another decoder. `layout`: as for `Decoder.from_weights`.

    Raises:
        UserError: unsupported model, weights that do not fit it, or out of memory.

    """
    with memory_errors(f"model {checkpoint.name} in {dtype}"), closing(_watched(checkpoint)) as weights:
        target = Decoder.from_weights(
            checkpoints.load_config(checkpoint),
            weights,
            name=checkpoint.name,
            dtype=dtype,
            device=device,
            max_len=max_len,
            quantize=quantize,
            layout=layout,
        )
    _loaded_from[target] = checkpoint
    return target


def checkpoint_of(target: Decoder) -> Checkpoint:
    """Return the checkpoint that a decoder was loaded from.

    Raises:
        UserError: it has random weights, and so no tokenizer.

    """
    if target not in _loaded_from:
        raise UserError(f"{target.name} was not loaded from files: take a model that has a tokenizer")
    return _loaded_from[target]


def _watched(checkpoint: Checkpoint) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The weights of a checkpoint; how much of them is read is shown."""
    files = list(checkpoint.folder.glob("*.safetensors")) or list(checkpoint.folder.glob("*.bin"))
    size = sum(file.stat().st_size for file in files)
    return weighed(checkpoints.iter_weights(checkpoint), size, "reading weights", lambda item: item[1].nbytes)


def set_up(compute: Compute, log: Log) -> tuple[torch.device, torch.dtype]:
    """Return device and number format; set the threads, and build the engine's kernels if they are of use."""
    device, dtype = choose_device(compute.device), compute.torch_dtype
    if warning := unused_gpu_warning(device):
        log(f"WARNING: {warning}")
    if compute.threads:
        torch.set_num_threads(compute.threads)
    if device.type == "cpu" and dtype in native.DTYPES:
        if not native.is_built():
            log("building the engine's kernels for this processor: once, a few seconds")
        if reason := native.why_not():
            log(f"NOTE: without the engine's own kernels, forward passes take about four times as long: {reason}")
    return device, dtype


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn running out of memory into a UserError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        remedy = (
            "use a smaller model, --dtype bfloat16, --peer none (a peer loads the model again), or another --device"
        )
        raise UserError(f"not enough memory for {what} ({first_line(error)}): {remedy}") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise UserError(f"not enough memory for {what}: use a smaller model or --dtype bfloat16") from error


def stands_for(target: Decoder, checkpoint: Checkpoint) -> None:
    """Let a stand-in without weights be known as `checkpoint`'s decoder, so that methods find its tokenizer."""
    _loaded_from[target] = checkpoint


def engine_facts(target: Decoder) -> dict[str, Any]:
    """How the engine runs forward passes here."""
    facts: dict[str, Any] = {"weights": target.layout, "activations": target.activations}
    if target.quantize != "none":
        facts |= {"activation_scales": f"one per token and group of {GROUP}", "head": "int8"}
    facts |= {"cache_positions": target.max_len, "huge_pages_mib": huge_mib()}
    if target.graphs is not None:
        facts["cuda_graphs"] = target.graphs.reason or "captured"
    if len(set(target.homes)) > 1:  # such models have not been timed
        facts["layers_on"] = {str(home): target.homes.count(home) for home in dict.fromkeys(target.homes)}
    return facts


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; auto: CUDA if torch can use it, else the CPU.

    Raises:
        UserError: no such device, or torch cannot use it.

    """
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    number = int(name.partition(":")[2] or 0)  # torch keeps eight bits of it: cuda:256 would be cuda:0
    if device.type == "cuda" and number >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"device {name!r} is not there: this torch ({torch.__version__}) sees {found} CUDA devices")
    return device


def unused_gpu_warning(device: torch.device) -> str | None:
    """Return a warning if this machine has an NVIDIA GPU that torch cannot use while the run is on the CPU."""
    if device.type != "cpu" or torch.cuda.is_available() or not has_nvidia_gpu():
        return None
    return (
        f"this machine has an NVIDIA GPU, but this torch ({torch.__version__}) cannot use it: the run is on the CPU. "
        "Install a CUDA build of torch that fits the driver (nvidia-smi shows it)"
    )


def has_nvidia_gpu() -> bool:
    """Return whether nvidia-smi lists a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout
