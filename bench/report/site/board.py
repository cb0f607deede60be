"""The tables of a site: rows that its script sorts and filters, each with the setting in which it was measured."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.figures.index import IndexEntry
from bench.report.formats import NOT_LOSSLESS, SAMPLED, UNDEFINED, number, plural, times, times_between
from bench.report.html import ranges

LINK = Callable[[str], str]  # from a method's name without knobs to the address of its page
_FACETS = ("model", "machine", "dtype", "questions", "kind")
FACET_TITLES = {
    "model": "Model",
    "machine": "Machine",
    "dtype": "Number format",
    "questions": "Questions",
    "kind": "Kind of method",
}
ABOUT = (
    "**Speedup** is decode speed over plain decoding (*vanilla*) on the same prompts, machine and engine: a ratio of "
    "sums for each task, then the tasks' unweighted mean. Where questions are too few for an interval, there is none. "
    "*End-to-end* includes reading the prompt. **CR** is tokens per verification pass, and *output* counts the answers "
    "that equal plain decoding's token for token.\n\n"
    "Compare within one setting: another model, machine, number format or set of questions gives other speedups. "
    "*Official* questions are Spec-Bench's, *mini* those that come with Roobench; how many were asked is in brackets. "
    "Runs with the most questions come first, in each the fastest method."
)
KINDS = (
    "The kind says where drafts come from: *text* is looked up, *heads* are small networks on the model's states, "
    "*self* is the model's own layers or output, *model* is a second model. A *composition* takes the draft of the "
    "first of its members that has one. A *peer* is another engine's own decoding, for comparison."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table shows, and by what it is sorted."""

    text: str
    small: str = ""  # below it
    order: float | str | None = None  # None: not known, always last
    href: str = ""
    state: str = ""  # "good" | "bad": of the output
    points: dict[str, float] | None = None  # of a drawn interval
    marked: bool = False  # the main figure


@dataclass(frozen=True, slots=True)
class Head:
    """A column's heading; `wide` columns hold text, `long` ones much of it."""

    title: str
    wide: bool = False
    long: bool = False
    sorts: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A method in a run; `facets` are what filters go by."""

    cells: list[Cell]
    facets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Board:
    """A table that can be sorted, and filtered by its facets."""

    caption: str
    heads: list[Head]
    rows: list[Row]
    facets: dict[str, list[str]] = field(default_factory=dict)  # title by facet, only where there is a choice


def leaderboard(entries: Sequence[IndexEntry], href: LINK, up: str = "", caption: str = "Leaderboard") -> Board:
    """A row an entry, but for the baselines: runs as they come, in each the fastest first. `up`: to the reports."""
    shown = ranked(entries)
    drawn = ranges([entry.speedup for entry in shown])
    rows = [Row(_cells(entry, href, up, points), facets(entry)) for entry, points in zip(shown, drawn, strict=True)]
    choices = {name: list(dict.fromkeys(row.facets[name] for row in rows)) for name in _FACETS}
    heads = [Head("method", wide=True), Head("speedup"), Head("95% interval", sorts=False)]
    heads += [Head(title) for title in ("end-to-end", "CR", "tokens/s")]
    heads += [Head("output", wide=True), Head("model and machine", wide=True, long=True)]
    heads += [Head(title, wide=True) for title in ("questions", "report")]
    several = {name: sorted(found, key=str.lower) for name, found in choices.items() if len(found) > 1}
    return Board(caption, heads, rows, several)


def by_questions(entries: Iterable[IndexEntry]) -> list[IndexEntry]:
    """Runs that asked the most questions first, the others as they come."""
    return sorted(entries, key=lambda entry: -(entry.questions.asked or 0))


def with_intervals(entries: Sequence[IndexEntry]) -> Sequence[IndexEntry]:
    """Those whose speedup has an interval; all of them if none has."""
    return [entry for entry in entries if entry.speedup.bounds] or entries


def ranked(entries: Iterable[IndexEntry]) -> list[IndexEntry]:
    """All but the baselines: runs as they come, in each the fastest first, peers last."""
    runs: dict[str, list[IndexEntry]] = {}
    for entry in entries:
        if entry.kind != "vanilla":
            runs.setdefault(entry.run_id, []).append(entry)
    return [
        entry
        for found in runs.values()
        for entry in sorted(found, key=lambda e: (e.kind == "peer", -(e.speedup.value or 0.0)))
    ]


def _cells(entry: IndexEntry, href: LINK, up: str, points: dict[str, float] | None) -> list[Cell]:
    speed = entry.speedup
    value, _, interval = times_between(speed).partition(" ")
    return [
        Cell(entry.base, notes_text(entry), entry.method, href(entry.base)),
        Cell(value, interval, speed.value, marked=True),
        Cell("", points=points),
        Cell(times(entry.speedup_end_to_end.value), "", entry.speedup_end_to_end.value),
        Cell(number(entry.compression_rate), "", entry.compression_rate),
        Cell(number(entry.tok_per_s, 1), f"vanilla {number(entry.tok_per_s_vanilla, 1)}", entry.tok_per_s),
        output(entry),
        where(entry),
        asked(entry),
        Cell(day(entry), commit(entry), entry.date or None, up + entry.report if entry.report else ""),
    ]


def output(entry: IndexEntry) -> Cell:
    """How the answers compare with plain decoding's. Ties are neither good nor bad."""
    if not entry.claims_lossless:
        return Cell(NOT_LOSSLESS, "by design", -1.0, state="bad")
    counts = entry.lossless or {}
    audited = sum(counts.values())
    if not audited:
        return Cell(SAMPLED if entry.sampling else UNDEFINED)
    others = ", ".join(f"{many} {verdict}" for verdict, many in counts.items() if many and verdict != "identical")
    wrong = counts.get("different") and entry.kind == "method"
    state = "bad" if wrong else "" if others else "good"
    same = counts.get("identical", 0)
    return Cell(f"{same}/{audited}", others or "identical", same / audited, state=state)


def facets(entry: IndexEntry) -> dict[str, str]:
    """What a row can be filtered by."""
    kind = "peer" if entry.kind == "peer" else entry.family or "other"
    values = (entry.model.name, machine(entry), entry.dtype, questions(entry), kind)
    return dict(zip(_FACETS, values, strict=True))


def where(entry: IndexEntry) -> Cell:
    """The model, and below it its number format and the machine."""
    small = "; ".join(filter(None, (entry.dtype, entry.sampling, machine(entry))))
    return Cell(entry.model.name, small, f"{entry.model.name} {small}")


def asked(entry: IndexEntry) -> Cell:
    """The questions, and below them how long answers could be."""
    many = entry.questions
    return Cell(f"{many.name} ({many.asked})", f"{many.max_new_tokens} new tokens", questions(entry))


def target(entry: IndexEntry) -> str:
    """The model with its number format, and how tokens were drawn if not greedily."""
    return ", ".join(filter(None, (entry.model.name, entry.dtype, entry.sampling)))


def machine(entry: IndexEntry) -> str:
    """A machine by its name and digest, with the threads that were used."""
    return f"{entry.machine.name}, {plural(entry.threads, 'thread')} ({entry.machine.digest})"


def questions(entry: IndexEntry) -> str:
    """A set of questions, and how long answers could be."""
    return f"{entry.questions.name} ({entry.questions.asked}), {entry.questions.max_new_tokens} new tokens"


def exactly_asked(entry: IndexEntry) -> str:
    """The questions, with a digest of those that were answered, and the value of the run's axis."""
    at = f", at {entry.axis} {entry.first_value:g}" if entry.first_value is not None else ""
    digest = f" ({entry.questions.digest})" if entry.questions.digest else ""
    return f"{questions(entry)}{digest}{at}"


def knobs_text(entry: IndexEntry) -> str:
    """The knobs of a label, without the method's name; of a composition the members that have any."""
    if "+" in entry.base:
        return ", ".join(member for member in entry.method.split("+") if ":" in member)
    return entry.method.partition(":")[2]


def notes_text(entry: IndexEntry) -> str:
    """The knobs, and what keeps a row's figures from being compared with the others'."""
    asked_all = entry.questions.asked is None or entry.answered >= entry.questions.asked
    notes = [
        knobs_text(entry),
        "remembers the run" if entry.remembers_the_run else "",
        "" if asked_all else f"{entry.answered} of {plural(entry.questions.asked or 0, 'question')}",
    ]
    return "; ".join(filter(None, notes))


def cautions(entries: Iterable[IndexEntry]) -> list[tuple[str, str]]:
    """What methods say of their own figures, each sentence once, with the method that says it."""
    found = {text: entry.method for entry in reversed(list(entries)) for text in entry.cautions}
    return [(method, text) for text, method in found.items()][::-1]


def day(entry: IndexEntry) -> str:
    """The day of a run, as people write it."""
    if not entry.date:
        return UNDEFINED
    when = datetime.datetime.fromisoformat(entry.date)
    return f"{when.day} {when:%b %Y}"


def commit(entry: IndexEntry) -> str:
    """The commit of a run, or the version of an installed Roobench."""
    if not entry.commit:
        return f"version {entry.roobench}" if entry.roobench else ""
    return entry.commit[:7] + ("+" if entry.dirty else "")


def setting_text(entry: IndexEntry) -> str:
    """Everything that must be alike before figures are compared."""
    return "; ".join((target(entry), machine(entry), exactly_asked(entry)))


def is_fair(entry: IndexEntry) -> bool:
    """Return whether a method may be a setting's fastest: it promises plain decoding's output and knew no answers.

    And it answered all questions, but for those on which some method failed, which no figure of the run has.
    """
    promises = entry.kind == "method" and entry.claims_lossless and not entry.remembers_the_run
    asked = entry.questions
    return promises and asked.asked is not None and entry.answered + asked.failed >= asked.asked


def best(entries: Iterable[IndexEntry]) -> IndexEntry | None:
    """The fastest fair method that kept plain decoding's output."""
    kept = [entry for entry in entries if is_fair(entry) and not (entry.lossless or {}).get("different")]
    known = [entry for entry in kept if entry.speedup.value is not None]
    return max(known, key=lambda entry: entry.speedup.value or 0.0, default=None)


def by_setting(entries: Iterable[IndexEntry]) -> list[list[IndexEntry]]:
    """The entries that can be compared with each other, settings as they come."""
    found: dict[Any, list[IndexEntry]] = {}
    for entry in entries:
        found.setdefault(entry.setting, []).append(entry)
    return list(found.values())
