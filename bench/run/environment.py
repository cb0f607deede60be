"""What a run was made on and with: device, threads, versions, commit. Recorded, never guessed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pandas", "scipy", "matplotlib")
_BUSY_PERCENT = 15
_ROOT = Path(__file__).parents[2]


def busy_warning() -> str | None:
    """A sentence if other programs keep this machine's processors busy: a pass waits for its slowest thread."""
    busy = psutil.cpu_percent(interval=0.5)
    if busy < _BUSY_PERCENT:
        return None
    return f"other programs use {busy:.0f}% of this machine's processors: the figures of this run will be far off"


class OthersMeter:
    """How much of this machine's processors others than this process have used since it was made."""

    def __init__(self) -> None:
        self._busy_s, self._own_s, self._start_s = _busy_s(), time.process_time(), time.monotonic()

    def share(self) -> float:
        """0..1, time stolen by a hypervisor included."""
        others_s = _busy_s() - self._busy_s - (time.process_time() - self._own_s)
        there_s = (time.monotonic() - self._start_s) * (psutil.cpu_count() or 1)
        return min(1.0, max(0.0, others_s / there_s)) if there_s > 0 else 0.0


def _busy_s() -> float:
    """Seconds that the processors were not idle since the machine started."""
    times = psutil.cpu_times()
    # What guests use is counted among user's and nice's already.
    return float(sum(times) - sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice")))


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name, memory and settings of the device that a run used."""
    cpu = {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if device.type == "cpu":
        return {"type": "cpu", "name": cpu["cpu"], **cpu}
    properties = torch.cuda.get_device_properties(device)
    gpu = {"gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda, "driver": _driver()}
    return {"type": "cuda", "name": properties.name, **gpu, **cpu}


def describe_software() -> dict[str, Any]:
    """Versions, operating system, commit and the machine's load before the run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line() -> str:
    """How the program was called, as it can be typed again."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # an unpacked archive rather than a checkout
    return done.stdout.strip()


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None
