"""What a run records about its model, questions, engine, origin and memory. A fact that is unknown is left out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from bench.typed_json import Amount, Count, Key, Moment, Real, Seconds, Share

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # sha256


class PassCosts(TypedDict):
    """The cost of a method's forward passes, measured before the run, in vanilla steps including their bookkeeping.

    (A knob `costs` is in steps without it; see bench.run.contestants.)
    """

    shallow: Amount
    draft: Amount
    verify: Annotated[dict[Key, Amount], Field(min_length=1)]  # by tokens verified
    rest: Real  # what the microbenchmarks leave out; noise may make it negative


class ModelFacts(TypedDict, total=False):
    """The target."""

    name: str
    revision: str | None
    sha256: str
    parameters: Count
    chat_template: str
    chat_template_sha256: Digest
    tokenizer_sha256: Digest


class DatasetFacts(TypedDict, total=False):
    """What was asked."""

    name: str
    sha256: str
    questions: Count  # how many were asked
    tasks: list[str]
    passages: Digest  # of the text that questions were padded with


class EngineFacts(TypedDict, total=False):
    """How the engine ran forward passes."""

    weights: str
    activations: str  # the number format to which products round their inputs
    activation_scales: str  # of int8 activations
    head: str  # the LM head's number format, where it is not that of the other matrices
    cache_positions: Count
    huge_pages_mib: Count
    cuda_graphs: str
    layers_on: dict[str, Count]


class Session(TypedDict, total=False):
    """One process that worked on a run: a run that was resumed has several."""

    started: Moment
    wall_s: Seconds
    commit: str | None
    dirty: bool | None
    load_1min: Real | None
    others_share: Share  # of the processors, used by other programs
    workers: Count  # processes that answered questions; not recorded: the one of the run
    lost: Count  # of these, and replaced
    warnings: list[str]


class Software(TypedDict, total=False):
    """When and with which code something was measured, and what else ran on the machine."""

    started: Moment
    python: str
    platform: str
    packages: dict[str, str]
    commit: str | None
    dirty: bool | None
    load_1min: Real | None


class Provenance(Software, total=False):
    """Where a run comes from."""

    warnings: list[str]
    sessions: list[Session]
    interleaved: str  # of a gate's run: the mark that both sides share
    gated_commit: str | None


def is_dirty(provenance: Provenance) -> bool | None:
    """Return whether any session of a run had uncommitted changes; None: not known of the first."""
    begun = provenance.get("dirty")
    return any(session.get("dirty") for session in provenance.get("sessions", [])) or begun


def commits(provenance: Provenance) -> list[str]:
    """The commits of a run's sessions, each once."""
    found = [provenance.get("commit"), *(session.get("commit") for session in provenance.get("sessions", []))]
    return list(dict.fromkeys(filter(None, found)))


class MemoryFacts(TypedDict, total=False):
    """Peaks in bytes."""

    peak_bytes: Count  # of the process
    methods: dict[str, Count]  # while each method was at work; empty where a peak cannot be reset
