"""The figures of a run as `summary.json` holds them: one schema for whatever computes, writes or shows them. No torch.

An undefined figure is None, never NaN and never 0. A share lies between 0 and 1. Lists by window hold w = 1, 2, ...
`bench.figures.metrics` computes the figures and defines them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.typed_json import decode_value

SCHEMA = 1
SUMMARY_FILE = "summary.json"
OVERALL = "overall"  # stands among the tasks
_NAME_CHARS = 30  # of a method that pages show as it is spelled


@dataclass(slots=True)
class Estimate:
    """A ratio with its 95% interval; no bounds where there are too few questions for one."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval where there is one."""
        known = self.value is not None and self.low is not None and self.high is not None
        return (self.low, self.high) if known else None  # type: ignore[return-value]


@dataclass(slots=True)
class StepTime:
    """Parts of a mean step, in vanilla steps of the same turns."""

    draft: float | None = None
    verify: float | None = None
    rest: float | None = None
    total: float | None = None


@dataclass(slots=True)
class Predicted:
    """What costs measured before the run make of the recorded steps."""

    step_cost: float  # in vanilla steps
    speedup: float


@dataclass(slots=True)
class Confidence:
    """Counts of drafts by the probability that the draft model gave them; `edges` has one entry more than the bins."""

    edges: list[float]
    accepted: list[int]
    rejected: list[int]


@dataclass(slots=True)
class ContextBin:
    """Decode time of the turns with about as much context."""

    context: float | None  # mean tokens: prompt and half the answer
    ms_per_token: float | None
    vanilla_ms_per_token: float | None
    turns: int


@dataclass(slots=True, kw_only=True)
class Cell:
    """The figures of one method on one task, or overall. A peer has no steps: their figures are None."""

    questions: int = 0
    turns: int = 0
    generated_tokens: int = 0
    steps: int | None = None
    speedup_decode: Estimate = field(default_factory=Estimate)  # ratio of sums, as the next but two
    speedup_decode_mean_rates: Estimate = field(default_factory=Estimate)
    speedup_decode_geometric: Estimate = field(default_factory=Estimate)
    speedup_total: Estimate = field(default_factory=Estimate)
    speedup_total_mean_rates: Estimate = field(default_factory=Estimate)
    speedup_total_geometric: Estimate = field(default_factory=Estimate)
    worth_decode: Estimate | None = None  # vanilla's speed over a peer's; None for all others
    worth_total: Estimate | None = None
    tok_per_s: float | None = None
    tok_per_s_vanilla: float | None = None
    compression_rate: float | None = None
    draft_token_share: float | None = None
    draft_time_share: float | None = None
    repetition: float | None = None
    ctar: list[float | None] | None = None
    conditional_acceptance: list[float | None] | None = None
    window_ctar: list[float | None] | None = None
    emitted_histogram: list[int] | None = None  # steps that added 1, 2, ... tokens
    confidence: Confidence | None = None
    step_time: StepTime | None = None
    predicted: Predicted | None = None
    prediction_error: float | None = None
    context: list[ContextBin] = field(default_factory=list)
    ttft_s: float | None = None
    eos_share: float | None = None
    lossless: dict[str, int] | None = None  # audited turns by verdict; None: not claimed
    numerical_rate: float | None = None


@dataclass(slots=True)
class Answered:
    """Questions that a method answered, of those that vanilla did; a peer may be asked less than the others."""

    questions: int
    of: int


@dataclass(slots=True)
class Member:
    """What one member of a composition did, over all turns."""

    label: str
    steps: int  # in which it drafted
    drafted: int
    accepted: int


@dataclass(slots=True)
class Entry:
    """One method's part of a summary."""

    kind: str  # "vanilla" | "method" | "peer"
    lossless: bool
    extra_parameters: int
    notes: dict[str, Any]  # what the method says of itself
    answered: Answered
    tasks: dict[str, Cell]  # `overall` last
    members: list[Member] = field(default_factory=list)  # of a composition, in the order in which they are asked
    label: str = ""  # what pages call it: its name, or a short one where that is a list of knobs

    @property
    def overall(self) -> Cell:
        """The figures over all tasks."""
        return self.tasks[OVERALL]

    @property
    def by_task(self) -> dict[str, Cell]:
        """The tasks without `overall`."""
        return {task: cell for task, cell in self.tasks.items() if task != OVERALL}

    @property
    def timed(self) -> bool:
        """Whether its steps have a time: not a peer's, nor those of an empty run."""
        return self.overall.step_time is not None and self.overall.step_time.total is not None


@dataclass(slots=True)
class Dataset:
    """What was asked."""

    name: str | None
    sha256: str | None
    questions: int | None
    max_new_tokens: int | None = None


@dataclass(slots=True)
class Sampling:
    """How tokens were drawn."""

    temperature: float
    top_p: float
    top_k: int


@dataclass(slots=True)
class Statistics:
    """How the intervals were made."""

    interval: float
    resamples: int
    method: str
    cluster: str
    strata: str


@dataclass(slots=True)
class Where:
    """A turn: its place in the run. Turns and rounds count from 0."""

    question_id: int
    task: str
    method: str
    turn: int
    round: int


@dataclass(slots=True)
class Failure(Where):
    """A turn that failed."""

    error: str


@dataclass(slots=True)
class Divergence(Where):
    """A turn whose answer is not vanilla's; see `records.Audit`."""

    verdict: str
    position: int | None
    token: int | None
    vanilla_token: int | None
    gap: float | None
    tolerance: float | None


@dataclass(slots=True, kw_only=True)
class Summary:
    """Everything that is computed from a run's records."""

    schema: int = SCHEMA
    run_id: str
    model: str
    dataset: Dataset
    device: dict[str, Any]
    dtype: str
    sampling: Sampling | None = None  # None: greedy decoding
    complete: bool = True
    rounds: int = 1
    statistics: Statistics | None = None
    excluded_questions: list[int] = field(default_factory=list)
    failed_methods: dict[str, str] = field(default_factory=dict)  # answered nothing at all: first error
    failed: list[Failure] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    methods: dict[str, Entry]
    against: dict[str, dict[str, Estimate]] = field(default_factory=dict)  # decode speed of each method over another

    def __post_init__(self) -> None:
        numbers: Counter[str] = Counter()
        for name, entry in self.methods.items():
            entry.label = name
            if len(name) > _NAME_CHARS and ":" in name:
                base = re.sub(":[^+]*", "", name)  # a composition has several members
                numbers[base] += 1
                entry.label = f"{base} ({numbers[base]})"

    def label(self, name: str) -> str:
        """What pages call a method."""
        return self.methods[name].label if name in self.methods else name

    def of_kind(self, *kinds: str) -> dict[str, Entry]:
        """The methods of some kinds ("vanilla", "method", "peer"), by name, kind after kind."""
        return {name: e for kind in kinds for name, e in self.methods.items() if e.kind == kind}


def read_summary(folder: Path) -> Summary:
    """The `summary.json` of a run's folder.

    Raises:
        UserError: missing, or not of this schema.

    """
    path = folder / SUMMARY_FILE
    try:
        return decode_value(Summary, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no summary of a run ({error}): redraw it with `report {folder}`") from error
