"""Tables as plain text, and a whole summary in at most 110 columns."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence

from bench.figures.summary import Entry, Summary
from bench.report import tables
from bench.report.formats import (
    NOT_LOSSLESS,
    device_name,
    identical_text,
    intervals,
    lossless_text,
    sampling_text,
    shortened,
    shown_is,
    shown_name,
    times_between,
)
from bench.report.model import Strong, Table

TERMINAL_COLUMNS = 110
_SEPARATOR = "  "
_TIMES = (
    "in vanilla steps, all tasks (their unweighted mean); predictions come from microbenchmarks and the "
    "warm-up, made before the run, over the steps that it took; error: predicted over measured speedup, less one"
)


def terminal_table(summary: Summary) -> str:
    """All of a summary's tables as plain text, at most 110 columns wide."""
    methods, peers = summary.of_kind("method"), summary.of_kind("peer")
    blocks = [_heading(summary), *(_method(name, entry) for name, entry in methods.items())]
    if len(methods) > 1:
        blocks.append("\n".join(["overview", *_by_method(methods, tables.short_overview)]))
    steps = {name: entry for name, entry in summary.of_kind("vanilla", "method").items() if entry.timed}
    if any(name in methods for name in steps):
        note = textwrap.wrap(_TIMES, TERMINAL_COLUMNS)
        blocks.append("\n".join(["where the time goes", *_by_method(steps, tables.time), *note]))
    for name, entry in peers.items():
        value = times_between(entry.overall.worth_decode)
        title = f"vanilla is {value} {shown_name(name, entry)} (decode, overall)"
        blocks.append("\n".join([title, *lines_of(tables.peer(entry, identical_text))]))
    if not methods and not peers:
        for name, entry in summary.of_kind("vanilla").items():
            blocks.append("\n".join([f"{name} alone", *lines_of(tables.vanilla(entry))]))
    if methods or peers:
        blocks.append(_notes(summary, bool(methods)))
    return "\n\n".join(blocks)


def lines_of(table: Table) -> list[str]:
    """The headings (groups above them where there are any), a rule, a line a row; a rule before a row in bold."""
    columns, rows = table.columns, table.rows
    titles = [column.short or column.title for column in columns]
    widths = [max(map(len, values)) for values in zip(titles, *rows, strict=True)]
    groups = [column.group for column in columns]
    for index, group in enumerate(groups):
        # A heading over one column must fit in it; over several, the first takes what is missing.
        members = [i for i, other in enumerate(groups) if group and other == group]
        if members and members[0] == index:
            span = sum(widths[i] for i in members) + len(_SEPARATOR) * (len(members) - 1)
            needed = len(group) + (2 if len(members) > 1 else 0)
            widths[index] += max(0, needed - span)
    left = [column.left for column in columns]
    rule = "-" * (sum(widths) + len(_SEPARATOR) * (len(widths) - 1))
    lines = [_group_line(groups, widths, left)] if any(groups) else []
    lines += [_line(titles, widths, left), rule]
    for row in rows:
        lines += [rule] if isinstance(row[0], Strong) else []
        lines.append(_line(row, widths, left))
    return lines


def _line(row: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    cells = zip(row, widths, left, strict=True)
    return _SEPARATOR.join(text.ljust(width) if side else text.rjust(width) for text, width, side in cells).rstrip()


def _group_line(groups: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    """The upper headings, each over its columns; over several it is drawn out with dashes."""
    parts = []
    start = 0
    for group, members in itertools.groupby(groups):
        end = start + len(list(members))
        span = sum(widths[start:end]) + len(_SEPARATOR) * (end - start - 1)
        if group and end - start > 1:
            drawn = f" {group} "
            parts.append(drawn.center(span, "-") if span >= len(drawn) + 2 else group.center(span))
        else:
            parts.append(group.ljust(span) if left[start] else group.rjust(span))
        start = end
    return _SEPARATOR.join(parts).rstrip()


def _method(name: str, entry: Entry) -> str:
    extra = f"{entry.extra_parameters:,} extra parameters" if entry.extra_parameters else ""
    notes = [extra, "" if entry.lossless else NOT_LOSSLESS]
    title = name + "".join(f", {note}" for note in notes if note)
    lines = _fitting(entry)
    counts = entry.overall.lossless
    if counts and counts["identical"] != sum(counts.values()):
        lines.append(f"output of all turns: {lossless_text(counts)}")
    return "\n".join([title, *lines])


def _fitting(entry: Entry) -> list[str]:
    """The method's table as wide as it may be: first CTAR windows go, then the draft share, then an interval."""
    windows = len(entry.overall.ctar or [0])
    for narrow in (0, 1, 2):
        for limit in range(windows, min(windows, 2) - 1, -1):
            lines = lines_of(tables.method(entry, identical_text, limit, narrow))
            if max(map(len, lines)) <= TERMINAL_COLUMNS:
                return lines
    return lines_of(tables.method(entry, identical_text, 1, 2))


def _by_method(entries: Mapping[str, Entry], made: Callable[[Mapping[str, Entry]], Table]) -> list[str]:
    """A line a method, with what fits of its name."""
    table = made(entries)
    widest = max(map(len, lines_of(table)))
    limit = max(map(len, entries)) - max(0, widest - TERMINAL_COLUMNS)
    rows = [[shortened(name, limit), *figures] for name, *figures in table.rows]
    return lines_of(Table(table.columns, rows))


def _heading(summary: Summary) -> str:
    """What was measured on what, and whether all of it was."""
    dataset = summary.dataset
    text = (
        f"{summary.model} ({summary.dtype}) on {device_name(summary.device)}, "
        f"{dataset.name} questions ({dataset.questions})"
    )
    if summary.sampling:
        text += f", {sampling_text(summary.sampling)}"
    lines = textwrap.wrap(text, TERMINAL_COLUMNS)
    if not summary.complete:
        lines.append("INTERRUPTED: these are the questions that were finished")
    if summary.failed:
        ids = ", ".join(map(str, summary.excluded_questions))
        lines += textwrap.wrap(f"FAILED, left out on both sides: question {ids}", TERMINAL_COLUMNS)
    return "\n".join(lines)


def _notes(summary: Summary, methods: bool) -> str:
    """What the figures are: the estimator and its interval, then the words."""
    output = "identical: turns whose token ids equal vanilla's."
    if summary.sampling:
        output = "sampled answers are not compared token by token."
    more = " (its intervals: report.md)" if intervals(summary) and methods else ""
    words = f"decode: tokens/s after the first token; total: prefill included{more}; "
    words += "CTAR: share of steps that added more than w tokens; " if methods else ""
    return "\n".join(textwrap.wrap(f"{shown_is(summary)} {words}{output}", TERMINAL_COLUMNS))
