"""The workers of a run: what each of them answered, how fast, and whether they differ by more than noise. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import fdtrc

from bench.figures.breakdown import decode_tok_per_s, ratio
from bench.figures.records import Run, Turn
from bench.figures.summary import WorkerDifference, WorkerFigures
from bench.figures.sums import Pair, question_sums

CLUSTER = {"cluster": "question and worker"}  # over `stats.STATISTICS`
LEVEL = 0.01  # of the chance to call equal workers unlike, for one figure
Unit = tuple[str, str, float]  # of a question: task, worker, log of a figure


def several(turns: Iterable[Turn]) -> bool:
    """Return whether more than one worker answered them."""
    return len({turn.worker for turn in turns}) > 1


def figures(run: Run, paired: Mapping[str, list[Pair]], vanilla: str) -> list[WorkerFigures]:
    """What each worker answered; `paired`: every method's turns with vanilla's."""
    found = []
    for name, worker in run.workers.items():
        own = {label: [pair for pair in pairs if pair[0].worker == name] for label, pairs in paired.items()}
        turns = [turn for turn, _ in own[vanilla]]
        speedups = {
            label: ratio(decode_tok_per_s([turn for turn, _ in pairs]), decode_tok_per_s([base for _, base in pairs]))
            for label, pairs in own.items()
            if run.methods[label].kind == "method"
        }
        found.append(
            WorkerFigures(
                name,
                worker.host,
                str(worker.machine),
                worker.device,
                worker.machine.threads,
                len({(turn.question_id, turn.round) for turn in turns}),
                decode_tok_per_s(turns),
                speedups,
            )
        )
    return found


def differences(run: Run, paired: Mapping[str, list[Pair]], vanilla: str) -> list[WorkerDifference]:
    """Vanilla's speed and the methods' speedups, where workers differ in them by more than their questions explain."""
    found = []
    for label, pairs in paired.items():
        if run.methods[label].kind != "peer" and (found_here := _difference(list(_units(pairs, label == vanilla)))):
            slow, fast, factor, chance = found_here
            found.append(WorkerDifference(label, slow, fast, factor, chance))
    return found


def _units(pairs: Sequence[Pair], speed: bool) -> Iterable[Unit]:
    """Of each question and worker: the log of vanilla's `speed`, or of the method's speedup over it."""
    for worker in sorted({turn.worker for turn, _ in pairs}):
        for task in sorted({turn.task for turn, _ in pairs}):
            own = [pair for pair in pairs if pair[0].worker == worker and pair[0].task == task]
            for tokens, seconds, tokens_vanilla, seconds_vanilla in question_sums(own, prefilled=False):
                if min(tokens, seconds, tokens_vanilla, seconds_vanilla) > 0:
                    rate = tokens_vanilla / seconds_vanilla
                    yield task, worker, math.log(rate if speed else tokens / seconds / rate)


def _difference(units: Sequence[Unit]) -> tuple[str, str, float, float] | None:
    """The slowest and the fastest worker, the factor between them, and the chance of such differences by noise alone.

    None where this is above LEVEL. An F test of the workers' effects, next to those of the tasks, on logs by question.
    """
    workers = sorted({worker for _, worker, _ in units})
    tasks = sorted({task for task, _, _ in units})
    values = np.array([value for *_, value in units])
    by_task = np.array([[task == one for one in tasks] for task, _, _ in units], dtype=float)
    by_worker = np.array([[worker == one for one in workers] for _, worker, _ in units], dtype=float)
    free = len(values) - len(tasks) - len(workers) + 1
    if len(workers) < 2 or free < 2:
        return None
    without, _ = _left_over(by_task, values)
    left, effects = _left_over(np.hstack([by_task, by_worker]), values)
    if left <= 0:
        return None
    chance = float(fdtrc(len(workers) - 1, free, (without - left) / (len(workers) - 1) / (left / free)))
    of_workers = effects[len(tasks) :]
    slow, fast = int(of_workers.argmin()), int(of_workers.argmax())
    factor = math.exp(of_workers[fast] - of_workers[slow])
    return (workers[slow], workers[fast], factor, chance) if chance < LEVEL else None


def _left_over(design: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """The sum of squares that a linear model leaves, and its coefficients."""
    fitted = np.linalg.lstsq(design, values, rcond=None)[0]
    return float(((values - design @ fitted) ** 2).sum()), fitted
