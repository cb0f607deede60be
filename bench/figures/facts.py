"""What a run's record says of its model, questions, engine, origin and memory. A fact that is not known is left out."""

from __future__ import annotations

from typing_extensions import TypedDict

from bench.typed_json import Count, Real, Seconds, Share


class PassCosts(TypedDict):
    """What a method's passes cost, measured before the run, in vanilla steps with their bookkeeping.

    (A knob `costs` is in steps without it; see bench.run.contestants.)
    """

    shallow: Seconds
    draft: Seconds
    verify: dict[str, Seconds]  # by positions
    rest: Real  # what the microbenchmarks leave out; noise may make it negative


class ModelFacts(TypedDict, total=False):
    """The target."""

    name: str
    revision: str | None
    sha256: str
    parameters: Count
    chat_template: str


class DatasetFacts(TypedDict, total=False):
    """What was asked."""

    name: str
    sha256: str
    questions: Count  # how many were asked
    tasks: list[str]


class EngineFacts(TypedDict, total=False):
    """How the engine ran passes."""

    weights: str
    cache_positions: Count
    huge_pages_mib: Count
    cuda_graphs: str
    layers_on: dict[str, Count]


class Session(TypedDict, total=False):
    """One process that worked on a run: a run that was resumed has several."""

    started: str
    wall_s: Seconds
    commit: str | None
    dirty: bool | None
    load_1min: Real | None
    others_share: Share  # of the processors, used by other programs
    warnings: list[str]


class Provenance(TypedDict, total=False):
    """When, by what code and beside what else."""

    started: str
    python: str
    platform: str
    packages: dict[str, str]
    commit: str | None
    dirty: bool | None
    load_1min: Real | None
    warnings: list[str]
    sessions: list[Session]
    interleaved: str  # of a gate's run: both sides' mark
    gated_commit: str | None


class MemoryFacts(TypedDict, total=False):
    """Peaks in bytes."""

    peak_bytes: Count  # of the process
    methods: dict[str, Count]  # while each was at work; empty where a peak cannot be reset
