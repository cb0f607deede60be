"""Timing on a device: marks, and the seconds of interleaved calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Mark = Any  # seconds, or an event of CUDA


def mark(device: torch.device) -> Mark:
    """Mark this moment on the device's own clock, without synchronising."""
    if device.type != "cuda":
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between_s(first: Mark, second: Mark) -> float:
    """Return the seconds between two marks; on CUDA, call it after the device has reached both."""
    return float(second - first if isinstance(first, float) else first.elapsed_time(second) / 1000)


def now_s(device: torch.device) -> float:
    """Synchronise with the device, and return the host's clock."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_s(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, including the device's work."""
    start_s = now_s(device)
    call()
    return now_s(device) - start_s


def interleaved(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Return the seconds of each call, `repeats` times, after one warm-up round.

    Calls are interleaved, so that a slow moment of a shared machine hits all of them.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            own.append(time_s(call, device))
    return [own[1:] for own in times]


def least_s(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Return the least seconds of each call, interleaved, as noise only adds time."""
    return [min(own) for own in interleaved(calls, repeats, device)]
