"""What the peers of transformers share: one loaded model for all of them, and the timed call of its `generate`."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.drafting.method import Answer, Peer
from bench.drafting.sampling import Sampler
from bench.engine.decoder import Decoder
from bench.engine.quantize import Q4, Q8
from bench.engine.timing import now_s
from bench.models.checkpoints import Checkpoint
from bench.models.quiet import quiet
from bench.models.shapes import RandomCheckpoint, hf_model

# A peer holds its model; with the last peer the model goes.
_loaded: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


class HFPeer(Peer):
    """`AutoModelForCausalLM.generate` on the target's checkpoint, in its dtype, on its device."""

    def __init__(self, target: Decoder, config: Any, checkpoint: Checkpoint):
        super().__init__(target, config, checkpoint)
        self.model = shared_model(checkpoint, target.dtype, target.device, target.quantize)

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What `generate` is told beyond prompt, limit, end tokens and sampling."""

    @torch.inference_mode()
    def generate(
        self, prompt: Sequence[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None
    ) -> Answer:
        """At most `limit` tokens; the time to the first is taken from the library's streaming hook.

        Where the library's first pass verifies drafts beside the prompt, tokens that come with the first one cost no
        decode time: there end-to-end is the figure to compare.
        """
        device = self.target.device
        ids = torch.tensor([list(prompt)], device=device)
        clock = FirstTokens(device)
        start_s = now_s(device)
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
        return Answer(tokens, clock.first_s - start_s, end_s - clock.first_s, first_tokens=first)


def _sampling(sampler: Sampler | None) -> dict[str, Any]:
    if sampler is None:
        return {"do_sample": False}
    torch.manual_seed(sampler.number)
    return {"do_sample": True, "temperature": sampler.temperature, "top_p": sampler.top_p, "top_k": sampler.top_k}


def shared_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantize: str = "none") -> Any:
    """Transformers' model of a checkpoint, the same one for all peers that ask while one of them lives.

    Of a quantised target it has the weights that the codes stand for, in full.
    """
    key = (checkpoint.folder, checkpoint.sha256, dtype, str(device), quantize)
    if (model := _loaded.get(key)) is None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        loaded: Any
        with quiet():
            if isinstance(checkpoint, RandomCheckpoint):
                loaded = hf_model(checkpoint.name, dtype, device)
            else:
                loaded = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, trust_remote_code=False)
        model = _loaded[key] = loaded.to(device).eval()
        if quantize != "none":
            _put_on_the_grid(model)
        # A checkpoint may ask for a repetition penalty or its own limits: then this were not vanilla's decoding.
        model.generation_config = GenerationConfig()
    return model


@torch.no_grad()
def _put_on_the_grid(model: Any) -> None:
    """All matrices as the engine quantises them; the LM head, and an embedding tied to it, in eight bits."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_((Q8 if module is head else Q4).of(module.weight).plain())


def kept(tokens: list[int], limit: int, eos: frozenset[int]) -> list[int]:
    """The tokens that count: at most `limit`, none behind the first in `eos`.

    Assisted generation may accept drafts beyond both; later versions of transformers cut them themselves.
    """
    end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[: min(end, limit)]


class FirstTokens:
    """A streamer that only notes when the first new tokens came, and how many at once.

    It is handed the prompt, then what each pass gave.
    """

    def __init__(self, device: torch.device):
        self.device, self.calls, self.first_s, self.first = device, 0, 0.0, 1

    def put(self, value: Tensor) -> None:
        """One or several tokens; the library's name."""
        self.calls += 1
        if self.calls == 2:
            self.first_s, self.first = now_s(self.device), value.numel()

    def end(self) -> None:
        """The answer is complete."""
