"""A run against another one of the same questions: better, the same, worse, or inconclusive. Pure: no torch.

Two kinds of evidence:

- *Counters* (tokens per step, drafted tokens, losslessness) do not depend on how fast a machine is today. With the same
  measured costs they repeat exactly on one machine, so any difference is the code's; on another one ties of the target
  are resolved differently, which moves CR by up to a tolerance. Where costs were measured again and differ, drafting
  differs with them: a change beyond the tolerance is then inconclusive.
- *Times* are evidence about the code only where both runs were interleaved on one machine (as by `gate`: their records
  share `provenance["interleaved"]`). Then each method's time per token is compared, vanilla's too: a faster vanilla
  lowers every speedup and is no regression. Of runs made apart only speedups can be compared, each over vanilla in its
  own run. They are inconclusive where a machine was busy, the machines differ, or other costs led to other drafts.

The verdict on a method is the one over all tasks; tasks inform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.errors import UserError
from bench.figures import axis, breakdown, comparable, metrics, stats
from bench.figures.comparable import Pair, check_comparable
from bench.figures.comparison import ComparedMethod, ComparedTask, Comparison, Metric, Side
from bench.figures.facts import PassCosts, is_dirty
from bench.figures.metrics import OVERALL
from bench.figures.records import Run, Turn
from bench.figures.rules import ANSWERS, Rules
from bench.figures.verdicts import (
    SAME,
    UNKNOWN,
    WORSE,
    counter,
    decode_units,
    fault,
    judge,
    new_metric,
    per_unit,
    prefill_units,
    settle,
    time_change,
)

DECODE, PREFILL, SPEEDUP = "time per token, ms", "prefill per prompt token, ms", "decode speedup"
FLOOR = "decode speedup against its floor"
MODELLED = "speedup at base's costs"
DRAFTED, CALLS = "drafted per step", "draft runs per step"
FAILED, DIFFERENT, UNAUDITED = "failed answers", "answers not vanilla's", "answers not audited any more"
OTHER_TEXT, MISSING = "answers unlike base's", "answers"
NOT_INTERLEAVED = (
    "The runs were not interleaved on one machine, so their times are no evidence about the code: speedups are "
    "compared, each over vanilla in its own run. `gate` compares times."
)
_WINDOWS = 2  # of CTAR that are shown

Records = tuple[Run, Sequence[Turn]]


def compare(base: Records, new: Records, rules: Rules | None = None) -> Comparison:
    """Everything about a change.

    Raises:
        UserError: the runs are of different things (and nobody said that this is meant), or share no turn.

    """
    rules = rules or Rules()
    base, new = ((run, axis.at_first(run, turns)) for run, turns in (base, new))
    made = _Comparison(base, new, rules)
    warnings = check_comparable(base[0], new[0], rules, made.asked)
    if not made.asked:
        raise UserError(f"runs {base[0].run_id} and {new[0].run_id} have no method and question in common")
    compared = Comparison(
        base=_side(base[0]),
        new=_side(new[0]),
        interleaved=made.interleaved,
        same_machine=made.same_machine,
        rules=dataclasses.replace(rules, tolerance=0.0 if made.same_machine else rules.tolerance),
        questions=len({a.question_id for a, _ in made.asked}),
        warnings=[*warnings, *made.warnings()],
        methods={label: made.method(label) for label in base[0].methods},
    )
    settle(compared)
    return compared


@dataclass
class _Comparison:
    """What a comparison works with."""

    base: Records
    new: Records
    rules: Rules

    def __post_init__(self) -> None:
        self.interleaved = _interleaved(self.base[0], self.new[0])
        self.same_machine = comparable.same_machine(self.base[0], self.new[0])
        self.baseline = metrics.vanilla_name(self.base[0])
        self.asked = _common(self.base[1], self.new[1])
        self.doubts = [] if self.interleaved else comparable.doubts(self.base[0], self.new[0], self.asked)
        self.kept = _finished(self.asked)
        self.other_text = {
            a.question_id for a, b in self.kept if a.method == self.baseline and a.token_ids != b.token_ids
        }

    def warnings(self) -> list[str]:
        """What a reader must know before the figures."""
        found = [] if self.interleaved else [NOT_INTERLEAVED]
        for side, (run, _) in (("base", self.base), ("new", self.new)):
            if not run.complete:
                found.append(f"the run of {side} was interrupted")
        common = {a.question_id for a, _ in self.asked}
        for side, (_, turns) in (("base", self.base), ("new", self.new)):
            there = {turn.question_id for turn in turns}
            if there - common:
                found.append(f"{len(common)} of the {len(there)} questions of {side} are compared")
        for label in self.new[0].methods.keys() - self.base[0].methods.keys():
            found.append(f"{label} ran in new only: it is not compared")
        if self.other_text:
            found.append(
                f"vanilla answers {len(self.other_text)} questions differently in new; they are left out of the "
                "counters of all methods"
            )
        found += [f"speedups are inconclusive: {reason}" for reason in self.doubts]
        return [*found, *(text for label in self.base[0].methods for text in self._settings(label))]

    def _settings(self, label: str) -> list[str]:
        """How a method was set up differently in new."""
        if label not in self.new[0].methods:
            return []
        before, now = (run.methods[label].ran for run, _ in (self.base, self.new))
        knobs = comparable.changed_knobs(before, now)
        found = [f"{label} ran with other knobs in new: {', '.join(knobs)}"] if knobs else []
        if not self.same_costs(label):
            effect = "" if self.drafts_alike(label) else ", and it drafted differently: its speedup is inconclusive"
            found.append(
                f"{label} measured other forward-pass costs in new{effect}; its counters get a tolerance of "
                f"{self.rules.tolerance:.1%}, and a larger change is inconclusive"
            )
        return found

    def same_costs(self, label: str) -> bool:
        """Return whether a method drafted by the same forward-pass costs in both runs."""
        before, now = (comparable.recorded_costs(run.methods[label].ran) for run, _ in (self.base, self.new))
        return before == now

    def exact(self, label: str) -> bool:
        """Return whether equal code would give equal counters."""
        return self.same_machine and self.same_costs(label)

    def drafts_alike(self, label: str) -> bool:
        """Return whether a method proposed the same in both runs, where vanilla answered the same."""
        return comparable.drafted_alike(
            [pair for pair in self.kept if pair[0].method == label and pair[0].question_id not in self.other_text]
        )

    def method(self, label: str) -> ComparedMethod:
        """A method's metrics on each task and overall; inconclusive where new does not have it."""
        kind = self.base[0].methods[label].kind
        asked = [pair for pair in self.asked if pair[0].method == label]
        if not asked:
            count = sum(turn.method == label for turn in self.base[1])
            return ComparedMethod(kind, {OVERALL: ComparedTask({MISSING: new_metric(count, 0, verdict=UNKNOWN)})})
        tasks = metrics.ordered_tasks(pair[0].task for pair in asked)
        groups = {task: [task] for task in tasks} | {OVERALL: tasks}
        return ComparedMethod(kind, {name: ComparedTask(self._cell(label, asked, of)) for name, of in groups.items()})

    def _cell(self, label: str, asked: list[Pair], tasks: list[str]) -> dict[str, Metric]:
        kind = self.base[0].methods[label].kind
        by_task = [self._turns(label, task) for task in tasks]
        found = _times(by_task) if self.interleaved else {}
        if label != self.baseline:
            beside = [self._turns(self.baseline, task) for task in tasks]
            found |= _speedups(by_task, beside, counts=not self.interleaved and kind != "peer")
            if self.doubts or not (self.same_costs(label) or self.drafts_alike(label)):
                found[SPEEDUP].verdict = UNKNOWN
        if kind != "peer":
            found |= self._counters(label, by_task)
        members = [pair for pair in asked if pair[0].task in tasks]
        found[FAILED] = fault(members, lambda turn: turn.error is not None)
        if label == self.baseline:
            found[OTHER_TEXT] = self._other_text(by_task)
        else:
            found |= _audits(members)
        for name, metric in found.items():
            if not metric.verdict:
                effect = self.rules.prefill_effect if name == PREFILL else self.rules.effect
                metric.verdict = judge(metric.change, effect, more_is_worse=metric.more_is_worse)
        return found

    def _turns(self, label: str, task: str) -> list[Pair]:
        return [pair for pair in self.kept if pair[0].method == label and pair[0].task == task]

    def _other_text(self, tasks: list[list[Pair]]) -> Metric:
        """Vanilla's answers that changed: audits are against vanilla, and would not see a fault that hits it too."""
        count = sum(pair[0].token_ids != pair[1].token_ids for task in tasks for pair in task)
        counts = self.exact(self.baseline) and axis.sampling(self.base[0]) is None and ANSWERS not in self.rules.allow
        return new_metric(0, count, verdict=WORSE if count else SAME, counts=counts)

    def _counters(self, label: str, tasks: list[list[Pair]]) -> dict[str, Metric]:
        """CR, CTAR and what they take: drafts and draft runs a step, and the speedup that base's costs make of all."""
        tolerance = 0.0 if self.exact(label) else self.rules.tolerance
        same = [[pair for pair in task if pair[0].question_id not in self.other_text] for task in tasks]
        sides = [[[pair[side] for pair in task] for task in same] for side in (0, 1)]
        costs = self.base[0].methods[label].costs
        found = {
            "CR": _mean_counter(sides, metrics.compression_rate, tolerance, more_is_worse=False),
            **{
                f"CTAR({w})": _mean_counter(sides, _ctar(w), tolerance, more_is_worse=False, counts=False)
                for w in range(1, _WINDOWS + 1)
            },
            DRAFTED: _mean_counter(sides, _per_step("per_step_drafted"), tolerance, counts=False),
            CALLS: _mean_counter(sides, _per_step("per_step_calls"), tolerance, counts=False),
            MODELLED: _mean_counter(sides, lambda turns: _modelled(turns, costs), tolerance, more_is_worse=False),
        }
        known = {name: metric for name, metric in found.items() if metric is not None}
        for metric in known.values():
            if not self.same_costs(label) and metric.verdict != SAME:  # the costs may have caused it, not the code
                metric.verdict = UNKNOWN
        if MODELLED in known and known[MODELLED].new is not None:
            # More drafts may raise CR and cost more than that: at base's costs the two become one figure.
            known["CR"].counts = False
        else:
            for name in known.keys() & {DRAFTED, CALLS}:
                known[name].counts = True
        return known


def _interleaved(base: Run, new: Run) -> bool:
    mark = base.provenance.get("interleaved")
    return mark is not None and mark == new.provenance.get("interleaved")


def _common(base: Sequence[Turn], new: Sequence[Turn]) -> list[Pair]:
    """Turns that both runs have, by method, question, turn and round."""
    found = {(t.method, t.question_id, t.turn, t.round): t for t in new}
    keyed = [(turn, (turn.method, turn.question_id, turn.turn, turn.round)) for turn in base]
    return [(turn, found[key]) for turn, key in keyed if key in found]


def _finished(pairs: list[Pair]) -> list[Pair]:
    """Without the questions that a method failed on either side: what is left of them is another prompt's."""
    failed = {(a.method, a.question_id) for a, b in pairs if a.error is not None or b.error is not None}
    return [pair for pair in pairs if (pair[0].method, pair[0].question_id) not in failed]


def _times(tasks: list[list[Pair]]) -> dict[str, Metric]:
    """Time per token of decoding and per prompt token of the prefill, new over base, paired by question."""
    decode, prefill = ([_sums(task, of) for task in tasks] for of in (decode_units, prefill_units))
    return {
        DECODE: new_metric(*per_unit(decode), time_change(decode)),
        PREFILL: new_metric(*per_unit(prefill), time_change(prefill)),
    }


def _sums(pairs: list[Pair], of: Callable[[Turn], tuple[float, int]]) -> stats.Array:
    """[questions, 4]: units and seconds of new, units and seconds of base, as `stats.estimates` takes them."""
    sums = {question: np.zeros(4) for question in sorted({base.question_id for base, _ in pairs})}
    for base, new in pairs:
        (base_s, base_units), (new_s, new_units) = of(base), of(new)
        sums[base.question_id] += np.array([new_units, new_s, base_units, base_s])
    return np.array(list(sums.values())).reshape(-1, 4)


def _speedups(tasks: list[list[Pair]], vanilla: list[list[Pair]], *, counts: bool) -> dict[str, Metric]:
    """Decode speedup over the vanilla beside it, and new's over base's, paired by question."""
    values, ratios = [], []
    for own, beside in zip(tasks, vanilla, strict=True):
        sides = [_question_speedups([p[i] for p in own], [p[i] for p in beside]) for i in (0, 1)]
        shared = sorted(sides[0].keys() & sides[1].keys())
        # In the shape that the estimator takes: one token in so many seconds on either side.
        ratios.append(np.array([[1.0, 1 / sides[1][q], 1.0, 1 / sides[0][q]] for q in shared]).reshape(-1, 4))
        values.append([_speedup(own, beside, set(shared), side) for side in (0, 1)])
    change = stats.estimates(ratios)["geometric"]
    base, new = (breakdown.mean(value[side] for value in values) for side in (0, 1))
    return {SPEEDUP: new_metric(base, new, change, counts=counts, more_is_worse=False)}


def _speedup(own: list[Pair], beside: list[Pair], questions: set[int], side: int) -> float | None:
    turns = ([pair[side] for pair in pairs if pair[side].question_id in questions] for pairs in (own, beside))
    return breakdown.speedup(*turns)


def _question_speedups(turns: list[Turn], vanilla: list[Turn]) -> dict[int, float]:
    questions = {turn.question_id for turn in turns}
    found = {
        question: breakdown.speedup(
            [t for t in turns if t.question_id == question], [t for t in vanilla if t.question_id == question]
        )
        for question in questions
    }
    return {question: value for question, value in found.items() if value}


def _mean_counter(
    sides: list[list[list[Turn]]], of: Callable[[Sequence[Turn]], float | None], tolerance: float, **more: Any
) -> Metric | None:
    """A counter over the tasks that base knows it of: their unweighted mean. None where base does not know it at all.

    Where new does not know it of one of these tasks, new's is None and the metric is inconclusive.
    """
    known = [(value, of(new)) for base, new in zip(*sides, strict=True) if (value := of(base)) is not None]
    if not known:
        return None
    base, new = (breakdown.mean(values) for values in zip(*known, strict=True))
    if any(value is None for _, value in known) or base is None or new is None:
        return new_metric(base, None, verdict=UNKNOWN, **more)
    return counter(base, new, tolerance, **more)


def _ctar(window: int) -> Callable[[Sequence[Turn]], float | None]:
    return lambda turns: metrics.ctar(turns, window)[-1]


def _per_step(key: str) -> Callable[[Sequence[Turn]], float | None]:
    def mean(turns: Sequence[Turn]) -> float | None:
        values = [value for turn in turns for value in getattr(turn, key)]
        return breakdown.ratio(sum(values), len(values))

    return mean


def _modelled(turns: Sequence[Turn], costs: PassCosts | None) -> float | None:
    return breakdown.ratio(metrics.compression_rate(turns), breakdown.predicted_step_cost(turns, costs))


def _audits(pairs: list[Pair]) -> dict[str, Metric]:
    """Answers that are not vanilla's beyond rounding, and those that are no longer checked."""
    checked = [pair for pair in pairs if pair[0].audit is not None]
    return {
        DIFFERENT: fault(pairs, lambda turn: turn.audit is not None and turn.audit.verdict == "different"),
        UNAUDITED: fault(checked, lambda turn: turn.audit is None and turn.error is None),
    }


def _side(run: Run) -> Side:
    return Side(
        run.run_id,
        commit=run.provenance.get("gated_commit") or run.provenance.get("commit"),
        dirty=is_dirty(run.provenance),
        started=run.provenance.get("started"),
        model=run.model.get("name"),
        questions=run.dataset.get("name"),
        dtype=run.dtype,
        device=run.machine.name,
    )
