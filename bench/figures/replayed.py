"""What replayed steps would have cost in the run whose answers they were replayed on: predictions. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from bench.figures import breakdown, hindsight, metrics
from bench.figures.axis import at_first
from bench.figures.facts import PassCosts
from bench.figures.records import Run, Turn
from bench.figures.summary import OVERALL, Hindsight

_NO_LAYERS = 0.005  # vanilla steps: what timing no layers at all may seem to take


@dataclass(frozen=True)
class Figures:
    """A method on a task, or overall: sums of counts, and the tasks' unweighted mean of the rest."""

    turns: int
    steps: int
    drafted: int
    accepted: int
    compression_rate: float | None
    step_cost: float | None  # predicted, in vanilla steps
    speedup: float | None  # predicted


@dataclass(frozen=True)
class Replayed:
    """A method on all recorded answers."""

    label: str
    memory: str
    turns: list[Turn]  # their `decode_s` is what drafting took here
    costs: PassCosts | None  # of its steps
    tasks: dict[str, Figures]  # `overall` last


def costs_of(run: Run, label: str = "") -> tuple[PassCosts | None, str]:
    """Return the costs of a vanilla step over n tokens by a run's record, and whose: those of `label` if it took part.

    Of a method that verifies from an exit layer on, only the layers above it were measured: they are scaled to all.
    """
    base = run.methods[metrics.vanilla_name(run)].costs
    known = {name: costs for name, info in run.methods.items() if info.kind == "method" and _whole(costs := info.costs)}
    if not _whole(base) or not known:
        return None, ""
    above = {name: costs["shallow"] >= _NO_LAYERS for name, costs in known.items()}
    name = max(known, key=lambda one: (not above[one], one == label, max(map(int, known[one]["verify"]))))
    found = known[name]
    scale = base["verify"]["1"] / found["verify"]["1"] if above[name] else 1.0
    about = f"{name}'s" + (", whose layers above the exit are scaled to all layers" if above[name] else "")
    verify = {n: cost * scale for n, cost in found["verify"].items()}
    return PassCosts(shallow=0.0, draft=0.0, verify=verify, rest=base["rest"]), about


def _whole(costs: PassCosts | None) -> TypeGuard[PassCosts]:
    """Return whether costs can be scaled: not those of a damaged record."""
    return costs is not None and costs["rest"] < 1 and costs["verify"].get("1", 0) > 0


def weighed(label: str, memory: str, turns: list[Turn], run: Run, recorded: Sequence[Turn]) -> Replayed:
    """Return a method's replayed turns with their predictions; `recorded`: vanilla's."""
    costs, _ = costs_of(run, label)
    step_s = _per_step_s(recorded)
    if costs is not None and step_s:
        costs["rest"] += (_per_step_s(turns) or 0.0) / step_s
    return Replayed(label, memory, turns, costs, dict(_by_task(turns, costs)))


def best_choice(run: Run, turns: Sequence[Turn], found: Sequence[Replayed]) -> dict[str, Hindsight]:
    """Return the bounds of choosing among all steps, the replayed ones and those of the run's other methods."""
    turns, baseline = at_first(run, turns), metrics.vanilla_name(run)
    labels = {one.label for one in found}
    costs = {name: info.costs for name, info in run.methods.items() if name not in labels}
    every = [turn for turn in turns if turn.error is None and turn.method not in labels]
    every += [turn for one in found for turn in one.turns]
    costs |= {one.label: one.costs for one in found}
    first = {(turn.question_id, turn.turn, turn.round) for turn in found[0].turns}
    every = [turn for turn in every if (turn.question_id, turn.turn, turn.round) in first]
    return hindsight.bounds(costs, {name: metrics.pairs(every, name, baseline) for name in costs})


def _per_step_s(turns: Sequence[Turn]) -> float | None:
    return breakdown.ratio(sum(turn.decode_s for turn in turns), sum(len(turn.per_step_emitted) for turn in turns))


def _by_task(turns: Sequence[Turn], costs: PassCosts | None) -> Iterator[tuple[str, Figures]]:
    tasks = metrics.ordered_tasks(turn.task for turn in turns)
    found = {task: _figures([turn for turn in turns if turn.task == task], costs) for task in tasks}
    yield from found.items()
    every = found.values()
    sums = {key: sum(getattr(one, key) for one in every) for key in ("turns", "steps", "drafted", "accepted")}
    keys = ("compression_rate", "step_cost", "speedup")
    rate, cost, speedup = (breakdown.mean(getattr(one, key) for one in every) for key in keys)
    if any(one.speedup is None for one in every if one.steps):  # a mean of some tasks is none of all
        cost = speedup = None
    yield OVERALL, Figures(**sums, compression_rate=rate, step_cost=cost, speedup=speedup)


def _figures(turns: Sequence[Turn], costs: PassCosts | None) -> Figures:
    rate, cost = metrics.compression_rate(turns), breakdown.predicted_step_cost(turns, costs)
    keys = ("per_step_drafted", "per_step_accepted")
    drafted, accepted = (sum(map(sum, (getattr(turn, key) for turn in turns))) for key in keys)
    steps = sum(len(turn.per_step_emitted) for turn in turns)
    return Figures(len(turns), steps, drafted, accepted, rate, cost, breakdown.ratio(rate, cost))
