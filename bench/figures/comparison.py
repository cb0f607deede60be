"""A comparison of two runs as `compare --json` and a gate's `gate.json` hold it. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.figures.rules import Rules
from bench.figures.summary import Estimate

SCHEMA = 1


@dataclass(slots=True)
class Sequential:
    """A gate's own estimate of a change, which allows for its many looks; None: unknown, or without a bound."""

    pairs: int
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(slots=True, kw_only=True)
class Metric:
    """A figure of both runs, with its change (new over base)."""

    base: int | float | None
    new: int | float | None
    change: Estimate = field(default_factory=Estimate)
    verdict: str = ""  # empty: to be judged by the change
    counts: bool = True  # False: it only informs
    more_is_worse: bool = True
    sequential: Sequential | None = None  # of a gate's times


@dataclass(slots=True)
class ComparedTask:
    """All metrics of a method on one task, or overall."""

    metrics: dict[str, Metric]
    verdict: str = ""


@dataclass(slots=True)
class ComparedMethod:
    """One method's part of a comparison."""

    kind: str  # "vanilla" | "method" | "peer"
    tasks: dict[str, ComparedTask]  # `overall` among them
    verdict: str = ""


@dataclass(slots=True)
class Side:
    """One of the two runs; None: unknown, as in an answer file."""

    run_id: str
    commit: str | None = None
    dirty: bool | None = None
    started: str | None = None
    model: str | None = None
    questions: str | None = None
    dtype: str | None = None
    device: str | None = None


@dataclass(slots=True)
class Budget:
    """How a gate decided."""

    alarm: float
    budget_min: float


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Everything about a change."""

    schema: int = SCHEMA
    base: Side
    new: Side
    interleaved: bool
    same_machine: bool
    rules: Rules  # with a tolerance of 0 where counters had to be equal
    questions: int
    warnings: list[str]
    methods: dict[str, ComparedMethod]
    gate: Budget | None = None
    verdict: str = ""
