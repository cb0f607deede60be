"""`index.json`: the figures of many runs in one file, an entry for each run and method. Other programs build on it.

It is made of the runs' records, like everything else. A figure that is undefined is null, never 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bench.errors import UserError
from bench.figures.facts import is_dirty
from bench.figures.metrics import questions_asked
from bench.figures.records import MethodInfo, Records, Run, Turn, atomic_writer, remembers_the_run
from bench.figures.summary import Cell, Estimate, Summary, base_of
from bench.typed_json import Count, Finite, Json, MismatchError, read

SCHEMA = 2
INDEX_FILE = "index.json"
_COSTS = "costs"  # a knob that holds measured costs: a long table that says nothing about the method
_DIGITS = 4
_DIGEST_CHARS = 12


@dataclass(slots=True)
class IndexModel:
    """The target."""

    name: str
    sha256: str | None
    parameters: Count | None = None


@dataclass(slots=True)
class IndexMachine:
    """Where it ran. Different machines may have one name: the digest tells them apart."""

    name: str
    digest: str
    type: str  # cpu | cuda
    cores: Count = 0
    read_gb_per_s: Finite = 0.0  # 0: not measured


@dataclass(slots=True)
class IndexQuestions:
    """What was asked."""

    name: str | None
    sha256: str | None
    asked: Count | None
    max_new_tokens: Count | None = None
    failed: Count = 0  # of those asked: a method failed, so that no figure has them
    digest: str = ""  # of the ids and tasks of those that figures are over


@dataclass(slots=True)
class TaskFigures:
    """A method on one task."""

    speedup: Estimate
    compression_rate: Finite | None


@dataclass(slots=True)
class BatchFigures:
    """A method at one batch size: throughput over vanilla's at that size."""

    batch: Count
    speedup: Estimate
    tok_per_s: Finite | None
    predicted: Finite | None


@dataclass(slots=True)
class OverValue:
    """A method at one temperature or prompt length."""

    value: Finite
    speedup: Estimate


@dataclass(slots=True, kw_only=True)
class IndexEntry:
    """One method in one run."""

    run_id: str
    commit: str | None
    dirty: bool | None
    date: str | None  # when the run started, ISO 8601
    roobench: str | None  # its version
    model: IndexModel
    machine: IndexMachine
    dtype: str
    threads: Count
    questions: IndexQuestions
    rounds: Count
    sampling: str  # "": greedy
    method: str  # as the command line takes it, with its knobs
    label: str  # what pages call it
    kind: Annotated[str, Field(pattern="^(vanilla|method|peer)$")]
    family: str  # how it drafts, in a word
    claims_lossless: bool
    remembers_the_run: bool
    cautions: list[str]  # what a method says of its own figures
    knobs: dict[str, Json]  # as it ran, without measured costs
    extra_parameters: Count
    answered: Count  # questions; a peer may be asked fewer
    speedup: Estimate  # decode; ratio of sums, the tasks' unweighted mean, with a 95% interval
    speedup_end_to_end: Estimate
    compression_rate: Finite | None
    tok_per_s: Finite | None
    tok_per_s_vanilla: Finite | None  # on the same questions
    lossless: dict[str, Count] | None  # audited turns by verdict; null: not claimed, or vanilla
    tasks: dict[str, TaskFigures] = field(default_factory=dict)
    batches: list[BatchFigures] = field(default_factory=list)
    crossover: Finite | None = None  # batch size at which vanilla overtakes it first; null: it does not, or no batches
    axis: str = ""  # "temperature" | "prompt length", of a run over several
    over: list[OverValue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of the run, by `publish --check`
    report: str | None = None  # from the folder of this file

    @property
    def base(self) -> str:
        """The method without its knobs; a composition keeps its members."""
        return base_of(self.method)

    @property
    def first_value(self) -> float | None:
        """The value of the run's axis at which its figures are; None: it has no axis."""
        return self.over[0].value if self.over else None

    @property
    def setting(self) -> tuple[Any, ...]:
        """What must be alike before figures are compared."""
        asked = self.questions
        return (
            *(self.model.sha256, self.machine.digest, self.threads, self.dtype, self.sampling),
            *(asked.sha256, asked.asked, asked.digest, asked.max_new_tokens, self.axis, self.first_value),
        )


@dataclass(slots=True)
class Index:
    """The whole file."""

    entries: list[IndexEntry]
    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)] = SCHEMA


def entries_of(
    records: Records, summary: Summary, sampled: str, problems: Sequence[str], report: str | None
) -> list[IndexEntry]:
    """A run's entries, vanilla first. `sampled` says how tokens were drawn, `report` where the run's page is."""
    run, turns = records
    vanilla_first = sorted(run.methods, key=lambda name: run.methods[name].kind != "vanilla")
    shared = _shared(run, turns, summary) | {"sampling": sampled, "problems": list(problems), "report": report}
    return [IndexEntry(**shared, **_figures(summary, name, run.methods[name])) for name in vanilla_first]


def _shared(run: Run, turns: Sequence[Turn], summary: Summary) -> dict[str, Any]:
    machine, provenance, data = run.machine, run.provenance, summary.dataset
    return {
        "run_id": run.run_id,
        "commit": provenance.get("commit"),
        "dirty": is_dirty(provenance),
        "date": provenance.get("started"),
        "roobench": provenance.get("packages", {}).get("roobench"),
        "model": IndexModel(summary.model, run.model.get("sha256"), run.model.get("parameters")),
        "machine": IndexMachine(
            machine.name or machine.type, machine.digest, machine.type, machine.processor.cores, machine.read_gb_per_s
        ),
        "dtype": run.dtype,
        "threads": machine.threads,
        "questions": IndexQuestions(
            *(data.name, data.sha256, data.questions, data.max_new_tokens),
            len(summary.excluded_questions),
            _questions_digest(run, turns, summary),
        ),
        "rounds": summary.rounds,
        "axis": summary.axis.name if summary.axis else "",
    }


def _questions_digest(run: Run, turns: Sequence[Turn], summary: Summary) -> str:
    """Of the questions that figures are over: a file's digest and a count do not tell which of it were asked."""
    left_out = set(summary.excluded_questions)
    asked = sorted(one for one in questions_asked(run, turns) if one[0] not in left_out)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:_DIGEST_CHARS]


def _figures(summary: Summary, name: str, info: MethodInfo) -> dict[str, Any]:
    entry = summary.methods[name]
    overall, points = entry.overall, summary.axis.points if summary.axis else []
    found = summary.crossovers.get(name)
    batches = [
        BatchFigures(cell.batch, _estimate(cell.speedup), _short(cell.tok_per_s), _short(cell.predicted))
        for cell in summary.batches.get(name, ())
    ]
    return {
        "method": name,
        "label": entry.label,
        "kind": entry.kind,
        "family": entry.family,
        "claims_lossless": entry.lossless,
        "remembers_the_run": remembers_the_run(info.notes),
        "cautions": _cautions(info.notes),
        "knobs": _knobs(info.ran),
        "extra_parameters": entry.extra_parameters,
        "answered": entry.answered.questions,
        "speedup": _estimate(overall.speedup_decode),
        "speedup_end_to_end": _estimate(overall.speedup_total),
        "compression_rate": _short(overall.compression_rate),
        "tok_per_s": _short(overall.tok_per_s),
        "tok_per_s_vanilla": _short(overall.tok_per_s_vanilla),
        "lossless": overall.lossless,
        "tasks": {task: _task(cell) for task, cell in entry.by_task.items()},
        "batches": batches,
        "crossover": _short(found.measured) if found else None,
        "over": [OverValue(at.value, _estimate(at.methods[name].speedup_decode)) for at in points],
    }


def _cautions(notes: Mapping[str, Any]) -> list[str]:
    """A method's own caution, and those of a composition's members: a line each, whatever a record holds."""
    nested = [value.get("caution") for value in notes.values() if isinstance(value, dict)]
    lines = (" ".join(str(text).split()) for text in (notes.get("caution"), *nested) if text)
    return [line for line in lines if line]


def _task(cell: Cell) -> TaskFigures:
    return TaskFigures(_estimate(cell.speedup_decode), _short(cell.compression_rate))


def _estimate(value: Estimate) -> Estimate:
    return Estimate(_short(value.value), _short(value.low), _short(value.high))


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _knobs(ran: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs without measured costs, within members of a composition too."""
    return {name: _knobs(value) if isinstance(value, dict) else value for name, value in ran.items() if name != _COSTS}


def write_entries(path: Path, entries: Sequence[IndexEntry]) -> None:
    """Write the index, newest run first, with an entry a line: a run that is added changes no other line.

    Raises:
        UserError: the file cannot be written.

    """
    ordered = sorted(entries, key=lambda entry: (entry.date or "", entry.run_id), reverse=True)
    lines = [json.dumps(asdict(entry), ensure_ascii=False, allow_nan=False) for entry in ordered]
    with atomic_writer(path) as file:
        file.write(f'{{"schema": {SCHEMA}, "entries": [\n' + ",\n".join(lines) + "\n]}\n")


def read_index(path: Path) -> Index:
    """An `index.json`.

    Raises:
        UserError: missing, of another schema, or malformed.

    """
    try:
        return read(Index, path)
    except (OSError, MismatchError) as error:
        raise UserError(f"{path} is no index of runs ({error}): write it with `publish --index`") from error
