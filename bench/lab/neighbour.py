"""What one endless busy process beside it costs a vanilla step: with our kernels and torch's operations.

The step is timed quiet and with the neighbour in turns, within one run, with all threads and with one. `pinned`: the
neighbour stays on one core. `free`: the system places it.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.drafting.costs import Passes
from bench.engine.decoder import Decoder
from bench.engine.products import Linear
from bench.engine.timing import time_s
from bench.errors import UserError

QUIET = "quiet"
ROUNDS = 5
_STEPS = 4  # timed in a round, by repeats: a slow-down comes in slices of the scheduler's, several steps long
_WARM_UP = 3
_POSITION = 64  # tokens of context
_SETTLE_S = 0.1  # for the scheduler to spread the load

_STREAMS: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
# It ends by itself when its parent is gone, even if that was killed.
_SPIN = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(10_000):
        pass
"""


@contextlib.contextmanager
def busy(core: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a core busy by a process of its own; `core`: it stays on that one."""
    command = [sys.executable, "-S", "-c", _SPIN, str(os.getpid())]
    with subprocess.Popen(command, **_STREAMS) as process:
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            process.stdout.readline()  # it is spinning now
            yield process
        finally:
            process.kill()


@torch.inference_mode()
def measure(target: Decoder, repeats: int) -> dict[str, Any]:
    """Time vanilla steps of a decoder on the CPU.

    Returns `neighbour`: rows with the engine, the threads and the neighbour; `median_ms`, `mean_ms` and `p90_ms` of a
    step; and its time over the quiet step's (the ratio of mean times, median of the rounds): `of_quiet` with as many
    threads, `of_quiet_all_threads` with all of them.

    Raises:
        UserError: it is on another device.

    """
    if target.device.type != "cpu":
        raise UserError(f"--neighbour is about the threads of a CPU, not {target.device}: add --device cpu")
    usual = torch.get_num_threads()
    engines = {"kernels": target} if target.native_layers else {}
    engines["operations"] = by_torch(target)
    steps = {name: Passes(engine, 0, _POSITION).vanilla for name, engine in engines.items()}
    cases = list(itertools.product(steps, dict.fromkeys((usual, 1))))
    neighbours = [QUIET, *(["pinned"] if hasattr(os, "sched_setaffinity") else []), "free"]
    seconds: dict[tuple[str, int, str], list[list[float]]] = {(*c, n): [] for n in neighbours for c in cases}
    try:
        for _, neighbour in tqdm(list(itertools.product(range(ROUNDS), neighbours)), unit="part", dynamic_ncols=True):
            with _beside(neighbour):
                time.sleep(_SETTLE_S)
                for name, threads in cases:
                    torch.set_num_threads(threads)
                    times = [time_s(steps[name], target.device) for _ in range(_WARM_UP + _STEPS * repeats)]
                    seconds[name, threads, neighbour].append(times[_WARM_UP:])
    finally:
        torch.set_num_threads(usual)
    rows = [
        {
            "engine": name,
            "threads": threads,
            "neighbour": neighbour,
            **_figures(own),
            "of_quiet": _ratio(own, seconds[name, threads, QUIET]),
            "of_quiet_all_threads": _ratio(own, seconds[name, usual, QUIET]),
        }
        for (name, threads, neighbour), own in seconds.items()
    ]
    return {"neighbour": {"rounds": ROUNDS, "steps_a_round": _STEPS * repeats, "rows": rows}}


def by_torch(target: Decoder) -> Decoder:
    """The same weights by torch's operations, laid out as torch likes them."""

    def plain(linear: Linear) -> Linear:
        return Linear(linear.weight, linear.bias)

    other = copy.copy(target)
    other.native_layers, other.head = None, plain(target.head)
    other.layers = [
        replace(layer, qkv=plain(layer.qkv), out=plain(layer.out), gate_up=plain(layer.gate_up), down=plain(layer.down))
        for layer in target.layers
    ]
    return other


def _beside(neighbour: str) -> contextlib.AbstractContextManager[object]:
    if neighbour == QUIET:
        return contextlib.nullcontext()
    return busy(max(os.sched_getaffinity(0)) if neighbour == "pinned" else None)


def _figures(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    ms = 1e3 * np.concatenate(rounds)
    return {"median_ms": float(np.median(ms)), "mean_ms": float(ms.mean()), "p90_ms": float(np.quantile(ms, 0.9))}


def _ratio(rounds: Sequence[Sequence[float]], quiet: Sequence[Sequence[float]]) -> float:
    pairs = zip(rounds, quiet, strict=True)
    return statistics.median(statistics.fmean(own) / statistics.fmean(base) for own, base in pairs)
