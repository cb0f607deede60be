"""The environment of a run: device, threads, versions, commit. Recorded, never guessed."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

import bench
from bench.engine.timing import least_s
from bench.figures.facts import Provenance
from bench.figures.machine import Gpu, Machine
from bench.files import SOURCES
from bench.run.cores import busy_s
from bench.run.processor import describe_processor

_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pandas", "scipy", "matplotlib")
# Of the checkout, what is written here: a record that replaces a committed one is of the commit's code.
_WRITTEN = (":(exclude)results", ":(exclude)plots")
_BUSY_SHARE = 0.15
_TICKS_S = 0.25  # the system counts processor time in steps of 0.01 s: a shorter time has no share worth recording
_BUFFER_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}  # larger than any cache


def busy_warning(share: float | None = None) -> str | None:
    """A warning if other programs keep the processors busy: a forward pass waits for its slowest thread.

    `share`: what they used, by an `OthersMeter`; None: measure it now, while this process rests.
    """
    if share is None:
        share = psutil.cpu_percent(interval=0.5) / 100
    if share < _BUSY_SHARE:
        return None
    advice = "; a run with --threads 1 may be faster" if torch.get_num_threads() > 1 else ""
    return f"other programs use {share:.0%} of the processors: the times of this run will be unreliable{advice}"


class OthersMeter:
    """The share of this machine's processors that other programs have used since it was made.

    In a worker, of the processors that it was given: its like are at work on all others.
    """

    own: frozenset[int] = frozenset()  # the processors that this process was given; empty: all

    def __init__(self) -> None:
        self.known = True  # whether all processes of our own are
        self._busy_s, self._own_s, self._start_s = self._all_s(), time.process_time(), time.monotonic()

    def _all_s(self) -> float:
        return busy_s(self.own) if self.own else _busy_s()

    @contextlib.contextmanager
    def during(self, elsewhere_s: Callable[[], float | None]) -> Iterator[OthersMeter]:
        """A meter of its own for what is within, which has processes that have used so many seconds of processors.

        They are no other programs. Where their use is not known, the time within counts in neither meter.
        """
        before_s, meter = elsewhere_s(), OthersMeter()
        try:
            yield meter
        finally:
            after_s = elsewhere_s()
            meter.known = before_s is not None and after_s is not None
            if before_s is not None and after_s is not None:
                meter._own_s -= after_s - before_s
                self._own_s -= after_s - before_s
            else:
                self._leave_out(meter)

    def _leave_out(self, meter: OthersMeter) -> None:
        """Forget what has been since `meter` was made."""
        self._busy_s += self._all_s() - meter._busy_s
        self._own_s += time.process_time() - meter._own_s
        self._start_s += time.monotonic() - meter._start_s

    def share(self) -> float:
        """0..1, time stolen by a hypervisor included."""
        others_s = self._all_s() - self._busy_s - (time.process_time() - self._own_s)
        there_s = (time.monotonic() - self._start_s) * (len(self.own) or psutil.cpu_count() or 1)
        return min(1.0, max(0.0, others_s / there_s)) if there_s > 0 else 0.0

    def turn_share(self) -> float | None:
        """`share` for a turn's record; None if it is not known, or too little time has passed to measure one."""
        return round(self.share(), 3) if self.known and time.monotonic() - self._start_s >= _TICKS_S else None


def _busy_s() -> float:
    """Seconds that the processors were not idle since the machine started."""
    times = psutil.cpu_times()
    # What guests use is counted among user's and nice's already.
    return float(sum(times) - sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice")))


def describe_machine(device: torch.device, threads: int) -> Machine:
    """The machine, of which a run computes on `device` with `threads` threads."""
    processor = describe_processor()
    gpu = _gpu(device) if torch.cuda.is_available() else None
    return Machine(
        type=device.type,
        name=gpu.name if gpu and device.type == "cuda" else processor.name,
        threads=threads,
        processor=processor,
        gpu=gpu,
        memory_bytes=psutil.virtual_memory().total,
        read_gb_per_s=_rounded_bandwidth(device),
        system=platform.system(),
        kernel=platform.release(),
        torch_instructions=torch.backends.cpu.get_cpu_capability(),
    )


def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device if device.type == "cuda" else 0)
    return Gpu(properties.name, properties.total_memory, _driver(), torch.version.cuda)


@functools.cache
def _rounded_bandwidth(device: torch.device) -> float:
    """Rounded to two digits, since the measurement is no better; it takes 0.1 s, once in a process."""
    return float(f"{read_gb_per_s(device, _BUFFER_BYTES[device.type], repeats=3):.2g}")


def read_gb_per_s(device: torch.device, buffer_bytes: int, repeats: int) -> float:
    """GB/s (1e9 bytes) at which memory is read from end to end: the best of what torch offers, in all repeats."""
    values = torch.ones(buffer_bytes // 4, device=device)
    calls: list[Callable[[], object]] = [lambda: values.sum(), lambda: torch.dot(values, values), lambda: values.max()]
    return buffer_bytes / min(least_s(calls, repeats, device)) / 1e9


def describe_software() -> Provenance:
    """Versions, operating system, commit and load of the machine before the run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"roobench": bench.__version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN)),
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def command_line() -> str:
    """The command line of this process, quoted for a shell."""
    called = Path(sys.argv[0]).name
    script = ["-m", Path(sys.argv[0]).parent.name] if called == "__main__.py" else [called]
    return shlex.join([*(["python"] if called.endswith(".py") else []), *script, *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    if not (SOURCES / ".git").exists():  # installed: git would find the repository that the environment is in, if any
        return None
    try:
        done = subprocess.run(["git", "-C", str(SOURCES), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None
