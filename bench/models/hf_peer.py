"""What the peers of transformers share: one loaded model, and the timed call of its `generate`."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bench.drafting.method import Answer, Peer
from bench.engine.timing import now_s
from bench.errors import UserError
from bench.files import first_line
from bench.models.checkpoints import load_config
from bench.models.quiet import quiet

if TYPE_CHECKING:  # torch is imported where it is used: a peer is known by its knobs before
    import torch
    from torch import Tensor

    from bench.drafting.sampling import Sampler
    from bench.engine.decoder import Decoder
    from bench.models.checkpoints import Checkpoint

# Peers hold the model; it is freed with the last of them.
_loaded: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


class HFPeer(Peer):
    """`AutoModelForCausalLM.generate` on the checkpoint, in the dtype and on the device of the target."""

    drafts: ClassVar[bool] = False  # then a forward pass may give several tokens, and passes are counted

    def __init__(self, target: Decoder, config: Any, checkpoint: Checkpoint):
        super().__init__(target, config, checkpoint)
        self.model = shared_model(checkpoint, target.dtype, target.device, target.quantize)

    @property
    def engine(self) -> dict[str, Any]:
        """Return the library's version and options."""
        import transformers

        flags = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return {"name": "transformers", "version": transformers.__version__, "flags": flags}

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Arguments of `generate` beyond prompt, limit, end tokens and sampling."""

    def generate(
        self, prompt: Sequence[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None
    ) -> Answer:
        """Generate at most `limit` tokens; the library's streaming hook gives the time to the first one.

        If the library's first forward pass also verifies drafts, tokens that come with the first one cost no decode
        time: compare end-to-end times there.
        """
        import torch

        device = self.target.device
        ids = torch.tensor([list(prompt)], device=device)
        clock = FirstTokens(device)
        start_s = now_s(device)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                eos_token_id=sorted(eos),
                pad_token_id=min(eos, default=0),
                streamer=clock,
                **_sampling(sampler),
                **self.options,
            )
        end_s = now_s(device)
        tokens = kept(out[0, len(prompt) :].tolist(), limit, eos)
        first = min(clock.first, len(tokens))
        passes = clock.passes - 1 if self.drafts else None
        return Answer(tokens, clock.first_s - start_s, end_s - clock.first_s, first_tokens=first, decode_passes=passes)


def _sampling(sampler: Sampler | None) -> dict[str, Any]:
    if sampler is None:
        return {"do_sample": False}
    import torch

    torch.manual_seed(sampler.number)
    return {"do_sample": True, "temperature": sampler.temperature, "top_p": sampler.top_p, "top_k": sampler.top_k}


def shared_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantize: str = "none") -> Any:
    """Transformers' model of a checkpoint, one for all peers while one of them lives.

    For a quantised target its weights are those that the codes stand for, in full precision.

    Raises:
        UserError: transformers cannot load it.

    """
    key = (checkpoint.folder, checkpoint.sha256, dtype, str(device), quantize)
    if (model := _loaded.get(key)) is None:
        import torch
        from transformers import GenerationConfig

        from bench.models.shapes import RandomCheckpoint, hf_model

        random = isinstance(checkpoint, RandomCheckpoint)
        loaded = hf_model(checkpoint.name, dtype, device) if random else _load(checkpoint, dtype)
        model = _loaded[key] = loaded.to(device).eval()
        if quantize != "none":
            with torch.no_grad():
                _put_on_the_grid(model)
        # A checkpoint may ask for a repetition penalty or its own limits, which vanilla decoding does not have.
        model.generation_config = GenerationConfig()
    return model


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    config = load_config(checkpoint)
    if stored := getattr(config, "quantization_config", None):
        config.quantization_config = stored | {"dequantize": True}  # the weights of the target, on a GPU, too
    try:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(
                checkpoint.folder, config=config, dtype=dtype, trust_remote_code=False
            )
    except (MemoryError, RuntimeError):  # see `bench.models.loading.memory_errors`
        raise
    except Exception as error:  # transformers raises nearly every other type
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"transformers cannot load {checkpoint.name} ({reason}): --peer none") from error


def _put_on_the_grid(model: Any) -> None:
    """All matrices as the engine quantises them; the LM head, and an embedding tied to it, in eight bits."""
    import torch

    from bench.engine.quantize import Q4, Q8

    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            for rows in module.weight.split(4096):  # an LM head's copies in between would take gigabytes
                rows.copy_((Q8 if module is head else Q4).of(rows).plain())


def kept(tokens: list[int], limit: int, eos: frozenset[int]) -> list[int]:
    """The tokens that count: at most `limit`, none after the first in `eos`.

    Assisted generation may accept drafts beyond both; later versions of transformers cut them off.
    """
    end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[: min(end, limit)]


class FirstTokens:
    """A streamer that records when the first new tokens came, how many at once, and the number of forward passes.

    It gets the prompt, then the tokens of each pass.
    """

    def __init__(self, device: torch.device):
        self.device, self.passes, self.first_s, self.first = device, -1, 0.0, 1

    def put(self, value: Tensor) -> None:
        """Take one or several tokens. The library calls it by this name."""
        self.passes += 1
        if self.passes == 1:
            self.first_s, self.first = now_s(self.device), value.numel()

    def end(self) -> None:
        """The answer is complete."""
