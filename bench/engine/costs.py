"""What passes cost on this device, in vanilla steps: what a method needs to know before it spends time on a draft."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.engine.decoder import Decoder
from bench.engine.execute import now_s

_POSITION = 128  # where passes are timed: an ordinary place in a conversation
_REPEATS = 7


@dataclass(frozen=True)
class Costs:
    """Times in units of a vanilla step (all layers and the LM head over one position)."""

    shallow: float  # the layers below the exit, over one position
    draft: float  # what turns an exit state into a draft
    verify: tuple[float, ...]  # the layers above the exit and the LM head, over 1, 2, .. positions

    def __str__(self) -> str:
        return "/".join(f"{value:.3f}" for value in (self.shallow, self.draft, *self.verify))

    @classmethod
    def parse(cls, text: str) -> Costs:
        """The costs that `str` wrote.

        Raises:
            ValueError: not of that form.

        """
        try:
            shallow, draft, *verify = map(float, text.split("/"))
        except ValueError:
            verify = []
        if not verify or min(shallow, draft, *verify) < 0:
            raise ValueError(f"costs={text!r} must be shallow/draft/verify1/verify2/.., in vanilla steps")
        return cls(shallow, draft, tuple(verify))


@torch.inference_mode()
def measure(target: Decoder, exit_layer: int, most: int, draft: Callable[[], object]) -> Costs:
    """Time the passes of self-speculation on `target`, verification over 1..`most` positions, `draft` as given."""
    cache = target.new_cache()
    position = min(_POSITION, target.max_len - most)
    x = target.embed([0] * most)

    def shallow() -> object:
        return target.run_layers(x[:, :1], position, cache, 0, exit_layer)

    def verify(n: int) -> Callable[[], object]:
        return lambda: target.logits(target.run_layers(x[:, :n], position, cache, exit_layer)[0]).argmax(-1).tolist()

    shallow_s, draft_s, *verify_s = _times([shallow, draft, *(verify(n) for n in range(1, most + 1))], target.device)
    step_s = shallow_s + verify_s[0]
    # More positions never cost less: what looks so is noise, and would make a draft seem to earn by being verified.
    for n in range(1, most):
        verify_s[n] = max(verify_s[n], verify_s[n - 1])
    return Costs(shallow_s / step_s, draft_s / step_s, tuple(v / step_s for v in verify_s))


def _times(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Median seconds of each call; interleaved, so that a slow moment of a shared machine hits none alone."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(_REPEATS + 1):
        for call, own in zip(calls, times, strict=True):
            start_s = now_s(device)
            call()
            own.append(now_s(device) - start_s)
    return [statistics.median(own[1:]) for own in times]  # the first round warms up
