"""What papers and leaderboards report for the methods that a run measured: `results/published/*.json`.

A published figure is of another model on another device in another harness: its source, model and hardware go with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.errors import UserError
from bench.figures.summary import OVERALL, Entry, Summary, base_of
from bench.files import SOURCES
from bench.questions import TASKS
from bench.typed_json import Count, Json, MismatchError, Real, read

PUBLISHED = SOURCES / "results" / "published"
SCHEMA = 1
COMPARABLE = "speedup_total_mean_rates"  # ours that is nearest to theirs: papers measure with Spec-Bench's script
PLACES = (*TASKS, OVERALL)


@dataclass(frozen=True, slots=True)
class Result:
    """One method on one model and device, as published. Figures are by task, `overall` among them where given."""

    method: str  # by our name if we have it
    label: str  # by the source's name
    model: str
    hardware: str
    settings: str
    speedup: dict[str, Real]
    compression_rate: dict[str, Real]
    ctar: dict[str, list[Real]]  # w = 1, 2, ...
    extra_parameters: Count = 0  # 0: not given
    knobs: dict[str, Real] = field(default_factory=dict)  # of `settings`, those that programs read, by our names


@dataclass(frozen=True, slots=True)
class Ablation:
    """Figures over settings of one method."""

    method: str
    model: str
    what: str  # what was varied
    read_off_a_figure: bool
    points: list[dict[str, Json]]  # settings, and `speedup` or `compression_rate` or both


@dataclass(frozen=True, slots=True)
class Source:
    """A paper or leaderboard with its figures."""

    source: str  # its short name
    citation: str
    url: str
    benchmark: str
    definitions: dict[str, str]  # of the figures, by their name
    results: list[Result]
    ablations: list[Ablation]
    notes: list[str]
    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)] = SCHEMA


def read_published(folder: Path = PUBLISHED) -> list[Source]:
    """Every source in a folder, by file name; none if the folder is missing (an installation without the data).

    Raises:
        UserError: a file is malformed.

    """
    return [read_source(path) for path in sorted(folder.glob("*.json"))]


def read_source(path: Path) -> Source:
    """One source.

    Raises:
        UserError: it cannot be read, or is not as `Source` says.

    """
    try:
        found = read(Source, path)
        _check(found)
    except (OSError, MismatchError) as error:
        raise UserError(f"{path} is not a file of published figures: {error}; mend or remove it") from error
    return found


def same_method(summary: Summary, sources: list[Source]) -> dict[str, list[tuple[Source, Result]]]:
    """Published results of the run's methods, by method name without knobs; methods without results are left out."""
    bases = dict.fromkeys(map(base_of, summary.of_kind("method")))
    found = {base: [(s, result) for s in sources for result in s.results if result.method == base] for base in bases}
    return {base: results for base, results in found.items() if results}


def variants(summary: Summary, base: str) -> dict[str, Entry]:
    """The run's methods named `base`, with any knobs."""
    return {name: entry for name, entry in summary.of_kind("method").items() if base_of(name) == base}


def places_of(entry: Entry) -> list[str]:
    """The tasks that a method ran; with overall if these are all six, as in published figures."""
    return [task for task in entry.tasks if task != OVERALL or all(task in entry.tasks for task in TASKS)]


def _check(source: Source) -> None:
    """Raise MismatchError for values that cannot be right."""
    texts = {"source": source.source, "citation": source.citation, "url": source.url, "benchmark": source.benchmark}
    for result in source.results:
        texts |= {key: getattr(result, key) for key in ("method", "label", "model", "hardware")}
        figures = {name: getattr(result, name) for name in ("speedup", "compression_rate", "ctar")}
        for name, values in figures.items():
            for task, value in values.items():
                if task not in PLACES:
                    raise MismatchError(f"{name} of {result.label} in {task}: tasks are {', '.join(PLACES)}")
                if not all(0 <= one < 1000 for one in (value if isinstance(value, list) else [value])):
                    raise MismatchError(f"{name} of {result.label} in {task} is {value!r}, not a number from 0 on")
        for key, text in texts.items():
            if not text:
                raise MismatchError(f"{key} is {text!r}, not a text")
