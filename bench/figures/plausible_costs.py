"""Can a recorded run have been so fast? A step against the memory's bandwidth, a speedup against tokens per step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bench.figures.breakdown import decode_tok_per_s
from bench.figures.findings import Findings, pairs_at
from bench.figures.machine import Machine
from bench.figures.metrics import compression_rate, steps, vanilla_name
from bench.figures.records import Run, Turn
from bench.figures.sums import Pair
from bench.figures.waves import Block

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "q8": 1.0, "q4": 0.5}  # of a parameter at least
# A step may read faster than the recorded bandwidth, which is measured once, at the start, and rounded; the memory of
# a virtual machine drifts by a third within the hour, and input embeddings are counted as weights but not read.
OVER_BANDWIDTH = 1.5
# A step may be cheaper than vanilla's where wider passes take other kernels; by this much at most.
OVER_TOKENS = 1.25


def check_costs(run: Run, turns: Sequence[Turn], blocks: Sequence[Block], found: Findings) -> None:
    """Note what is faster than it can be, of the turns that were answered."""
    vanilla = vanilla_name(run)
    for name, info in run.methods.items():
        own = [turn for turn in turns if turn.method == name]
        for worker in sorted({turn.worker for turn in own}) if info.kind != "peer" else ():
            for part, of_part in _parts([(turn, turn) for turn in own if turn.worker == worker]):
                its = [turn for turn, _ in of_part]
                if said := too_fast(run, worker, math.fsum(turn.decode_s for turn in its), steps(its)):
                    found.add(name, "bandwidth", f"{name}{part}: {said}")
                    break
        if info.kind == "method":
            for part, of_part in _parts(list(pairs_at(run, turns, name, vanilla))):
                if said := _too_much(of_part):
                    found.add(name, "speedup", f"{name}{part}: {said}")
                    break
    _in_batches(run, blocks, found)


def _in_batches(run: Run, blocks: Sequence[Block], found: Findings) -> None:
    """The same of blocks, at each batch size."""
    for block in blocks:
        if said := too_fast(run, "", math.fsum(block.wall_s), len(block.wall_s)):
            found.add(block.method, "batch bandwidth", f"{block.method}, batch {block.batch}: {said}")
    by_side: dict[tuple[str, int], list[Block]] = {}
    for block in blocks:
        by_side.setdefault((block.method, block.batch), []).append(block)
    for (name, size), own in by_side.items():
        vanilla = by_side.get((vanilla_name(run), size), [])
        if run.methods[name].kind == "method" and (said := _too_much_in_batches(own, vanilla)):
            found.add(name, "batch speedup", f"{name}, batch {size}: {said}")


def _parts(paired: Sequence[Pair]) -> Iterator[tuple[str, Sequence[Pair]]]:
    """All pairs, then each task's at each value of the axis, with what to call them.

    A run's figure is the tasks' unweighted mean: every one of them must be possible.
    """
    yield "", paired
    parts: dict[tuple[str, float | None], list[Pair]] = {}
    for turn, base in paired:
        parts.setdefault((turn.task, turn.at), []).append((turn, base))
    for (task, at), part in parts.items():
        yield f", task {task}" + ("" if at is None else f" at {at:g}"), part


def too_fast(run: Run, worker: str, seconds: float, many: int) -> str:
    """Why a worker cannot have taken so many steps in that time; empty: it can."""
    machine = run.workers[worker].machine if worker in run.workers else run.machine
    least_s = least_step_s(run, machine)
    if not least_s or not many or seconds / many >= least_s / OVER_BANDWIDTH:
        return ""
    return (
        f"a step takes {1e3 * seconds / many:.3g} ms, but reading the weights takes {1e3 * least_s:.3g} ms at the "
        f"machine's {machine.read_gb_per_s:g} GB/s"
    )


def least_step_s(run: Run, machine: Machine) -> float | None:
    """Seconds in which a machine of the run reads the weights once, without what its caches hold; None: not known."""
    parameters, size = run.model.get("parameters"), WEIGHT_BYTES.get(run.dtype)
    if not parameters or size is None or not machine.read_gb_per_s:
        return None
    return max(parameters * size - _cached_bytes(machine), 0) / (machine.read_gb_per_s * 1e9)


def _cached_bytes(machine: Machine) -> int:
    """What all caches can hold. As few as four cores may share an L3; the record has the first core's."""
    caches, cores = machine.processor.caches_bytes, machine.processor.cores
    if machine.type != "cpu":
        return 0
    return caches.get("L2", 0) * cores + caches.get("L3", 0) * math.ceil(cores / 4)


def _too_much(paired: Sequence[Pair]) -> str:
    """Why a speedup cannot be; empty: it can. It is at most the tokens per step if these cost what vanilla's do."""
    ours, theirs = decode_tok_per_s(turn for turn, _ in paired), decode_tok_per_s(base for _, base in paired)
    rate = compression_rate([turn for turn, _ in paired])
    return _over(ours / theirs, rate) if ours and theirs and rate else ""


def _too_much_in_batches(blocks: Sequence[Block], vanilla: Sequence[Block]) -> str:
    """The same of the full waves at a batch size, on the blocks that both answered."""
    places = {block.place for block in blocks} & {block.place for block in vanilla}
    ours, theirs = (_full([block for block in side if block.place in places]) for side in (blocks, vanilla))
    if not all((*ours, *theirs)):
        return ""
    tokens, seconds, steps_ = ours
    return _over(tokens / seconds / (theirs[0] / theirs[1]), tokens / steps_)


def _full(blocks: Sequence[Block]) -> tuple[int, float, int]:
    """Tokens, seconds and sequences' steps of full waves."""
    sums = [block.full() for block in blocks]
    many = sum(block.batch * sum(map(block.is_full, range(len(block.live)))) for block in blocks)
    return sum(tokens for tokens, _ in sums), math.fsum(seconds for _, seconds in sums), many


def _over(speedup: float, rate: float) -> str:
    if speedup <= OVER_TOKENS * rate:
        return ""
    said = f"it decodes {speedup:.2f} times as fast as plain decoding with {rate:.2f} tokens a step"
    return f"{said}, so that its steps would cost less than plain ones"
