"""What papers and leaderboards say of the methods that a run measured: `results/published/*.json`, read and shown.

A published figure is of another model on another device in another harness. Wherever one is shown, its source,
model and hardware stand in its row, and words say that it was not measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.figures.metrics import OVERALL, TASKS
from bench.report.formats import (
    Table,
    count,
    device_name,
    markdown_table,
    number,
    of_kind,
    overall,
    shown_name,
    task_name,
    times_between,
    window_list,
)

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
SCHEMA = 1
THIS_RUN = "**this run**"
DIFFERENCE = (
    "Not measured here, and not comparable one to one: model, device, harness, answers' length and, unless this run is "
    "of Spec-Bench's official questions, the questions differ. The rows show what the method reached elsewhere; they "
    "say nothing of how it would do on this device, and this run nothing of theirs. Their overall is the mean of the "
    "six tasks (Kangaroo's paper) or the leaderboard's own; ours pools the questions, where all six tasks were asked."
)
_PLACES = (*TASKS, OVERALL)


@dataclass(frozen=True, slots=True)
class Result:
    """One method on one model and device, as published. Figures are by task, `overall` among them where given."""

    method: str  # as our methods are called where we have one: "kangaroo", "medusa"
    label: str  # as the source calls it
    model: str
    hardware: str
    settings: str
    speedup: dict[str, float]
    compression_rate: dict[str, float]
    ctar: dict[str, list[float]]  # w = 1, 2, ...
    extra_parameters: int = 0  # 0: not said
    knobs: dict[str, float] = field(default_factory=dict)  # of `settings`, those that programs read, by our names


@dataclass(frozen=True, slots=True)
class Source:
    """A paper or leaderboard with its figures."""

    source: str  # its short name
    citation: str
    url: str
    benchmark: str
    definitions: dict[str, str]  # of the figures, by their name
    results: list[Result]
    ablations: list[dict[str, Any]]  # method, model, what was varied, read_off_a_figure, points
    notes: list[str]


def read_published(folder: Path = PUBLISHED) -> list[Source]:
    """Every source of a folder, by file name; none where the folder is missing (an installation without the data).

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
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; mend or remove the file") from error
    try:
        schema = value.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r} is not {SCHEMA}")
        found = Source(**(value | {"results": [_result(item) for item in value["results"]]}))
        _check(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is no file of published figures: {what}; mend or remove it") from error
    return found


def same_method(summary: Mapping[str, Any], sources: list[Source]) -> dict[str, list[tuple[Source, Result]]]:
    """Published results of the run's methods, by the method's name without its knobs; only those that there are."""
    bases = dict.fromkeys(name.partition(":")[0] for name in of_kind(dict(summary), "method"))
    found = {base: [(s, result) for s in sources for result in s.results if result.method == base] for base in bases}
    return {base: results for base, results in found.items() if results}


def variants(summary: dict[str, Any], base: str) -> dict[str, dict[str, Any]]:
    """The run's methods that are `base` with any knobs."""
    return {name: entry for name, entry in of_kind(summary, "method").items() if name.partition(":")[0] == base}


def comparable(summary: dict[str, Any]) -> tuple[str, str]:
    """The key of our speedup that is nearest to what is published, and what to call it.

    Papers measure with Spec-Bench's script: prefill included, means of the questions' rates.
    """
    key = "speedup_total_mean_rates"
    if all(key in overall(entry) for entry in of_kind(summary, "method").values()):
        return key, "end-to-end, Spec-Bench's mean of rates"
    return "speedup_total", "end-to-end, ratio of sums"


def published_rows(summary: dict[str, Any], sources: list[Source]) -> list[dict[str, Any]]:
    """Flat, for other pages: a dictionary a published result of a method that the run has too, none of ours.

    Keys: method, label, source, citation, url, model, hardware, settings, and by task `speedup`,
    `compression_rate` and `ctar`.
    """
    keys = ("method", "label", "model", "hardware", "settings", "speedup", "compression_rate", "ctar")
    return [
        {"source": source.source, "citation": source.citation, "url": source.url}
        | {key: getattr(result, key) for key in keys}
        for found in same_method(summary, sources).values()
        for source, result in found
    ]


def published_tables(summary: dict[str, Any], sources: list[Source]) -> dict[str, list[Table]]:
    """By method: speedup, CR and CTAR, ours first and marked, every row with its source, model and hardware."""
    return {
        base: [
            _speedups(summary, base, found),
            _rates(summary, base, found),
            *([_ctar(summary, base, found)] if any(result.ctar for _, result in found) else []),
        ]
        for base, found in same_method(summary, sources).items()
    }


def published_markdown(summary: dict[str, Any], sources: list[Source]) -> str:
    """The section's text, tables and sources; nothing where nothing is published of the run's methods."""
    tables = published_tables(summary, sources)
    if not tables:
        return ""
    sampled = " Theirs are greedy, ours are sampled." if summary["sampling"] else ""
    parts = [f"{DIFFERENCE}{sampled} Ours: {comparable(summary)[1]}, which is nearest to how the sources measure."]
    for base, found in tables.items():
        parts += [f"### {base}, here and as published", *(markdown_table(*table) for table in found)]
    used = dict.fromkeys(source.source for found in same_method(summary, sources).values() for source, _ in found)
    return "\n\n".join([*parts, *(_source_text(source) for source in sources if source.source in used)])


def _speedups(summary: dict[str, Any], base: str, found: list[tuple[Source, Result]]) -> Table:
    key = comparable(summary)[0]
    rows = _ours(summary, base, lambda cell: times_between(cell[key]))
    rows += [[*_where(source, result), *_figures(result.speedup, "x")] for source, result in found]
    return _table("speedup", rows)


def _rates(summary: dict[str, Any], base: str, found: list[tuple[Source, Result]]) -> Table:
    rows = _ours(summary, base, lambda cell: number(cell["compression_rate"]))
    rows += [[*_where(source, result), *_figures(result.compression_rate)] for source, result in found]
    return _table("CR", rows)


def _ctar(summary: dict[str, Any], base: str, found: list[tuple[Source, Result]]) -> Table:
    """Of the tasks that any source has."""
    tasks = [task for task in _PLACES if any(task in result.ctar for _, result in found)]
    rows = []
    for row, entry in zip(_ours(summary, base, str), variants(summary, base).values(), strict=True):
        cells = [entry["tasks"].get(task) for task in tasks]
        rows.append([*row[:4], *(window_list(cell["ctar"] if cell else None) for cell in cells)])
    for source, result in found:
        if result.ctar:
            rows.append([*_where(source, result), *(window_list(result.ctar.get(task)) for task in tasks)])
    header = ["CTAR(1..)", "method", "model", "hardware", *map(task_name, tasks)]
    return Table(header, rows, [True] * len(header))


def _ours(summary: dict[str, Any], base: str, show: Any) -> list[list[str]]:
    return [
        [THIS_RUN, shown_name(name, entry), our_setting(summary), device_name(summary["device"])]
        + [show(entry["tasks"][task]) if task in places_of(entry) else "-" for task in _PLACES]
        for name, entry in variants(summary, base).items()
    ]


def our_setting(summary: dict[str, Any]) -> str:
    """What stands in the place of the sources' models: ours, and what it was asked."""
    dataset = summary["dataset"]
    limit = dataset.get("max_new_tokens")
    asked = f"{dataset['name']} questions" + (f", {limit} new tokens" if limit else "")
    return f"{summary['model']} ({summary['dtype']}), {asked}"


def places_of(entry: dict[str, Any]) -> list[str]:
    """The tasks that a method was asked; overall too where these are all six, as in what is published."""
    return [task for task in entry["tasks"] if task != OVERALL or all(task in entry["tasks"] for task in TASKS)]


def _where(source: Source, result: Result) -> list[str]:
    what = [result.settings, f"{count(result.extra_parameters)} extra parameters" if result.extra_parameters else ""]
    said = "; ".join(text for text in what if text)
    return [source.source, f"{result.label} ({said})" if said else result.label, result.model, result.hardware]


def _figures(values: dict[str, float], unit: str = "") -> list[str]:
    return [f"{values[task]:.2f}{unit}" if task in values else "-" for task in _PLACES]


def _table(figure: str, rows: list[list[str]]) -> Table:
    header = [figure, "method", "model", "hardware", *map(task_name, _PLACES)]
    return Table(header, rows, [True] * 4 + [False] * len(_PLACES))


def _source_text(source: Source) -> str:
    lines = [f"**{source.source}**: {source.citation}. <{source.url}>. Measured on {source.benchmark}."]
    lines += [f"- {name.replace('_', ' ')}: {text}" for name, text in source.definitions.items()]
    lines += [f"- {note}" for note in source.notes]
    return "\n".join([lines[0], "", *lines[1:]]) if lines[1:] else lines[0]


def _result(value: dict[str, Any]) -> Result:
    return Result(**value)


def _check(source: Source) -> None:
    """Raise ValueError for what would be shown wrongly."""
    texts = {"source": source.source, "citation": source.citation, "url": source.url, "benchmark": source.benchmark}
    for result in source.results:
        texts |= {key: getattr(result, key) for key in ("method", "label", "model", "hardware")}
        for name in ("speedup", "compression_rate"):
            for task, value in getattr(result, name).items():
                _check_number(f"{name} of {result.label} in {task}", task, value)
        for task, values in result.ctar.items():
            for value in values:
                _check_number(f"ctar of {result.label} in {task}", task, value)
        for key, text in texts.items():
            if not isinstance(text, str) or not text:
                raise ValueError(f"{key} is {text!r}, not a text")
    for ablation in source.ablations:
        if not {"method", "model", "what", "read_off_a_figure", "points"} <= ablation.keys():
            raise ValueError(f"the ablation {ablation.get('what')!r} has only {', '.join(ablation)}")


def _check_number(what: str, task: str, value: Any) -> None:
    if task not in _PLACES:
        raise ValueError(f"{what}: no such task; there are {', '.join(_PLACES)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1000:
        raise ValueError(f"{what} is {value!r}, not a number from 0 on")
