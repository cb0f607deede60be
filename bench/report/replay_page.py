"""What a replay found, as tables for a terminal. Predictions are labelled so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from bench.figures.breakdown import ratio
from bench.figures.records import Run
from bench.figures.replayed import Figures, Replayed, costs_of
from bench.figures.summary import OVERALL, Hindsight
from bench.report.formats import number, share, times
from bench.report.model import Column, Table
from bench.report.plain import paragraphs
from bench.report.terminal import text_of
from bench.text import visible


def page(run: Run, found: Sequence[Replayed], best: Mapping[str, Hindsight]) -> str:
    """Return the tables, the method with the most tokens per time first; `best`: the bounds of choosing among all."""
    ranked = sorted(found, key=lambda one: -(one.tasks[OVERALL].speedup or one.tasks[OVERALL].compression_rate or 0))
    questions = len({turn.question_id for turn in found[0].turns})
    title = (
        f"Replayed on run {run.run_id}: {questions} questions, {len(found[0].turns)} turns, greedy. No model was run."
    )
    _, whose = costs_of(run)
    about = (
        f"Predicted, not measured: forward-pass costs are {whose}, as the run recorded them, and the time of "
        "drafting is this machine's. Overall is the tasks' mean. The last two rows are upper bounds known only "
        "afterwards: the cheapest way through each answer by steps of these methods and of the run's own, as they were "
        "drafted and without rejected drafts."
        if whose
        else "The run recorded no forward-pass costs of a method, so no speedup can be predicted."
    )
    blocks = [
        paragraphs(title),
        text_of(_steps(ranked)),
        text_of(_by_task("CR", ranked, lambda one: number(one.compression_rate))),
        text_of(_with_best(_by_task("predicted speedup", ranked, lambda one: times(one.speedup)), best))
        if whose
        else "",
        paragraphs(about),
    ]
    return visible("\n\n".join(filter(None, blocks)))


def _steps(found: Sequence[Replayed]) -> Table:
    columns = [
        Column("method", left=True),
        *map(Column, ("steps", "drafts", "accepted", "CR")),
        Column("drafting, ms/step", short="ms/step", group="drafting"),
        Column("replay, ms/question", short="ms/question", group="replay"),
        Column("predicted step cost", short="step cost", group="predicted"),
        Column("predicted speedup", short="speedup", group="predicted"),
    ]
    return Table(columns, [_row(one) for one in found])


def _row(one: Replayed) -> list[str]:
    overall, ms = one.tasks[OVERALL], 1000 * sum(turn.decode_s for turn in one.turns)
    questions, memory = len({turn.question_id for turn in one.turns}), one.memory.partition(":")[0]
    return [
        one.label + (f" (memory: {memory})" if memory != "question" else ""),
        f"{overall.steps:,}",
        f"{overall.drafted:,}",
        share(ratio(overall.accepted, overall.drafted)),
        number(overall.compression_rate),
        number(ratio(ms, overall.steps), 3),
        number(ratio(ms, questions), 1),
        number(overall.step_cost),
        times(overall.speedup),
    ]


def _with_best(table: Table, best: Mapping[str, Hindsight]) -> Table:
    keys = [column.title for column in table.columns[1:]]
    rows = {"best step everywhere": "choice", "and perfect stopping": "both"}
    more = [[name, *(times(getattr(best.get(task), key, None)) for task in keys)] for name, key in rows.items()]
    return dataclasses.replace(table, rows=[*table.rows, *(more if best else ())])


def _by_task(what: str, found: Sequence[Replayed], show: Callable[[Figures], str]) -> Table:
    """One row a method; tasks are called as --tasks spells them, which is short."""
    columns = [Column(f"{what}, by task", left=True), *map(Column, found[0].tasks)]
    return Table(columns, [[one.label, *map(show, one.tasks.values())] for one in found])
