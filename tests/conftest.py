"""Tiny random models, a byte tokenizer and weights of methods, all made here: no test needs a network.

What is said to be right comes from transformers: `hf_logits` and `hf_greedy` are the references of the engine's and the
methods' tests. Models are shared between tests: copy one (`copy.deepcopy`) before changing its weights.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.models.checkpoints import Checkpoint
from bench.run.workers import local
from tests import reference
from tests.byte_tokenizer import byte_tokenizer
from tests.preloaded import Fork, Preloaded
from tests.reference import VOCAB
from tests.wide import make_faint

CONTEXT = 512
_WORKER_BYTES = 3 << 30  # memory that a process of tests may need, with the processes that it starts
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# kind -> (model type, what is special about it). Head counts and sizes differ, so that no mix-up cancels out.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama3": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": ROPE_LLAMA3}),
    "biased": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "vicuna": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "mistral": ("mistral", {"num_attention_heads": 6, "num_key_value_heads": 3, "sliding_window": CONTEXT}),
    "qwen2": ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`: a process for each processor that we may use, as far as the memory goes."""
    return max(1, min(_processors(), psutil.virtual_memory().total // _WORKER_BYTES))


def pytest_configure(config: pytest.Config) -> None:
    """Share the processors among the processes of `-n`, which are started after this and inherit the environment.

    Each would take all of them otherwise, and threads that wait for a processor while others spin are slow.
    """
    if workers := getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _processors() // workers)))


def _processors() -> int:
    """How many we may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Every supported kind of model in turn."""
    return request.param


def _config(kind: str, **changes: Any) -> Any:
    model_type, special = KINDS[kind]
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model(model_type, **{**values, **special, **changes})


@functools.cache
def _model(kind: str, faint: bool) -> tuple[Any, Any]:
    config = _config(kind)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(sum(kind.encode()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):  # ones otherwise, which would hide a norm that is left out
                weight.copy_(1 + 0.3 * noise)
            elif weight.dim() == 1:  # a bias, zero otherwise
                weight.copy_(0.5 * noise)
            elif "embed" in name or "head" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(noise * 1.5 / weight.shape[1] ** 0.5)
    if faint:
        make_faint(model)
    return config, model


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """(kind, changes) -> a transformers configuration."""
    return _config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., tuple[Any, Any]]:
    """(kind, faint=False) -> (hf_config, hf_model) with weights that make argmaxes vary.

    `faint`: layers after the first add so little that the states after it often suffice to guess the next token.
    """
    return lambda kind, faint=False: _model(kind, faint)


@pytest.fixture(scope="session")
def tiny_decoder() -> Callable[..., Decoder]:
    """(hf_config, hf_model, options of `from_weights`) -> our decoder of it."""

    def build(config: Any, model: Any, **options: Any) -> Decoder:
        weights = model.state_dict()
        if config.tie_word_embeddings:  # as checkpoints are stored
            del weights["lm_head.weight"]
        return Decoder.from_weights(config, weights.items(), **{"max_len": 256, "name": "tiny", **options})

    return build


@functools.cache
def _logits(model: Any, token_ids: tuple[int, ...]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


@pytest.fixture(scope="session")
def hf_logits() -> Callable[..., Tensor]:
    """(hf_model, token ids [n]) -> transformers' logits [n, V], one pass without a cache."""
    return lambda model, token_ids: _logits(model, tuple(token_ids))


@pytest.fixture(scope="session")
def hf_greedy() -> Callable[..., list[int]]:
    """(hf_model, prompt, limit, eos) -> the answer of transformers' own greedy `generate`."""
    return lambda model, prompt, limit, eos=frozenset(): list(
        reference.greedy(model, tuple(prompt), limit, frozenset(eos))
    )


@pytest.fixture(scope="session")
def random_ids() -> Callable[..., list[int]]:
    """(how many, seed) -> token ids."""
    return reference.random_ids


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, three special tokens (ids 256 to 258) and a chat template."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Checkpoint]:
    """(kind, faint=False) -> the model with the byte tokenizer in a folder of Hugging Face's layout."""

    @functools.cache
    def save(kind: str, faint: bool = False) -> Checkpoint:
        folder = tmp_path_factory.mktemp(f"checkpoint-{kind}")
        _model(kind, faint)[1].save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return Checkpoint(f"tiny-{kind}", folder, "0" * 64, None)

    return save


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(method's name, hf_model, options) -> the folder of weights that `tests/methods/tiny_weights/NAME.py` writes."""

    def write(name: str, model: Any, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp(name)
        importlib.import_module(f"tests.methods.tiny_weights.{name.replace('-', '_')}").write(folder, model, **options)
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_adapter(tiny_weights: Callable[..., Path]) -> Callable[..., Path]:
    """(hf_model, options) -> the folder of a Kangaroo adapter."""
    return functools.partial(tiny_weights, "kangaroo")


@pytest.fixture(scope="session")
def tiny_heads(tiny_weights: Callable[..., Path]) -> Callable[..., Path]:
    """(hf_model, options) -> the folder of Medusa heads."""
    return functools.partial(tiny_weights, "medusa")


@pytest.fixture
def two_threads() -> Iterator[int]:
    """How many torch has: more than one, also in processes of `-n` that have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def give_kernels() -> Callable[[Path], str]:
    """(cache folder) -> the same; the kernels of this process are in it now: its children need not compile them."""

    def give(cache: Path) -> str:
        library = native.kernels()
        if library is not None:
            built = Path(library._name)
            given = cache / built.parent.name / built.name
            # Else this process has just built them there, or in the folder of a test, which is gone: they compile anew.
            if built.exists() and not given.exists():
                given.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(built, given)
        return str(cache)

    return give


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """The process that `forks` are forks of."""
    made = Preloaded()
    yield made
    made.end()


@pytest.fixture
def forks(preloaded: Preloaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forks, see `preloaded.py`: for what does not depend on how they are started."""
    started = SimpleNamespace(Popen=functools.partial(Fork, preloaded), PIPE=subprocess.PIPE)
    monkeypatch.setattr(local, "subprocess", started)


@pytest.fixture
def working(preloaded: Preloaded) -> Callable[[], list[psutil.Process]]:
    """() -> the processes of workers that there are, forks or not."""
    return lambda: [one for one in psutil.Process().children(recursive=True) if one.pid != preloaded.pid]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SimpleNamespace:
    """The project as users have it: `archive`, the `wheel` that is built from it, and the `python` it is installed for.

    Made offline, once for all processes of `-n`. The environment has these tests' packages, but not this checkout; the
    folder that it is in is a repository of its own.
    """
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # a process of `-n`: the folder of each is in one of all
        shared = shared.parent
    folder = shared / "installed"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            _install(folder)
            (folder / "finished").touch()
    (archive,) = folder.glob("dist/*.tar.gz")
    (wheel,) = folder.glob("dist/*.whl")
    return SimpleNamespace(archive=archive, wheel=wheel, python=folder / "env" / "bin" / "python")


def _install(folder: Path) -> None:
    source, made, env = folder / "source", folder / "dist", folder / "env"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "gates")
    shutil.copytree(Path(__file__).parents[1], source, ignore=left_out)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(made)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (archive,) = made.glob("*.tar.gz")
    offline = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    wheel_of = [sys.executable, "-m", "pip", "wheel", *offline, "--no-build-isolation", "--wheel-dir", made, archive]
    subprocess.run(wheel_of, check=True, cwd=folder)
    (wheel,) = made.glob("*.whl")
    venv.create(env)
    (site,) = env.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([env / "bin" / "python", "-m", "pip", "install", *offline, wheel], check=True, cwd=folder)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
