"""A synthetic run with everything that a report can show, for the tests of the HTML report. No model, no figures."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

from bench.figures.machine import Machine
from bench.figures.metrics import TASKS, summarize
from bench.figures.records import Audit, MethodInfo, Run, Turn
from bench.figures.summary import OVERALL, Cell, ContextBin, Estimate, Predicted, StepTime, Summary

HOSTILE = "<script>alert(1)</script>"
SENTENCES = (
    "The ocean is warm, and the waves follow the wind.\n\nIn the early morning fishers leave the harbour, and they come"
    " back at noon with their catch. A visitor may walk along the cliffs to the lighthouse, where a small museum shows"
    " maps of the coast.<|end|>"
)
TEXT = re.findall(r"<.+>|\n| ?\w+|[.,]", SENTENCES)
LOSERS = [" sea", " hot", " but", "\n"]
TOKEN_TEXTS: dict[int | str, str] = {str(i): text for i, text in enumerate([*TEXT, *LOSERS])}
STEPS = ((0, 1), (2, 3), (1, 2), (3, 4), (0, 1), (2, 3))  # accepted, emitted; repeated to the answer's end
KANGAROO, LOSSY, PEER = "kangaroo", "medusa:accept=typical", "hf-generate"


def run(**more: Any) -> Run:
    """Vanilla, a lossless and a lossy method, and a peer."""
    values: dict[str, Any] = {
        "run_id": "20260101-000000-kangaroo",
        "command": "roobench --method kangaroo",
        "model": {"name": "tiny-model", "sha256": "ab" * 32, "parameters": 1_000_000},
        "dataset": {"name": "mini", "sha256": "cd" * 32, "questions": 12, "tasks": list(TASKS)},
        "machine": Machine("cpu", "A Processor", 2),
        "dtype": "bfloat16",
        "config": {"limit": 2},
        "methods": {
            "vanilla": MethodInfo("vanilla", True, 0, {}),
            KANGAROO: MethodInfo("method", True, 2_000_000, {"gamma": 6}, {"predicted": {"tree": {"speedup": 1.5}}}),
            LOSSY: MethodInfo("method", False, 4_000_000, {"accept": "typical"}),
            PEER: MethodInfo("peer", True, 0, {}),
        },
        "engine": {"weights": "packed"},
        "provenance": {
            "started": "2026-01-01T00:00:00+00:00",
            "commit": "0123abc",
            "dirty": True,
            "warnings": ["the machine was busy"],
            "sessions": [
                {
                    "started": "2026-01-01",
                    "wall_s": 61.0,
                    "others_share": 0.01,
                    "commit": "a1",
                    "dirty": False,
                    "warnings": [],
                },
                {
                    "started": "2026-01-02",
                    "wall_s": 12.0,
                    "others_share": 0.25,
                    "commit": "b2",
                    "dirty": True,
                    "warnings": ["hot"],
                },
            ],
        },
        "wall_s": 73.0,
    }
    return Run(**values | more)


def speculated(method: str, shared: dict[str, Any], ids: list[int], *, confident: bool) -> Turn:
    """An answer in the steps of `STEPS`; every other step rejected a draft, the first of them two."""
    turn = Turn(method, **shared, token_ids=list(ids), prefill_s=0.1, decode_s=1.3, finish="eos")
    left = len(ids) - 1
    for number, (accepted, emitted) in enumerate(itertools.cycle(STEPS)):
        if not left:
            break
        emitted = min(emitted, left)
        accepted = min(accepted, emitted)
        turn.per_step_drafted.append(accepted + 1)
        turn.per_step_accepted.append(accepted)
        turn.per_step_emitted.append(emitted)
        turn.per_step_depth.append(accepted + 1)
        turn.per_step_calls.append(accepted + 1)
        losers = [] if number % 2 else [len(TEXT) + number % len(LOSERS)]
        turn.per_step_rejected.append([*losers, len(TEXT) + 3] if number == 0 else losers)
        left -= emitted
    if confident:
        accepted_tokens = sum(turn.per_step_accepted)
        turn.accepted_confidence = [(i % 10) / 10 + 0.05 for i in range(accepted_tokens)]
        turn.rejected_confidence = [0.31] * sum(map(len, turn.per_step_rejected))
    return turn


def turns() -> list[Turn]:
    """Two questions a task; Kangaroo leaves vanilla's answer once, by a tie."""
    found = []
    ids = list(range(len(TEXT)))
    for place, (task, again) in enumerate(itertools.product(TASKS, range(2))):
        shared = {"question_id": 81 + place, "task": task, "category": task, "turn": 0, "round": 0}
        base = Turn("vanilla", **shared, token_ids=ids, prefill_s=0.1, decode_s=2.0 + 0.1 * again, finish="eos")
        base.per_step_emitted = [1] * (len(ids) - 1)
        base.per_step_drafted = base.per_step_accepted = [0] * (len(ids) - 1)
        ours = speculated(KANGAROO, shared, ids, confident=True)
        ours.audit = Audit("identical")
        if place == 3:
            ours.token_ids[20] = len(TEXT)
            ours.audit = Audit("numerical", 20, len(TEXT), 20, 0.001, 0.004)
        lossy = speculated(LOSSY, shared, ids, confident=False)
        peer = Turn(PEER, **shared, token_ids=ids, prefill_s=0.1, decode_s=3.0, finish="eos", audit=Audit("identical"))
        found += [base, ours, lossy, peer]
    return found


def summary(record: Run, records: list[Turn]) -> Summary:
    """As `summarize` makes it, with every figure that it may hold: round ones, to be found again in the page."""
    made = copy.deepcopy(summarize(record, records))
    for entry in made.methods.values():
        for task, cell in entry.tasks.items():
            for name, value in _figures(cell, entry.kind, task).items():
                setattr(cell, name, value)
    return made


def _figures(cell: Cell, kind: str, task: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for estimator in ("", "_mean_rates", "_geometric"):
        for clock in ("decode", "total"):
            value = getattr(cell, f"speedup_{clock}").value
            found[f"speedup_{clock}{estimator}"] = Estimate(value, value * 0.93, value * 1.06)
    ours = kind == "method"
    found["step_time"] = StepTime(0.21, 0.98, 0.02, 1.21) if ours else None
    found["predicted"] = Predicted(1.25, 1.4) if ours else None
    found["prediction_error"] = 0.1 if ours and task == OVERALL else 0.01 if ours else None
    found["emitted_histogram"] = [40, 30, 20, 10] if ours else []
    found["confidence"] = None
    found["window_ctar"] = [0.61, 0.32, 0.13] if ours else None
    bins = [ContextBin(100.0 * n, 30.0 + n, 40.0 + n, 5) for n in (1, 2)]
    found["context"] = bins if ours else []
    found["numerical_rate"] = 1 / 12 if ours else None
    return found


def copied(turn: Turn, method: str) -> Turn:
    """The same answer by another method."""
    made = copy.deepcopy(turn)
    made.method = method
    return made
