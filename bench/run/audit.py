"""Audits of greedy answers: vanilla's token for token, and if not, by rounding or by a fault?

Passes of different widths round differently, so that even in float32 two tokens whose logits all but tie may swap.
Such a divergence is *numerical*: the gap between the two tokens in the reference's logits is within twice the error
that the run's own passes show on that very text. Every other divergence is *different*, and fails the run.

The reference has float32 weights and activations. A quantised target rounds activations to eight bits, which is more
than any tie: its methods, which do so too, are held against a reference that does, and only peers of another library
against float32 activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.engine.decoder import Decoder
from bench.figures.records import Audit

_ERROR_POSITIONS = 16  # over which the logit error is measured


class Auditor:
    """Compares answers with vanilla's.

    `reference` makes a float32 decoder of the same weights; it is called at the first divergence only, and not at all
    where the target is float32 itself.
    """

    def __init__(self, target: Decoder, reference: Callable[[], Decoder]):
        self.target = target
        self._make_reference = reference
        # By operations, which round differently from the kernels at every width.
        self._reference = target.by_operations() if target.dtype == torch.float32 else None
        quantised = target.quantize != "none"
        self._own_reference = target.by_operations(own_products=True) if quantised else None
        self._failure: Exception | None = None  # why there is no reference: it is not tried again for every answer

    def compare(
        self, prompt: Sequence[int], answer: Sequence[int], vanilla: Sequence[int], *, by_peer: bool = False
    ) -> Audit:
        """The verdict on `answer`, given vanilla's answer to the same prompt. `by_peer`: another library's loop."""
        if list(answer) == list(vanilla):
            return Audit("identical")
        position = next((i for i, (a, b) in enumerate(zip(answer, vanilla, strict=False)) if a != b), None)
        if position is None:
            # One answer goes on where the other stopped: both have the same limit and EOS, so this is no rounding.
            shorter = min(len(answer), len(vanilla))
            token = answer[shorter] if len(answer) > shorter else None
            vanilla_token = vanilla[shorter] if len(vanilla) > shorter else None
            return Audit("different", shorter, token, vanilla_token)
        token, vanilla_token = answer[position], vanilla[position]
        logits, error = self._measure([*prompt, *vanilla[:position]], by_peer=by_peer)
        gap = float(logits[vanilla_token] - logits[token])
        verdict = "numerical" if abs(gap) <= 2 * error else "different"
        return Audit(verdict, position, token, vanilla_token, gap, 2 * error)

    @torch.inference_mode()
    def _measure(self, context: list[int], *, by_peer: bool) -> tuple[Tensor, float]:
        """Reference logits [V] after `context`, and the largest logit error of the run's passes near its end.

        Reference: one pass of `_reference_for` over the whole context. Against it: the target's prefill up to the last
        positions, then these token by token, and again as one block.
        """
        reference = self._reference_for(by_peer=by_peer)
        last = min(_ERROR_POSITIONS, len(context))
        start = len(context) - last
        expected = _last_logits(reference, context)
        cache = self.target.new_cache()
        if start:
            self.target.run_layers(self.target.embed(context[:start]), 0, cache)
        singly = [
            self.target.logits(self.target.run_layers(self.target.embed([token]), start + i, cache))[0]
            for i, token in enumerate(context[start:])
        ]
        block = self.target.logits(self.target.run_layers(self.target.embed(context[start:]), start, cache))[0]
        measured = torch.stack((torch.cat(singly), block)).to(expected.device)
        return expected[-1], float((measured - expected).abs().max())

    def _reference_for(self, *, by_peer: bool) -> Decoder:
        if self._own_reference is not None and not by_peer:
            return self._own_reference
        if self._failure is not None:
            raise self._failure
        if self._reference is None:
            try:
                self._reference = self._make_reference()
            except Exception as error:
                self._failure = error
                raise
        return self._reference


def _last_logits(decoder: Decoder, context: list[int]) -> Tensor:
    """Logits [<= _ERROR_POSITIONS, V] of the last positions of `context`, in one pass over all of it."""
    states = decoder.run_layers(decoder.embed(context), 0, decoder.new_cache())
    return decoder.logits(states[0, -_ERROR_POSITIONS:])
