"""A run of fifteen methods of every family and a peer, made up: what a report of many methods looks like."""

from __future__ import annotations

import dataclasses
import random

from bench.figures.metrics import TASKS
from bench.figures.records import Run
from bench.figures.summary import OVERALL, Drafts, Hindsight, Summary
from tests.bench.report.full_summary import rich_summary
from tests.bench.report.helpers import make_run

FAMILY = {
    "kangaroo": "self",
    "medusa": "heads",
    "pld": "text",
    "ngram": "text",
    "sam+kangaroo": "composition",
    "sam": "text",
    "suffix": "text",
    "suffix:memory=run": "text",
    "recycling": "text",
    "lookahead:window=5,ngram=3,pool=64,guess=5": "text",
    "rest": "text",
    "layer-skip": "self",
    "kangaroo:tree": "self",
    "suffix+medusa": "composition",
    "pld+kangaroo:tree": "composition",
}


def fifteen() -> tuple[Run, Summary]:
    rng = random.Random(8)
    names = list(FAMILY)
    rng.shuffle(names)
    summary = rich_summary(tuple(names))
    kinds = {name: entry.kind for name, entry in summary.methods.items() if entry.kind != "vanilla"}
    run = make_run(kinds)
    for name, family in FAMILY.items():
        entry = summary.methods[name]
        entry.family = family
        covered = rng.uniform(0.2, 0.45) if family == "text" and rng.random() < 0.5 else rng.uniform(0.6, 1)
        for cell in entry.tasks.values():
            cell.drafts = Drafts(covered, rng.uniform(1.5, 24), rng.uniform(0.15, 0.7))
            cell.perfect_stopping = cell.predicted.speedup * rng.choice([1.02, 1.05, 1.3])
        run.methods[name] = dataclasses.replace(run.methods[name], family=family)
    summary.hindsight = {task: Hindsight(2.31, 2.6) for task in (*TASKS, OVERALL)}
    return run, summary
