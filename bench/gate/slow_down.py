"""Work that slows a method down in proportion, so that the gate can be shown to see it."""

from __future__ import annotations

import torch

from bench.drafting.method import Method
from bench.drafting.step import Step
from bench.engine.timing import now_s


def slow_down(method: Method, share: float) -> None:
    """Let every step take `share` longer: real passes through the target's first layer, until that much time is used.

    What a step's passes use up too much or too little is carried over to the next one.
    """
    step, target = method.step, method.target
    scratch = target.new_cache()
    debt_s = 0.0

    @torch.inference_mode()
    def work() -> None:
        target.run_layers(target.embed([0]), 0, scratch, 0, 1)

    work()  # the first time takes longer

    @torch.inference_mode()
    def slowed(room: int) -> Step:
        nonlocal debt_s
        start_s = now_s(target.device)
        made = step(room)
        debt_s += share * (now_s(target.device) - start_s)
        while debt_s > 0:
            start_s = now_s(target.device)
            work()
            debt_s -= now_s(target.device) - start_s
        return made

    method.step = slowed  # type: ignore[method-assign]
