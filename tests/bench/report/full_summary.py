"""A summary with every figure that a run can have, made up but alike to real ones; the same each time."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

from bench.figures import stats
from bench.figures.metrics import TASKS
from bench.figures.summary import OVERALL, AtValue, Axis, Cell, Estimate, Summary
from bench.typed_json import decode_value

EDGES = [i / 20 for i in range(21)]
SIX = (
    "kangaroo",
    "kangaroo:tree",
    "kangaroo:paper",
    "medusa",
    "medusa:tree=mc_sim_7b_63",
    "medusa:accept=typical",
)


def rich_summary(names: tuple[str, ...] = SIX, tasks: tuple[str, ...] = TASKS, *, peer: bool = True) -> Summary:
    """All keys of the schema; methods whose name ends in "typical" are not lossless."""
    numbers = random.Random(4)
    methods: dict[str, Any] = {"vanilla": _entry("vanilla", tasks, numbers, 1.0, 1.0)}
    for place, name in enumerate(names):
        methods[name] = _entry("method", tasks, numbers, 1.3 + 0.13 * place, 1.12 + 0.06 * place)
        methods[name]["lossless"] = not name.endswith("typical")
    for entry in methods.values():
        if not entry["lossless"]:
            for cell in entry["tasks"].values():
                cell["lossless"] = None
    if peer:
        methods["hf-generate"] = _entry("peer", tasks, numbers, 1.0, 1.5)
    value = {
        "schema": 1,
        "run_id": "rich",
        "model": "SmolLM2-135M-Instruct",
        "dataset": {"name": "official", "sha256": "cd" * 32, "questions": 60, "max_new_tokens": 64},
        "device": {"type": "cpu", "name": "AMD EPYC 9B14"},
        "dtype": "float32",
        "sampling": None,
        "complete": True,
        "rounds": 1,
        "excluded_questions": [],
        "failed": [],
        "divergences": [],
        "statistics": dict(stats.STATISTICS),
        "failed_methods": {},
        "against": _against([name for name, entry in methods.items() if entry["kind"] == "method"]),
        "methods": methods,
        "batches": {"vanilla": _batches(0, "vanilla")} | {name: _batches(i, "method") for i, name in enumerate(names)},
        "crossovers": {name: {"measured": 2.0 + 0.3 * i, "predicted": 2.1} for i, name in enumerate(names)},
    }
    return decode_value(Summary, value)


def _batches(place: int, kind: str) -> list[dict[str, Any]]:
    """Batches of 1 to 8, in which a method's gain falls with the size."""
    found = []
    for size in (1, 2, 4, 8):
        speedup = 1.0 if kind == "vanilla" else (1.3 + 0.05 * place) * size**-0.3
        rate = 24.0 * size**0.7 * speedup
        found.append(
            {
                "batch": size,
                "turns": 60,
                "speedup": _estimate(speedup, 0.0 if kind == "vanilla" else 0.04),
                "tok_per_s": rate,
                "tok_per_s_whole": 0.9 * rate,
                "full_share": 0.8,
                "ms_per_token": 1000 * size / rate,
                "ms_per_token_p50": 900 * size / rate,
                "ms_per_token_p99": 2000 * size / rate,
                "compression_rate": 1.4,
                "accepted": 0.6,
                "ttft_s": 0.2,
                "lossless": {"identical": 60, "numerical": 0, "different": 0},
                "predicted": speedup,
            }
        )
    return found


def _against(names: list[str]) -> dict[str, dict[str, Any]]:
    if len(names) < 2:
        return {}
    return {
        a: {b: _estimate((1 + i) / (1 + j), 0.05) for j, b in enumerate(names) if b != a} for i, a in enumerate(names)
    }


def estimate(value: float, half: float) -> Estimate:
    """With an interval of `value` ± `half`."""
    return Estimate(value, value - half, value + half)


def change(cell: Cell, **figures: Any) -> None:
    """Set figures of a cell."""
    for name, value in figures.items():
        setattr(cell, name, value)


def _estimate(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _entry(kind: str, tasks: tuple[str, ...], numbers: random.Random, rate: float, cost: float) -> dict[str, Any]:
    spread = {task: 1 + (0 if kind == "vanilla" else numbers.uniform(-0.12, 0.12)) for task in tasks}
    cells = {task: _cell(kind, rate * factor, cost, numbers) for task, factor in spread.items()}
    cells[OVERALL] = _cell(kind, rate, cost, numbers, half=0.03)
    extra = 0 if kind != "method" else 2_048_064
    return {
        "kind": kind,
        "lossless": True,
        "extra_parameters": extra,
        "notes": {},
        "answered": {"questions": 60, "of": 60},
        "tasks": cells,
    }


def _cell(kind: str, rate: float, cost: float, numbers: random.Random, half: float = 0.08) -> dict[str, Any]:
    """CR `rate` at `cost` vanilla steps a step."""
    speedup, vanilla, peer = rate / cost, kind == "vanilla", kind == "peer"
    half = 0.0 if vanilla else half
    decays = [max(0.0, min(1.0, (rate - 1) * 0.75) ** w) for w in (1, 2, 3, 4)]
    steps = 1000
    emitted = [steps] if vanilla else [round(steps * (1 - decays[0]) * decays[0] ** w) for w in range(6)]
    cell: dict[str, Any] = {
        "questions": 10,
        "turns": 20,
        "generated_tokens": 2560,
        "steps": None if peer else steps,
        "tok_per_s": 24.0 * speedup,
        "tok_per_s_vanilla": 24.0,
        "compression_rate": None if peer else rate,
        "draft_token_share": None if peer else 1 - 1 / rate,
        "draft_time_share": None if peer else 0.0 if vanilla else 0.16,
        "repetition": 0.08,
        "ctar": None if peer else [] if vanilla else decays,
        "conditional_acceptance": None if peer else [] if vanilla else [decays[0] * 1.06**w for w in range(4)],
        "ttft_s": 0.21,
        "eos_share": 0.4,
        "lossless": None if vanilla else {"identical": 20, "numerical": 0, "different": 0},
        "numerical_rate": None if vanilla else 0.0,
    }
    for part, value in (("decode", speedup), ("total", 1 + (speedup - 1) * 0.85)):
        for ending, shift in (("", 0.0), ("_mean_rates", 0.012), ("_geometric", -0.009)):
            shift = 0.0 if vanilla else shift
            cell[f"speedup_{part}{ending}"] = _estimate(value + shift, half)
    if peer:
        cell |= {f"worth_{what}": _estimate(1 / speedup, 0.05) for what in ("decode", "total")}
    return cell | _steps(kind, rate, cost, numbers) | {"emitted_histogram": None if peer else emitted}


def _steps(kind: str, rate: float, cost: float, numbers: random.Random) -> dict[str, Any]:
    none = dict.fromkeys(("step_time", "predicted", "prediction_error", "confidence", "window_ctar"))
    lengths = (60, 130, 260, 520, 900)
    slow = [{"context": n, "vanilla_ms_per_token": 38 + n / 60, "turns": 9} for n in lengths]
    context = [item | {"ms_per_token": item["vanilla_ms_per_token"] * cost / rate} for item in slow]
    if kind == "peer":
        return none | {"context": context}
    if kind == "vanilla":
        return none | {"step_time": {"draft": 0.0, "verify": 0.97, "rest": 0.03, "total": 1.0}, "context": context}
    draft = 0.16 * cost
    share = [math.exp(-(((edge - 0.6 - rate / 6) / 0.3) ** 2)) for edge in EDGES[:-1]]
    other = [math.exp(-(((edge - 0.3) / 0.28) ** 2)) for edge in EDGES[:-1]]
    off = numbers.uniform(-0.06, 0.06)
    return {
        "step_time": {"draft": draft, "verify": 0.95 * cost - draft, "rest": 0.05 * cost, "total": cost},
        "predicted": {"step_cost": cost / (1 + off), "speedup": rate / cost * (1 + off)},
        "prediction_error": off,
        "confidence": {
            "edges": EDGES,
            "accepted": [round(90 * value) for value in share],
            "rejected": [round(60 * value) for value in other],
        },
        "window_ctar": [((rate - 0.9) / 1.6) ** w for w in (1, 2, 3, 4)],
        "context": context,
    }


def over_axis(summary: Summary, name: str = "prompt length", values: tuple[float, ...] = (256, 1024, 2048)) -> Summary:
    """The same of a run over an axis, on which speedups fall."""
    points = []
    for place, value in enumerate(values):
        cells = {label: copy.deepcopy(entry.overall) for label, entry in summary.methods.items()}
        for label, cell in cells.items():
            loss = 0 if summary.methods[label].kind == "vanilla" else 0.09 * place
            cell.tok_per_s, cell.ttft_s = (cell.tok_per_s or 0) * (1 - 0.1 * place - loss), 0.2 * (1 + place)
            rates = cell.conditional_acceptance or []
            cell.conditional_acceptance = [rate * (1 - loss) for rate in rates if rate is not None]
            cell.compression_rate = cell.compression_rate and cell.compression_rate - loss
            estimate = cell.speedup_decode
            if loss and None not in (estimate.value, estimate.low, estimate.high):
                bounds = [bound - loss for bound in (estimate.value, estimate.low, estimate.high)]
                cell.speedup_decode = Estimate(*bounds)
        points.append(AtValue(value, cells))
    for entry in summary.of_kind("vanilla", "method").values():
        entry.notes["cache_bytes_per_token"] = 46_080 + 2_304 * (entry.kind == "method")
    summary.axis = Axis(name, points)
    return summary
