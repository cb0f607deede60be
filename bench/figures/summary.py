"""The figures of a run as `summary.json` holds them: one schema for computing, writing and showing them. No torch.

An undefined figure is None, never NaN and never 0. A share is between 0 and 1. Lists by window hold w = 1, 2, ...
`bench.figures.metrics` computes the figures and defines them.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.errors import UserError, program
from bench.figures.machine import Machine
from bench.figures.notable import BusyTurns, Divergence, Failure, Outlier
from bench.typed_json import Count, Finite, Json, MismatchError, Share, read

SCHEMA = 1
SUMMARY_FILE = "summary.json"
OVERALL = "overall"  # an entry among the tasks
FAMILIES = ("text", "heads", "self", "composition", "")  # in the order of tables; other words come before the last
_NAME_CHARS = 30  # of a method that pages show as it is spelled


@dataclass(slots=True)
class Estimate:
    """A ratio with its 95% interval; no bounds where an interval would say nothing, see `stats.estimates`."""

    value: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval where there is one."""
        known = self.value is not None and self.low is not None and self.high is not None
        return (self.low, self.high) if known else None  # type: ignore[return-value]


@dataclass(slots=True)
class StepTime:
    """Parts of a mean step, in vanilla steps of the same turns."""

    draft: Finite | None = None
    verify: Finite | None = None
    rest: Finite | None = None
    total: Finite | None = None


@dataclass(slots=True)
class Predicted:
    """What costs measured before the run make of the recorded steps."""

    step_cost: Finite  # in vanilla steps
    speedup: Finite


@dataclass(slots=True)
class Drafts:
    """How often steps drafted, how much then, and how much of that was accepted."""

    steps: Share | None  # that drafted at all; None: not known, of a peer
    tokens: Finite | None = None  # per step that did
    accepted: Finite | None = None  # share


@dataclass(slots=True)
class Hindsight:
    """Predicted decode speedups of steps that are known only afterwards: bounds, never measured.

    See `bench.figures.hindsight`.
    """

    choice: Finite | None = None  # the cheapest of the recorded steps of all methods
    both: Finite | None = None  # likewise, each without its rejected drafts


@dataclass(slots=True)
class Confidence:
    """Counts of drafts by the probability that the draft model gave them; `edges` has one entry more than the bins."""

    edges: list[Finite]
    accepted: list[Count]
    rejected: list[Count]


@dataclass(slots=True)
class ContextBin:
    """Decode time of the turns with about as much context."""

    context: Finite | None  # mean tokens: prompt and half the answer
    ms_per_token: Finite | None
    vanilla_ms_per_token: Finite | None
    turns: Count


@dataclass(slots=True, kw_only=True)
class Cell:
    """The figures of one method on one task, or overall.

    A peer has no steps that we see: their figures are None, but for their number and the CR of one that counts them.
    """

    questions: Count = 0
    turns: Count = 0
    generated_tokens: Count = 0
    steps: Count | None = None
    speedup_decode: Estimate = field(default_factory=Estimate)  # ratio of sums, as the next but two
    speedup_decode_mean_rates: Estimate = field(default_factory=Estimate)
    speedup_decode_geometric: Estimate = field(default_factory=Estimate)
    speedup_decode_median: Estimate = field(default_factory=Estimate)  # robust; without interval
    speedup_decode_steps: Estimate = field(default_factory=Estimate)  # robust; of `disturbed.steady` turns
    speedup_total: Estimate = field(default_factory=Estimate)
    speedup_total_mean_rates: Estimate = field(default_factory=Estimate)
    speedup_total_geometric: Estimate = field(default_factory=Estimate)
    worth_decode: Estimate | None = None  # vanilla's speed over a peer's; None for all others
    worth_total: Estimate | None = None
    tok_per_s: Finite | None = None
    tok_per_s_vanilla: Finite | None = None
    compression_rate: Finite | None = None
    draft_token_share: Finite | None = None
    draft_time_share: Finite | None = None
    repetition: Finite | None = None
    ctar: list[Finite | None] | None = None
    conditional_acceptance: list[Finite | None] | None = None
    window_ctar: list[Finite | None] | None = None
    emitted_histogram: list[Count] | None = None  # steps that added 1, 2, ... tokens
    confidence: Confidence | None = None
    step_time: StepTime | None = None
    predicted: Predicted | None = None
    prediction_error: Finite | None = None
    perfect_stopping: Finite | None = None  # predicted speedup of the recorded steps without their rejected drafts
    drafts: Drafts | None = None
    context: list[ContextBin] = field(default_factory=list)
    ttft_s: Finite | None = None
    eos_share: Finite | None = None
    lossless: dict[str, Count] | None = None  # audited turns by verdict; None: not claimed
    numerical_rate: Finite | None = None


@dataclass(slots=True, kw_only=True)
class BatchCell:
    """The figures of one method at one batch size. Rates are of *full* waves, in which every slot was taken."""

    batch: Count
    turns: Count = 0
    speedup: Estimate = field(default_factory=Estimate)  # throughput over vanilla's at the same batch size
    tok_per_s: Finite | None = None  # throughput
    tok_per_s_whole: Finite | None = None  # the drain included
    full_share: Finite | None = None  # of the decode time
    ms_per_token: Finite | None = None  # of a sequence: the mean, and below it the quantiles, over its tokens
    ms_per_token_p50: Finite | None = None
    ms_per_token_p99: Finite | None = None
    compression_rate: Finite | None = None
    accepted: Finite | None = None  # share of the drafted tokens
    ttft_s: Finite | None = None
    lossless: dict[str, Count] | None = None  # audited turns by verdict; None: not claimed
    failed: Count = 0  # blocks of questions
    error: str = ""  # of the first of these
    predicted: Finite | None = None  # speedup, from costs measured before

    @property
    def tok_per_s_each(self) -> float | None:
        """Of a sequence."""
        return None if self.tok_per_s is None else self.tok_per_s / self.batch


@dataclass(slots=True)
class Crossover:
    """Where a method's throughput falls to vanilla's, as a batch size; None: nowhere among those that ran."""

    measured: Finite | None
    predicted: Finite | None = None


@dataclass(slots=True)
class Answered:
    """Questions that a method answered, of those that vanilla did; a peer may be asked less than the others."""

    questions: Count
    of: Count


@dataclass(slots=True)
class Member:
    """What one member of a composition did, over all turns."""

    label: str
    steps: Count  # in which it drafted
    drafted: Count
    accepted: Count


@dataclass(slots=True)
class Entry:
    """One method's part of a summary."""

    kind: Annotated[str, Field(pattern="^(vanilla|method|peer)$")]
    lossless: bool
    extra_parameters: Count
    notes: dict[str, Json]  # what the method reports about itself
    answered: Answered
    tasks: dict[str, Cell]  # `overall` last
    members: list[Member] = field(default_factory=list)  # of a composition, in the order in which they are asked
    label: str = ""  # what pages call it: its name, or a short one where that is a list of knobs
    family: str = ""  # how it drafts, in a word

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
        """Return whether its steps were timed: not those of a peer or of an empty run."""
        return self.overall.step_time is not None and self.overall.step_time.total is not None


@dataclass(slots=True)
class Beside:
    """A peer beside the one that it has as its baseline, on the turns that both answered."""

    baseline: str
    tasks: dict[str, Cell]  # as an entry's, with the baseline in the place of vanilla; `overall` last
    gap: Finite | None = None  # the largest of reference logits where answers first differ


@dataclass(slots=True)
class Dataset:
    """What was asked."""

    name: str | None
    sha256: str | None
    questions: Count | None
    max_new_tokens: Count | None = None


@dataclass(slots=True)
class Sampling:
    """How tokens were drawn."""

    temperature: Finite
    top_p: Finite
    top_k: Count


@dataclass(slots=True)
class Statistics:
    """How the intervals were made."""

    interval: Finite
    resamples: Count
    method: str
    cluster: str
    strata: str


@dataclass(slots=True)
class AtValue:
    """What all methods did at one value of the run's axis, over all tasks."""

    value: Finite
    methods: dict[str, Cell]


@dataclass(slots=True)
class Axis:
    """A setting that took several values in one run. The rest of a summary is about the first one."""

    name: Annotated[str, Field(pattern="^(temperature|prompt length)$")]
    points: list[AtValue]


@dataclass(slots=True)
class WorkerFigures:
    """What one worker of a run did."""

    name: str
    host: str
    machine: str
    device: str
    threads: Count
    questions: Count  # every round counts
    tok_per_s_vanilla: Finite | None
    speedups: dict[str, Finite | None]  # of each method, over all of its turns


@dataclass(slots=True)
class WorkerDifference:
    """A figure in which workers differ by more than noise: vanilla's speed, or the decode speedup of a method."""

    method: str
    slowest: str  # worker
    fastest: str
    factor: Finite  # between the two
    chance: Share  # of such differences by noise alone


@dataclass(slots=True, kw_only=True)
class Summary:
    """Everything that is computed from a run's records."""

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    run_id: str
    model: str
    dataset: Dataset
    device: Machine
    dtype: str
    activations: str = ""  # the number format to which products round their inputs; empty: not recorded
    sampling: Sampling | None = None  # None: greedy decoding
    complete: bool = True
    rounds: Count = 1
    statistics: Statistics | None = None
    excluded_questions: list[Count] = field(default_factory=list)
    failed_methods: dict[str, str] = field(default_factory=dict)  # answered nothing at all: first error
    failed: list[Failure] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    busy_turns: BusyTurns | None = None
    outliers: list[Outlier] = field(default_factory=list)
    methods: dict[str, Entry]
    against: dict[str, dict[str, Estimate]] = field(default_factory=dict)  # decode speed of each method over another
    hindsight: dict[str, Hindsight] = field(default_factory=dict)  # by task, `overall` last
    batches: dict[str, list[BatchCell]] = field(default_factory=dict)  # of each method, by batch size; vanilla first
    crossovers: dict[str, Crossover] = field(default_factory=dict)  # of each method that ran in batches
    axis: Axis | None = None
    beside: dict[str, Beside] = field(default_factory=dict)  # peers with a baseline of their own
    workers: list[WorkerFigures] = field(default_factory=list)  # empty: one process did it all
    worker_differences: list[WorkerDifference] = field(default_factory=list)

    def __post_init__(self) -> None:
        numbers: Counter[str] = Counter()
        for name, entry in self.methods.items():
            entry.label = str(entry.notes.get("name") or name)
            if entry.label == name and len(name) > _NAME_CHARS and ":" in name:
                base = re.sub(":[^+]*", "", name)  # a composition has several members
                numbers[base] += 1
                entry.label = f"{base} ({numbers[base]})"

    def label(self, name: str) -> str:
        """What pages call a method."""
        return self.methods[name].label if name in self.methods else name

    def of_kind(self, *kinds: str) -> dict[str, Entry]:
        """The methods of some kinds ("vanilla", "method", "peer"), by name, kind after kind."""
        return {name: e for kind in kinds for name, e in self.methods.items() if e.kind == kind}

    def ranked(self, *kinds: str) -> dict[str, Entry]:
        """The same, the methods of a kind by family, and in each the fastest first."""

        def place(item: tuple[str, Entry]) -> tuple[int, int, str, float]:
            family = item[1].family
            known = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES) - 2
            return kinds.index(item[1].kind), known, family, -(item[1].overall.speedup_decode.value or 0)

        return dict(sorted(self.of_kind(*kinds).items(), key=place))


def base_of(method: str) -> str:
    """A method's label without knobs and presets; a composition keeps its members, as in `a+b`."""
    return re.sub(":[^+]*", "", method)


def read_summary(folder: Path) -> Summary:
    """The `summary.json` of a run's folder.

    Raises:
        UserError: missing, or not of this schema.

    """
    path = folder / SUMMARY_FILE
    try:
        return read(Summary, path)
    except (OSError, MismatchError) as error:
        raise UserError(
            f"{path} is no summary of a run ({error}): redraw it with `{program()} report {folder}`"
        ) from error
