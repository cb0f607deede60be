"""Transformers' own generation on the same weights: it shows what our vanilla is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.checkpoints import Checkpoint
from bench.engine.decoder import Decoder
from bench.quiet import quiet
from methods.base import Answer, Peer, now_s


class HFGenerate(Peer):
    """`AutoModelForCausalLM.generate` with its defaults: eager, dynamic cache, the library's choice of attention."""

    def __init__(self, target: Decoder, config: Any, checkpoint: Checkpoint):
        super().__init__(target, config, checkpoint)
        from transformers import AutoModelForCausalLM, GenerationConfig

        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder, dtype=target.dtype, trust_remote_code=False
            )
        self.model = model.to(target.device).eval()
        # A checkpoint may ask for a repetition penalty or its own limits: then this were not vanilla's decoding.
        self.model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], limit: int, eos: frozenset[int]) -> Answer:
        """At most `limit` tokens; the first one's time is taken from the library's streaming hook."""
        device = self.target.device
        ids = torch.tensor([list(prompt)], device=device)
        clock = _FirstToken(device)
        sampling: dict[str, Any] = {"do_sample": False}
        if (sampler := self.sampler) is not None:
            torch.manual_seed(sampler.number)
            sampling = {"do_sample": True, "temperature": sampler.temperature}
            sampling |= {"top_p": sampler.top_p, "top_k": sampler.top_k}
        start_s = now_s(device)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            eos_token_id=sorted(eos),
            pad_token_id=min(eos, default=0),
            streamer=clock,
            **sampling,
        )
        end_s = now_s(device)
        tokens = out[0, len(prompt) :].tolist()
        return Answer(tokens, clock.first_s - start_s, end_s - clock.first_s)


class _FirstToken:
    """A streamer that only notes when the first new token came: the library hands it the prompt, then each token."""

    def __init__(self, device: torch.device):
        self.device, self.calls, self.first_s = device, 0, 0.0

    def put(self, value: Tensor) -> None:
        self.calls += 1
        if self.calls == 2:
            self.first_s = now_s(self.device)

    def end(self) -> None:
        """The answer is complete."""
