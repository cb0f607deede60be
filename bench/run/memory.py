"""Peak memory: of the process, and of the process while each method was at work."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.drafting.loop import target_caches
from bench.drafting.method import Method
from bench.engine.cache import KVCache
from bench.figures.facts import MemoryFacts

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class PeakMeter:
    """On CUDA what torch has allocated on all devices, else the resident memory of the process."""

    def __init__(self, device: torch.device):
        self.device = device
        self.most = 0  # bytes, of the whole process so far
        self.at_work: dict[str, int] = {}  # bytes, by contestant; empty where a peak cannot be reset

    @contextlib.contextmanager
    def of(self, label: str) -> Iterator[None]:
        """Measure what is done inside as `label`'s peak; what others have loaded counts too, as it stays in memory."""
        self.most = max(self.most, peak_bytes(self.device))
        known = self._reset()
        try:
            yield
        finally:
            peak = peak_bytes(self.device)
            self.most = max(self.most, peak)
            if known:
                self.at_work[label] = max(self.at_work.get(label, 0), peak)

    def facts(self) -> MemoryFacts:
        """The peaks for a run's record."""
        return {"peak_bytes": max(self.most, peak_bytes(self.device)), "methods": dict(self.at_work)}

    def _reset(self) -> bool:
        """Reset the peak; returns whether that is possible."""
        if self.device.type == "cuda":
            for number in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(number)
            return True
        try:
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:  # not Linux, or a container that forbids it
            return False
        return True


def cache_bytes_per_token(method: Method) -> int:
    """What a token of the context takes in a method's caches: the target's, and those of its own; 0: it has none here.

    For a method that has decoded, because caches are made then.
    """
    return sum(cache.bytes_per_position for cache in _caches_in([method, target_caches(method)]))


def _caches_in(value: object) -> set[KVCache]:
    """The caches that a method holds, or a member of a composition: one a slot, of which one counts."""
    if isinstance(value, KVCache):
        return {value}
    if isinstance(value, dict):  # by slot, for a sequence each
        return _caches_in(next(iter(value.values()), None))
    held = vars(value).values() if isinstance(value, Method) else value if isinstance(value, list | tuple) else ()
    return {cache for one in held for cache in _caches_in(one)}


def peak_bytes(device: torch.device) -> int:
    """The peak since the process began, or since it was reset."""
    if device.type == "cuda":
        return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    with contextlib.suppress(OSError, IndexError, ValueError):
        told = _STATUS.read_text(encoding="ascii", errors="replace")
        return int(told.split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def merged(one: MemoryFacts, other: MemoryFacts) -> MemoryFacts:
    """The larger peaks of two sessions of a run (`PeakMeter.facts`, or empty)."""
    labels = {**one.get("methods", {}), **other.get("methods", {})}
    both = (one.get("methods", {}), other.get("methods", {}))
    return {
        "peak_bytes": max(one.get("peak_bytes", 0), other.get("peak_bytes", 0)),
        "methods": {label: max(part.get(label, 0) for part in both) for label in labels},
    }
