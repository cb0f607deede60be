"""How much memory a process needs: the most it has held, and the most it held while each contestant was at work."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.figures.facts import MemoryFacts

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class PeakMeter:
    """On CUDA of what torch has taken of all devices' memory, else of what the process holds of the machine's."""

    def __init__(self, device: torch.device):
        self.device = device
        self.most = 0  # bytes, of the whole process so far
        self.at_work: dict[str, int] = {}  # bytes, by contestant; empty where a peak cannot be reset

    @contextlib.contextmanager
    def of(self, label: str) -> Iterator[None]:
        """What is done inside is `label`'s; what others have loaded counts, as it stays where it is."""
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
        """For a run's record."""
        return {"peak_bytes": max(self.most, peak_bytes(self.device)), "methods": dict(self.at_work)}

    def _reset(self) -> bool:
        """Let the peak begin anew; whether it could."""
        if self.device.type == "cuda":
            for number in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(number)
            return True
        try:
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:  # not Linux, or a container that forbids it
            return False
        return True


def peak_bytes(device: torch.device) -> int:
    """The most memory held since the process began, or since the peak was reset."""
    if device.type == "cuda":
        return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    with contextlib.suppress(OSError, IndexError, ValueError):
        told = _STATUS.read_text(encoding="ascii", errors="replace")
        return int(told.split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def merged(one: MemoryFacts, other: MemoryFacts) -> MemoryFacts:
    """Of two sessions of a run (`PeakMeter.facts`, or empty), the larger of each."""
    labels = {**one.get("methods", {}), **other.get("methods", {})}
    both = (one.get("methods", {}), other.get("methods", {}))
    return {
        "peak_bytes": max(one.get("peak_bytes", 0), other.get("peak_bytes", 0)),
        "methods": {label: max(part.get(label, 0) for part in both) for label in labels},
    }
