"""What `bench-engine` records: the cost of forward passes and of their parts, and whole answers. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Required

from pydantic import Field
from typing_extensions import TypedDict

from bench.errors import UserError
from bench.figures.facts import EngineFacts, Software
from bench.figures.machine import Machine
from bench.typed_json import Amount, Count, Json, Key, MismatchError, Positive, Real, read

BySize = Annotated[dict[Key, Positive], Field(min_length=1)]  # ms


class Form(TypedDict):
    """`Published` without its code."""

    what: str
    drafts: Count
    exit_layer: Count
    call_per_draft: bool


class TimedAnswer(TypedDict, total=False):
    """Whole answers of one method, or of a peer, which has no steps."""

    tok_per_s: Required[list[Positive]]  # by round
    over_vanilla: Required[Positive]  # geometric mean over the rounds; schema 1: median
    prefill_ms: Required[Amount]
    step_ms: Positive
    tokens_per_step: Positive
    outside_passes: Real | None  # share of a step; None: unknown
    vanilla_tok_per_s: list[Positive]  # by round: of the answer timed next to this one
    interval: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None  # 95%, of over_vanilla
    notes: dict[str, Json]  # of a peer: its arithmetic, its version, its threads


class Shares(TypedDict):
    """What share of the read bandwidth and of the arithmetic peak a pass reaches; noise may take it above 1."""

    bandwidth: Amount
    arithmetic: Amount


class BesideNeighbour(TypedDict):
    """A vanilla step with one engine and so many threads, alone or beside a busy process."""

    engine: str
    threads: Count
    neighbour: str  # quiet: none
    median_ms: Positive
    mean_ms: Positive
    p90_ms: Positive
    of_quiet: Positive  # mean time over that of the quiet step, median of the rounds
    of_quiet_all_threads: Positive


class Neighbour(TypedDict):
    """What `bench-engine --neighbour` measures instead of all else."""

    rounds: Count
    steps_a_round: Count
    rows: list[BesideNeighbour]


class EngineRecord(Software, total=False):
    """What `bench-engine --json` writes; required: what a projection needs."""

    schema: int
    model: Required[str]
    random_weights: Required[bool]
    parameters: Required[Count]
    device: Required[Machine]
    dtype: Required[str]
    peak_bytes: Required[Count]
    command: str
    warnings: Required[list[str]]
    engine: Required[EngineFacts]
    memory: dict[str, Amount]
    arithmetic: Annotated[dict[str, Positive], Field(min_length=1)]  # 1e9 operations/s by what multiplies
    passes: Required[BySize]  # by tokens
    products: BySize  # by tokens: those of a pass, alone
    shares: dict[Literal["passes", "products"], dict[Key, Shares]]  # by tokens
    operations: Count  # of a token in the products
    drafts: Required[BySize]  # by exit layer
    head: BySize  # by vocabulary
    drafters: Required[dict[str, Positive]]
    cache: dict[str, Amount]
    answers: dict[str, TimedAnswer]
    published: Required[dict[str, Form]]
    vanilla: dict[str, Amount]
    neighbour: Neighbour


def read_engine(path: Path) -> EngineRecord:
    """The record that `bench-engine --json` wrote.

    Raises:
        UserError: it is not one.

    """
    try:
        engine = read(EngineRecord, path)
        if "1" not in engine["passes"]:
            raise MismatchError("passes.1: missing")
        if unknown := engine["published"].keys() - engine["drafters"].keys():
            raise MismatchError(f"drafters.{min(unknown)}: missing")
        return engine
    except (OSError, MismatchError) as error:
        raise UserError(f"--engine {path} is not what bench-engine --json writes: {error}") from error
