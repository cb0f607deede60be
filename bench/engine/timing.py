"""A device's time: marks in it, and seconds of calls, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Mark = Any  # seconds, or an event of CUDA


def mark(device: torch.device) -> Mark:
    """This moment in the device's own time, without waiting for the device."""
    if device.type != "cuda":
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between_s(first: Mark, second: Mark) -> float:
    """Seconds from one mark to another; on CUDA only once the device has reached both."""
    return float(second - first if isinstance(first, float) else first.elapsed_time(second) / 1000)


def now_s(device: torch.device) -> float:
    """The host's clock once the device has done all it was asked to."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_s(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    start_s = now_s(device)
    call()
    return now_s(device) - start_s


def interleaved(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds of each call, `repeats` times, after a round that warms up.

    In turns: a slow moment of a shared machine hits none of them alone.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            own.append(time_s(call, device))
    return [own[1:] for own in times]
