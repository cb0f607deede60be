"""Is what a lossless method said vanilla's answer, or recorded as not being it? One by one, and in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.figures.axis import sampling
from bench.figures.checks import own_baseline
from bench.figures.findings import Findings, key_of, pairs_at, where
from bench.figures.metrics import vanilla_name
from bench.figures.records import MethodInfo, Run, Turn
from bench.figures.waves import Block


def check_output(run: Run, turns: Sequence[Turn], found: Findings) -> None:
    """Greedy answers of lossless methods are vanilla's, or are recorded as not being it."""
    vanilla = vanilla_name(run)
    for name, info in run.methods.items():
        if name == vanilla or not info.lossless:
            continue
        for turn, base in pairs_at(run, turns, name, own_baseline(run, name) or vanilla):
            if sampling(run, turn.at) is None:
                for kind, said in _audit(turn, base, info):
                    found.add(name, kind, f"{where(turn)}: {said}")


def _audit(turn: Turn, base: Turn, info: MethodInfo) -> Iterator[tuple[str, str]]:
    """What is wrong with the audit of a greedy answer."""
    if turn.audit is None:
        yield "audit", "the method is lossless, but nothing compared its answer"
        return
    verdict, equal = turn.audit.verdict, turn.token_ids == base.token_ids
    if (verdict == "identical") != equal:
        yield "verdict", f"recorded as {verdict}, but it {'equals' if equal else 'is not'} {base.method}'s answer"
    elif verdict == "different" and info.kind != "peer":
        yield "different", f"it differs from {base.method}'s answer, but the method is recorded as lossless"
    elif verdict == "numerical" and not _is_tie(turn):
        yield "tie", "recorded as a tie, but the gap of the logits is not known to be within the tolerance"


def _is_tie(turn: Turn) -> bool:
    audit = turn.audit
    if audit is None or audit.gap is None or audit.tolerance is None:
        return False
    return abs(audit.gap) <= audit.tolerance


def check_blocks(run: Run, turns: Sequence[Turn], blocks: Sequence[Block], found: Findings) -> None:
    """Answers in batches are held against vanilla's one by one, and every block is of the questions of vanilla's."""
    vanilla = vanilla_name(run)
    alone = {key_of(turn): turn for turn in turns if turn.method == vanilla}
    asked = {block.place: block for block in blocks if block.method == vanilla and block.error is None}
    for block in blocks:
        for turn in block.turns:
            for kind, said in _served(turn, alone.get(key_of(turn)), run):
                found.add(block.method, f"batch {kind}", f"{block.where}, {where(turn)}: {said}")
        base = asked.get(block.place)
        if base and block.error is None and [*map(key_of, block.turns)] != [*map(key_of, base.turns)]:
            found.add(block.method, "batch asked", f"{block.where}: it does not answer the questions of {vanilla}'s")
    for name in (name for name, info in run.methods.items() if info.kind == "method"):
        there = {block.place for block in blocks if block.method == name}
        for base in (base for place, base in asked.items() if place not in there):
            found.add(name, "batch missing", f"{name} has no block like that of {base.where}")


def _served(turn: Turn, base: Turn | None, run: Run) -> Iterator[tuple[str, str]]:
    """What is wrong with an answer in a batch; `base`: vanilla's alone."""
    info = run.methods[turn.method]
    if base is None:
        yield "alone", "vanilla did not answer it alone"
        return
    if turn.prompt_digest and base.prompt_digest and turn.prompt_digest != base.prompt_digest:
        yield "prompt", "its prompt is not the one that vanilla answered alone"
    if info.lossless and sampling(run) is None:
        yield from _audit(turn, base, info)
