"""Decoding in batches: its records and its figures. Pure but for reading the file; no torch.

A *wave* is one step of all sequences in the batch. It is *full* if every slot was taken; where the questions run out,
the rest is the *drain*. Throughput is that of full waves, in which methods and vanilla decode equally many sequences.
Prefills are between waves and count for neither.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.figures import stats
from bench.figures.breakdown import finite, mean, ratio
from bench.figures.checks import turn_check
from bench.figures.facts import PassCosts
from bench.figures.metrics import compression_rate, lossless_counts, vanilla_name
from bench.figures.records import BATCHES_FILE, Run, Turn, whole_lines
from bench.figures.summary import BatchCell, Crossover, Estimate, Summary
from bench.typed_json import Count, MismatchError, Seconds, Share, decode_lines


@dataclass(slots=True)
class Block:
    """One method's answers to a block of questions in a batch. A turn's `decode_s` is its share of its waves.

    Columns have one entry for each wave; seconds are of all its sequences together.
    """

    method: str
    batch: Count  # slots
    round: Count
    number: Count  # of the block, from 0
    turns: list[Turn] = field(default_factory=list)
    first_waves: list[Count] = field(default_factory=list)  # of each turn: its steps are one wave each from there
    live: list[Count] = field(default_factory=list)  # sequences in the wave
    wall_s: list[Seconds] = field(default_factory=list)
    draft_s: list[Seconds] = field(default_factory=list)  # within wall_s
    verify_s: list[Seconds] = field(default_factory=list)  # likewise; what is left is bookkeeping
    others_share: Share | None = None  # of the processors, used by other programs meanwhile; None: not known
    error: str | None = None  # why the block failed; it then has no turns

    @property
    def place(self) -> tuple[int, int, int]:
        """Batch size, round and number."""
        return self.batch, self.round, self.number

    @property
    def where(self) -> str:
        """A block as people count."""
        return f"{self.method}, batch {self.batch}, block {self.number + 1}"

    def steps(self) -> Iterable[tuple[int, int]]:
        """Of every step of every turn: its wave, and the tokens that it added to the kept answer."""
        for turn, first in zip(self.turns, self.first_waves, strict=True):
            yield from enumerate(turn.per_step_emitted, first)

    def shapes(self) -> list[list[tuple[int, int, int, int]]]:
        """Of every wave its steps: rows verified, depth, calls of the draft model, tokens added."""
        waves: list[list[tuple[int, int, int, int]]] = [[] for _ in self.live]
        for turn, first in zip(self.turns, self.first_waves, strict=True):
            scouts = turn.per_step_scouts or [0] * len(turn.per_step_emitted)
            columns = (turn.per_step_drafted, scouts, turn.per_step_depth, turn.per_step_calls, turn.per_step_emitted)
            for wave, (drafted, others, depth, calls, emitted) in enumerate(zip(*columns, strict=True), first):
                waves[wave].append((1 + drafted + others, depth, calls, emitted))
        return waves

    def is_full(self, wave: int) -> bool:
        """Return whether every slot was taken."""
        return self.live[wave] == self.batch

    def full(self) -> tuple[int, float]:
        """Tokens and seconds of the full waves."""
        tokens = sum(emitted for wave, emitted in self.steps() if self.is_full(wave))
        return tokens, math.fsum(s for wave, s in enumerate(self.wall_s) if self.is_full(wave))


def read_blocks(folder: Path, run: Run) -> list[Block]:
    """The `batches.jsonl` of a run's folder; empty where there is none.

    Raises:
        UserError: malformed, with the line's number and the field's name.

    """
    path = folder / BATCHES_FILE
    if not path.exists() and not (run.complete and run.batches):
        return []
    return decode_lines(Block, whole_lines(path, run.complete), path, "a block's record", check=_block_check(run))


def _block_check(run: Run) -> Callable[[Block], None]:
    """A check to call with each block in the file's order; it raises MismatchError."""
    seen: set[tuple[str, tuple[int, int, int]]] = set()
    checks: dict[tuple[int, int], Callable[[Turn], None]] = {}

    def check(block: Block) -> None:
        if (key := (block.method, block.place)) in seen:
            raise MismatchError(
                f"number: block {block.number} of {block.method} at batch {block.batch} was there before"
            )
        seen.add(key)
        if block.method not in run.methods:
            raise MismatchError(f"method: {block.method!r} is not in run.json")
        waves = len(block.live)
        for name in ("wall_s", "draft_s", "verify_s"):
            if (found := len(getattr(block, name))) != waves:
                raise MismatchError(f"{name}: has {found} waves, but live has {waves}")
        if len(block.first_waves) != len(block.turns):
            raise MismatchError(f"first_waves: has {len(block.first_waves)} turns, but turns has {len(block.turns)}")
        if any(not 0 < live <= block.batch for live in block.live):
            raise MismatchError(f"live: a wave must have from 1 to {block.batch} sequences")
        counted = [0] * waves
        of_turn = checks.setdefault((block.batch, block.round), turn_check(run))
        for number, (turn, first) in enumerate(zip(block.turns, block.first_waves, strict=True)):
            try:
                of_turn(turn)
            except MismatchError as error:
                raise MismatchError(f"turns.{number}.{error}") from error
            if turn.method != block.method:
                raise MismatchError(f"turns.{number}.method: {turn.method!r} in a block of {block.method!r}")
            if turn.round != block.round:
                raise MismatchError(f"turns.{number}.round: {turn.round} in a block of round {block.round}")
            if first + len(turn.per_step_emitted) > waves:
                raise MismatchError(f"first_waves.{number}: the turn's steps go beyond the block's {waves} waves")
            for wave in range(first, first + len(turn.per_step_emitted)):
                counted[wave] += 1
        if counted != block.live:
            raise MismatchError("live: is not the number of turns with a step in the wave")

    return check


def add_batches(summary: Summary, run: Run, blocks: Sequence[Block]) -> None:
    """Add the figures of a run's batches to its summary."""
    if not blocks:
        return
    vanilla = vanilla_name(run)
    sizes = sorted({block.batch for block in blocks})
    for name, info in run.methods.items():
        own = {size: [b for b in blocks if b.method == name and b.batch == size] for size in sizes}
        cells = [
            _cell(
                own[size],
                [block for block in blocks if (block.method, block.batch) == (vanilla, size)],
                info.lossless,
                known.costs if (known := run.batches.get(str(size), {}).get(name)) else None,
            )
            for size in sizes
            if own[size]
        ]
        if cells:
            summary.batches[name] = cells
            if name != vanilla:
                summary.crossovers[name] = Crossover(
                    crossover([(cell.batch, cell.speedup.value) for cell in cells]),
                    crossover([(cell.batch, cell.predicted) for cell in cells]),
                )


def _cell(blocks: Sequence[Block], vanilla: Sequence[Block], lossless: bool, costs: PassCosts | None) -> BatchCell:
    """One method at one batch size."""
    failed = [block for block in blocks if block.error is not None]
    blocks = [block for block in blocks if block.error is None]
    turns = [turn for block in blocks for turn in block.turns]
    full = [block.full() for block in blocks]
    full_s = math.fsum(seconds for _, seconds in full)
    whole_s = math.fsum(seconds for block in blocks for seconds in block.wall_s)
    per_token = _ms_per_token(blocks)
    return BatchCell(
        batch=(blocks or failed)[0].batch,
        turns=len(turns),
        speedup=_speedup(blocks, vanilla),
        tok_per_s=ratio(sum(tokens for tokens, _ in full) or None, full_s),
        tok_per_s_whole=ratio(sum(turn.decode_tokens for turn in turns) or None, whole_s),
        full_share=ratio(full_s, whole_s),
        ms_per_token=finite(float(per_token.mean())) if len(per_token) else None,
        ms_per_token_p50=finite(float(np.quantile(per_token, 0.5))) if len(per_token) else None,
        ms_per_token_p99=finite(float(np.quantile(per_token, 0.99))) if len(per_token) else None,
        compression_rate=compression_rate(turns),
        accepted=ratio(sum(sum(t.per_step_accepted) for t in turns), sum(sum(t.per_step_drafted) for t in turns)),
        ttft_s=mean(turn.prefill_s for turn in turns),
        lossless=lossless_counts(turns) if lossless else None,
        failed=len(failed),
        error=str(failed[0].error) if failed else "",
        predicted=predicted_speedup(blocks, costs),
    )


def predicted_speedup(blocks: Sequence[Block], costs: PassCosts | None) -> float | None:
    """Throughput over vanilla's, from costs measured before the batches and the steps of their full waves.

    A wave costs draft · calls + shallow · (depth + 1) + verify(rows) + rest in vanilla steps of the batch: calls and
    depth are the most of any sequence, as all go on together, and rows the mean over the sequences. Verify is linear
    between the measured widths; where a wave was wider than these, nothing is predicted.
    """
    if costs is None:
        return None
    widths = sorted(int(width) for width in costs["verify"])
    verify = [costs["verify"][str(width)] for width in widths]
    tokens, cost = 0, 0.0
    for block in blocks:
        for steps in block.shapes():
            if len(steps) < block.batch:
                continue
            rows, depths, calls, emitted = zip(*steps, strict=True)
            wide = sum(rows) / block.batch
            if wide > widths[-1]:
                return None
            tokens += sum(emitted)
            drafting = costs["draft"] * max(calls) + costs["shallow"] * (max(depths) + 1)
            cost += block.batch * (drafting + float(np.interp(wide, widths, verify)) + costs["rest"])
    return ratio(tokens or None, cost)


def _speedup(blocks: Sequence[Block], vanilla: Sequence[Block]) -> Estimate:
    """Throughput over vanilla's, on the blocks that both answered; a block is a cluster of the interval."""
    others = {block.place: block.full() for block in vanilla if block.error is None}
    rows = [[*block.full(), *others[block.place]] for block in blocks if block.place in others]
    return stats.estimates([np.array(rows, dtype=np.float64)])["ratio_of_sums"] if rows else Estimate()


def _ms_per_token(blocks: Sequence[Block]) -> stats.Array:
    """Of each token of full waves, the time from one to the next: its step's, over the tokens of the step."""
    times = [
        1000 * block.wall_s[wave] / emitted
        for block in blocks
        for wave, emitted in block.steps()
        if block.is_full(wave)
        for _ in range(emitted)
    ]
    return np.array(times, dtype=np.float64)


def crossover(curve: Sequence[tuple[int, float | None]]) -> float | None:
    """Return the batch size at which a curve of speedups first falls below 1: linear over the logarithm between sizes.

    The smallest size where it is below 1 from the start; None where it never is.
    """
    known = [(batch, value) for batch, value in curve if value is not None]
    if known and known[0][1] < 1:
        return float(known[0][0])
    for (low, above), (high, below) in itertools.pairwise(known):
        if below < 1:
            return float(low * (high / low) ** ((above - 1) / (above - below)))
    return None
