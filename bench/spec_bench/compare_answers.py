"""Answer files in Spec-Bench's format against each other: what they tell of a change, which is less than runs do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.errors import UserError
from bench.figures import breakdown, metrics, verdicts
from bench.figures.compare import FAILED
from bench.figures.comparison import ComparedMethod, ComparedTask, Comparison, Metric, Side
from bench.figures.metrics import OVERALL
from bench.figures.rules import Rules
from bench.spec_bench.exchange import ForeignAnswer, mean_accepted, read_answers
from bench.spec_bench.foreign import FAILED_TEXT

ACCEPTED, TIME = "mean accepted tokens", "time per token, prefill included, ms"
LIMITS = (
    "Answer files do not say where and when they were made, so that their times only inform; losslessness, drafts and "
    "the prefill's share are not in them. Questions that either side failed are left out."
)
Pair = tuple[ForeignAnswer, ForeignAnswer]  # base's answer, then new's


def compare_answers(base_path: Path, new_path: Path, rules: Rules) -> Comparison:
    """One method's answers of two versions, as `compare.compare` has it.

    Raises:
        UserError: a malformed file, or no question in common.

    """
    base, new = read_answers(base_path), read_answers(new_path)
    asked = [(base[i], new[i]) for i in base if i in new]
    if not asked:
        raise UserError(f"{base_path} and {new_path} have no question in common")
    pairs = [pair for pair in asked if not any(map(_failed, pair))]
    unequal = sum(a.texts != b.texts for a, b in pairs)
    tasks = metrics.ordered_tasks(answer.task for answer, _ in asked)
    groups = {task: [task] for task in tasks} | {OVERALL: tasks}
    cells = {name: ComparedTask(_metrics(asked, pairs, members, rules)) for name, members in groups.items()}
    warnings = [LIMITS, *([f"{unequal} of {len(pairs)} answers have another text in new"] if unequal else [])]
    models = [next(iter(answers.values())).model_id for answers in (base, new)]
    if models[0] != models[1]:
        warnings.append(f"the files name different models: {models[0]} and {models[1]}")
    compared = Comparison(
        base=_identity(base_path, base),
        new=_identity(new_path, new),
        interleaved=False,
        same_machine=False,
        rules=rules,
        questions=len(asked),
        warnings=warnings,
        methods={new_path.stem: ComparedMethod("method", cells)},
    )
    verdicts.settle(compared)
    return compared


def _metrics(asked: list[Pair], pairs: list[Pair], tasks: Sequence[str], rules: Rules) -> dict[str, Metric]:
    by_task = [[pair for pair in pairs if pair[0].task == task] for task in tasks]
    accepted = [breakdown.mean(mean_accepted([pair[side] for pair in task])[0] for task in by_task) for side in (0, 1)]
    sums = [np.array([_sums(pair) for pair in task]).reshape(-1, 4) for task in by_task]
    change = verdicts.time_change(sums)
    verdict = verdicts.judge(change, rules.effect, more_is_worse=True)
    found = {
        TIME: verdicts.new_metric(*verdicts.per_unit(sums), change, verdict=verdict, counts=False),
        FAILED: verdicts.fault([pair for pair in asked if pair[0].task in tasks], _failed),
    }
    if accepted[0] is not None and accepted[1] is not None:
        found[ACCEPTED] = verdicts.counter(accepted[0], accepted[1], rules.tolerance, more_is_worse=False)
    return found


def _sums(pair: Pair) -> list[float]:
    """Tokens and seconds of new, then of base."""
    base, new = pair
    return [sum(new.new_tokens), sum(new.wall_s), sum(base.new_tokens), sum(base.wall_s)]


def _failed(answer: ForeignAnswer) -> bool:
    return FAILED_TEXT in answer.texts


def _identity(path: Path, answers: dict[int, ForeignAnswer]) -> Side:
    return Side(path.name, model=next(iter(answers.values())).model_id)
