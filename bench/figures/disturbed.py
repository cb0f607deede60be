"""Disturbed turns: other programs took the processors, or a turn stalled. Pure.

They are reported and never dropped: a reader sees which turns they are and what the figures would be without them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median, median_low

from bench.figures.breakdown import speedup
from bench.figures.notable import BusyTurn, BusyTurns, Outlier, WithAndWithout
from bench.figures.records import Run, Turn

BUSY_SHARE = 0.1  # of the processors, used by other programs during a session
BUSY_TURN_SHARE = 0.2  # the same during one turn
MANY_TURNS = 0.01  # of a run's turns on busy processors: its times are then in doubt
STALL = 4.0  # times the usual time for as many tokens
DECISIVE = 0.1  # relative change of a task's speedup by a single turn
_LISTED = 6

Pair = tuple[Turn, Turn]  # a method's turn, then vanilla's


def busy_turns(turns: Iterable[Turn]) -> BusyTurns | None:
    """The turns that were decoded on busy processors; None where no turn was, or nothing is recorded."""
    known = [(turn.others_share, turn) for turn in turns if turn.others_share is not None]
    busy = [(share, turn) for share, turn in known if share > BUSY_TURN_SHARE]
    if not busy:
        return None
    worst = sorted(busy, key=lambda item: -item[0])[:_LISTED]
    by_task = Counter(turn.task for _, turn in busy)
    return BusyTurns(len(busy), len(known), dict(by_task), [BusyTurn(*where(turn), share) for share, turn in worst])


def doubts(run: Run, turns: Iterable[Turn]) -> list[str]:
    """Why the times of a run may be those of a busy machine; none where nothing shows it."""
    share = max((session.get("others_share", 0.0) for session in run.provenance.get("sessions", [])), default=0.0)
    found = [f"other programs used {share:.0%} of the processors"] if share > BUSY_SHARE else []
    busy = busy_turns(turns)
    if busy is not None and busy.turns > MANY_TURNS * busy.of:
        found.append(f"other programs kept the processors busy in {busy.turns} of {busy.of} turns")
    return found


def outliers(paired: Mapping[str, Sequence[Pair]], vanilla: str) -> list[Outlier]:
    """Stalled turns that by themselves change the decode speedup of some method in their task, in order of the turns.

    A turn stalled if it took STALL times as long as its tokens take by the median of all turns of its method.
    `paired`: by method.
    """
    usual_s = {name: _usual_s([turn for turn, _ in pairs]) for name, pairs in paired.items()}
    found: dict[tuple[object, ...], Outlier] = {}
    for name, pairs in paired.items():
        for pair in pairs if name != vanilla else ():
            for turn in pair:
                expected_s = usual_s[turn.method] * turn.decode_tokens
                if not 0 < STALL * expected_s < turn.decode_s:
                    continue
                figures = _with_and_without(pair, [other for other in pairs if other[0].task == turn.task])
                if figures is not None:
                    new = Outlier(*where(turn), turn.decode_s, expected_s, turn.others_share, {})
                    found.setdefault(where(turn), new).speedups[name] = figures
    return list(found.values())


def steady(turn: Turn) -> Turn | None:
    """Return the turn with `decode_s` as if no step had been disturbed; None where steps have no recorded times.

    Each step counts as the median of the turn's steps of its shape: drafts, depth and draft calls. What a turn takes
    outside of drafting and verification stays. Where nothing was disturbed, `decode_s` is the same but for noise.
    """
    if not turn.per_step_s:
        return turn if turn.decode_tokens == 0 else None
    drafted = turn.per_step_drafted
    shapes = zip(drafted, turn.per_step_depth or drafted, turn.per_step_calls or drafted, strict=True)
    by_shape: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for shape, step_s in zip(shapes, turn.per_step_s, strict=True):
        by_shape[shape].append(step_s)
    rest_s = max(0.0, turn.decode_s - sum(turn.per_step_s))
    return replace(turn, decode_s=rest_s + sum(len(alike) * median(alike) for alike in by_shape.values()))


def _usual_s(turns: Sequence[Turn]) -> float:
    """Seconds per decoded token; of two turns the faster one's, since a stall is never fast."""
    rates = [turn.decode_s / turn.decode_tokens for turn in turns if turn.decode_tokens > 0]
    return median_low(rates) if rates else 0.0


def _with_and_without(pair: Pair, task: Sequence[Pair]) -> WithAndWithout | None:
    """The task's decode speedup with and without a pair, where that makes a difference."""
    whole, without = _speedup(task), _speedup([other for other in task if other is not pair])
    if whole is None or (without is not None and abs(whole / without - 1) <= DECISIVE):
        return None
    return WithAndWithout(whole, without)


def _speedup(pairs: Sequence[Pair]) -> float | None:
    return speedup([turn for turn, _ in pairs], [vanilla for _, vanilla in pairs])


def where(turn: Turn) -> tuple[int, str, str, int, int]:
    """A turn's place, as `Where` has it."""
    return turn.question_id, turn.task, turn.method, turn.turn, turn.round
