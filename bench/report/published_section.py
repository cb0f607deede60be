"""A run's figures next to published ones of the same methods, every row with its source, model and hardware."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from bench.figures.published import COMPARABLE, PLACES, Result, Source, places_of, same_method, variants
from bench.figures.summary import Cell, Summary
from bench.report.formats import (
    UNDEFINED,
    count,
    device_name,
    number,
    precision_text,
    shown_name,
    task_name,
    times,
    times_between,
    window_list,
)
from bench.report.model import Section, Strong, Table, table

T = TypeVar("T")
Show = Callable[[T, str], str]  # what a row shows of a task

TITLE = "Published figures of the same method"
_DIFFERENCE = (
    "Not measured here and not directly comparable: model, device, harness, answer length and, unless this run is of "
    "Spec-Bench's official questions, the questions differ. The rows show what the method achieved elsewhere; they do "
    "not predict what it achieves on this device. Their overall is the mean of the six tasks (the method's paper) or "
    "the leaderboard's own; ours pools the questions, if all six tasks were run."
)


def published_section(summary: Summary, sources: list[Source]) -> Section:
    """Speedup, CR and CTAR by method, then the sources; empty where nothing is published of the run's methods."""
    found = same_method(summary, sources)
    if not found:
        return Section(TITLE)
    sampled = " Theirs are greedy, ours are sampled." if summary.sampling else ""
    nearest = "end-to-end, Spec-Bench's mean of rates, which is nearest to how the sources measure"
    used = {source.source: source for results in found.values() for source, _ in results}
    return Section(
        TITLE,
        [
            f"{_DIFFERENCE}{sampled} Ours: {nearest}.",
            *by_method(summary, sources),
            *(_about(source) for source in sources if source.source in used),
        ],
        nav="Published",
    )


def by_method(summary: Summary, sources: list[Source]) -> list[Section]:
    """Speedup, CR and CTAR of each method that a source has figures of, ours and theirs in one table."""
    found = same_method(summary, sources)
    return [Section(f"{base}, here and as published", _tables(summary, base, of)) for base, of in found.items()]


def _tables(summary: Summary, base: str, found: list[tuple[Source, Result]]) -> list[Table]:
    """Ours first and marked. CTAR only of the tasks for which a source has it."""
    rated = [(source, result) for source, result in found if result.ctar]
    tasks = [task for task in PLACES if any(task in result.ctar for _, result in rated)]
    kinds: list[tuple[str, Sequence[str], list[tuple[Source, Result]], Show[Cell], Show[Result]]] = [
        (
            "speedup",
            PLACES,
            found,
            lambda c, _: times_between(getattr(c, COMPARABLE)),
            lambda r, t: times(r.speedup.get(t)),
        ),
        ("CR", PLACES, found, lambda c, _: number(c.compression_rate), lambda r, t: number(r.compression_rate.get(t))),
        ("CTAR(1..)", tasks, rated, lambda c, _: window_list(c.ctar), lambda r, t: window_list(r.ctar.get(t))),
    ]
    return [_table(summary, base, *kind) for kind in kinds if kind[2]]


def _table(
    summary: Summary,
    base: str,
    figure: str,
    tasks: Sequence[str],
    found: list[tuple[Source, Result]],
    ours: Show[Cell],
    theirs: Show[Result],
) -> Table:
    rows: list[list[str]] = []
    for name, entry in variants(summary, base).items():
        asked = places_of(entry)
        about = [Strong("this run"), shown_name(name, entry), _setting(summary), device_name(summary.device)]
        rows.append([*about, *(ours(entry.tasks[task], task) if task in asked else UNDEFINED for task in tasks)])
    rows += [[*_where(source, result), *(theirs(result, task) for task in tasks)] for source, result in found]
    header = [figure, "method", "model", "hardware", *map(task_name, tasks)]
    left = len(header) if figure.startswith("CTAR") else 4
    return table(header, rows, left, f"{base}: {figure}, here and as published")


def _setting(summary: Summary) -> str:
    """Our entry in the column of the sources' models: the model, and the questions it was given."""
    limit = summary.dataset.max_new_tokens
    asked = f"{summary.dataset.name} questions" + (f", {limit} new tokens" if limit else "")
    return f"{summary.model} ({precision_text(summary.dtype, summary.activations)}), {asked}"


def _where(source: Source, result: Result) -> list[str]:
    extra = f"{count(result.extra_parameters)} extra parameters" if result.extra_parameters else ""
    said = "; ".join(text for text in (result.settings, extra) if text)
    return [source.source, f"{result.label} ({said})" if said else result.label, result.model, result.hardware]


def _about(source: Source) -> str:
    first = f"**{source.source}**: {source.citation}. <{source.url}>. Measured on {source.benchmark}."
    lines = [f"- {name.replace('_', ' ')}: {text}" for name, text in source.definitions.items()]
    lines += [f"- {note}" for note in source.notes]
    return "\n".join([first, "", *lines]) if lines else first
