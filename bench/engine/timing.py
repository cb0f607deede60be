"""Seconds of calls on a device, interleaved: a slow moment of a shared machine hits none of them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench.engine.execute import now_s


def time_s(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    start_s = now_s(device)
    call()
    return now_s(device) - start_s


def interleaved(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds of each call, `repeats` times in turns, after a round that warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            own.append(time_s(call, device))
    return [own[1:] for own in times]
