"""Work that slows a method down in proportion, so that the gate can be shown to see it."""

from __future__ import annotations

from typing import Any

import torch

from bench.drafting.method import SpeculativeMethod
from bench.engine.timing import now_s


def slow_down(method: SpeculativeMethod, share: float) -> None:
    """Let every step take `share` longer: real passes through the target's first layer, until that much time is used.

    What a step's passes use up too much or too little is carried over to the next one.
    """
    propose, observe, target = method.propose, method.observe, method.target
    scratch = target.new_cache()
    debt_s = begun_s = 0.0

    @torch.inference_mode()
    def work() -> None:
        target.run_layers(target.embed([0]), 0, scratch, 0, 1)

    work()  # the first time takes longer

    def proposed(*given: Any) -> Any:
        nonlocal begun_s
        begun_s = now_s(target.device)
        return propose(*given)

    def observed(*given: Any) -> None:
        nonlocal debt_s
        observe(*given)
        debt_s += share * (now_s(target.device) - begun_s)
        while debt_s > 0:
            start_s = now_s(target.device)
            work()
            debt_s -= now_s(target.device) - start_s

    vars(method).update(propose=proposed, observe=observed)
