"""The cores that a process computes on: fewer where other programs hold some, or those that a worker is given.

A forward pass waits for its slowest thread. One that shares its core with a busy process gets half of it, in slices of
milliseconds, and the others wait meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from bench.config import RunConfig
from bench.models.loading import choose_device

_STAT, _TASKS, _SYSFS = Path("/proc/stat"), Path("/proc/self/task"), Path("/sys/devices/system/cpu")
_LOOK_S = 0.3
_LOOKS = 2  # what holds a core in one of them only is soon over
_HELD = 0.7  # of a core: used that much by others, it is left to them


def on_free_cores(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """Return the settings with a thread for each free core where others hold some, and what to say about it.

    They stay as they are if the user chose the threads (`--threads`, OMP_NUM_THREADS), on a GPU, where fewer cores are
    held than have no thread anyway, and on systems other than Linux.
    """
    usual = torch.get_num_threads()
    if config.threads or "OMP_NUM_THREADS" in os.environ or usual == 1 or not _STAT.exists():
        return config, []
    if choose_device(config.device).type != "cpu":
        return config, []
    cores = os.sched_getaffinity(0)
    held = float(len(cores))
    for _ in range(_LOOKS):
        held = min(held, _held_by_others(cores))
        threads = max(1, len(cores) - int(held + 1 - _HELD))
        if threads >= usual:
            return config, []
    return replace(config, threads=threads), [
        f"other programs hold {held:.1f} of {len(cores)} cores: computing with {threads} instead of {usual} threads "
        f"(--threads {usual} for all)"
    ]


def _held_by_others(cores: Collection[int]) -> float:
    """Return how many of these cores others use over the next moment, in sum; stolen time included."""
    before_s, own_s, start_s = busy_s(cores), time.process_time(), time.monotonic()
    time.sleep(_LOOK_S)
    others_s = busy_s(cores) - before_s - (time.process_time() - own_s)
    return max(0.0, others_s / (time.monotonic() - start_s))


def busy_s(cores: Collection[int]) -> float:
    """Return the seconds that these cores were not idle since the machine started.

    Columns of /proc/stat, proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; then guests' time, which
    is in user's and nice's already.
    """
    lines = (line.split() for line in _STAT.read_text(encoding="ascii").splitlines())
    ticks = {name: [*map(int, columns[:8])] for name, *columns in lines if name.startswith("cpu")}
    known = [ticks[f"cpu{core}"] for core in cores if f"cpu{core}" in ticks]
    return sum(sum(each) - sum(each[3:5]) for each in known) / os.sysconf("SC_CLK_TCK")


def physical_cores() -> list[list[int]]:
    """Return the numbers of the processors that this process may use, those of one core together, neighbors in order.

    Hardware threads of one core slow each other down, so that two workers never get one each.
    """
    usable = os.sched_getaffinity(0)
    by_core: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(usable):
        by_core.setdefault(_place_of(number), []).append(number)
    return [by_core[place] for place in sorted(by_core)]


def _place_of(number: int) -> tuple[int, ...]:
    """Package and core of a processor; where the system does not tell, each is a core of its own."""
    topology = _SYSFS / f"cpu{number}" / "topology"
    try:
        package, core = (
            int((topology / name).read_text(encoding="ascii")) for name in ("physical_package_id", "core_id")
        )
    except (OSError, ValueError):
        return (number, number)
    return (package, core)


def pin(cores: Collection[int]) -> None:
    """Keep this process, with all threads that it has or starts, to some processors."""
    for thread in _TASKS.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
