"""Tables as text, and all tables of a summary, as wide as the terminal and at most 110 columns."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence

from bench.figures.summary import Entry, Summary
from bench.report import engines, tables
from bench.report.formats import (
    NOT_LOSSLESS,
    axis_text,
    device_name,
    identical_text,
    intervals,
    lossless_text,
    plural,
    precision_text,
    sampling_text,
    shortened,
    shown_is,
    shown_name,
    times_between,
)
from bench.report.model import Strong, Table
from bench.text import columns, visible

_SEPARATOR = "  "
_LEAST_NAME = 16  # characters of a name that is shortened
_TIMES = (
    "In vanilla steps, over all tasks (their unweighted mean). Predictions are computed from costs measured before the "
    "run, for the steps that it took. Error: predicted over measured speedup, less 1."
)


def terminal_table(summary: Summary) -> str:
    """Return all of a summary's tables as text."""
    methods, peers = tables.in_order(summary, "method"), summary.of_kind("peer")
    blocks = [_heading(summary), *(_method(name, entry) for name, entry in methods.items())]
    if len(methods) > 1:
        blocks.append("\n".join(["overview", *_by_method(methods, tables.short_overview)]))
    steps = {name: entry for name, entry in tables.in_order(summary, "vanilla", "method").items() if entry.timed}
    if any(name in methods for name in steps):
        blocks.append("\n".join(["where the time goes", *_by_method(steps, tables.time), *_wrapped(_TIMES)]))
    for name, entry in peers.items():
        value = times_between(entry.overall.worth_decode)
        title = f"vanilla is {value} {shown_name(name, entry)} (decode, overall)"
        blocks.append("\n".join([*_wrapped(title), text_of(tables.peer(entry, identical_text))]))
    beside = (engines.headline(summary, name, found).replace("**", "") for name, found in summary.beside.items())
    blocks += ["\n".join(_wrapped(line)) for line in beside]
    if not methods and not peers:
        for name, entry in summary.of_kind("vanilla").items():
            blocks.append("\n".join([f"{name} alone", text_of(tables.vanilla(entry))]))
    if methods or peers:
        blocks.append(_notes(summary, bool(methods)))
    return visible("\n\n".join(blocks))


def print_table(table: Table) -> None:
    """Print a table: on a terminal with bold headings, elsewhere as plain text."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        print(visible(text_of(table) if console.is_terminal else "\n".join(lines_of(table))))
        return
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for part in fitted(table, console.width - len(table.columns)):  # rich's gap between columns is wider than ours
        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in part.columns:
            shown.add_column(
                Text(visible(column.short or column.title)), justify="left" if column.left else "right", no_wrap=True
            )
        for row in part.rows:
            cells = [Text(visible(cell), "bold" if isinstance(cell, Strong) else "") for cell in row]
            shown.add_row(*cells)
        console.print(shown)


def text_of(table: Table) -> str:
    """Return a table as text that fits the terminal, in several parts if need be."""
    return "\n\n".join("\n".join(lines_of(part)) for part in fitted(table, columns()))


def fitted(table: Table, limit: int) -> list[Table]:
    """Split a table that is wider than `limit` by its columns; each part repeats the first one."""
    if _width(table) <= limit:
        return [table]
    parts, start = [], 1
    while start < len(table.columns):
        end = start + 1
        while end < len(table.columns) and _width(_part(table, start, end + 1, limit)) <= limit:
            end += 1
        parts.append(_part(table, start, end, limit))
        start = end
    return parts or [table]


def _part(table: Table, start: int, end: int, limit: int) -> Table:
    """The columns from `start` up to `end` behind the first one, which is shortened to leave room for them."""
    shown = [table.columns[0], *table.columns[start:end]]
    cells = [(column.short or column.title) for column in shown[1:]] + [c for row in table.rows for c in row[start:end]]
    most = max(_LEAST_NAME // 2, min(limit // 2, limit - len(_SEPARATOR) - max(map(len, cells))))
    return Table(shown, [[type(row[0])(shortened(row[0], most)), *row[start:end]] for row in table.rows])


def _width(table: Table) -> int:
    return max(map(len, lines_of(table)))


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
    label = f"{entry.label}: {name}" if entry.label not in ("", name) else name
    extra = f"{entry.extra_parameters:,} extra parameters" if entry.extra_parameters else ""
    notes = [extra, "" if entry.lossless else NOT_LOSSLESS]
    title = label + "".join(f", {note}" for note in notes if note)
    lines = [*_wrapped(title), text_of(_fitting(entry))]
    counts = entry.overall.lossless
    if counts and counts["identical"] != sum(counts.values()):
        lines += _wrapped(f"output of all turns: {lossless_text(counts)}")
    return "\n".join(lines)


def _fitting(entry: Entry) -> Table:
    """A method's table: to fit, it first loses CTAR windows, then the draft share, then an interval."""
    windows, limit = len(entry.overall.ctar or [0]), columns()
    for narrow in (0, 1, 2):
        for shown in range(windows, min(windows, 2) - 1, -1):
            table = tables.method(entry, identical_text, shown, narrow)
            if _width(table) <= limit:
                return table
    return tables.method(entry, identical_text, 1, 2)


def _by_method(entries: Mapping[str, Entry], made: Callable[[Mapping[str, Entry]], Table]) -> list[str]:
    """One line per method; long names are shortened."""
    table = made(entries)
    limit = max(_LEAST_NAME, max(map(len, entries)) - max(0, _width(table) - columns()))
    rows = [[shortened(name, limit), *figures] for name, *figures in table.rows]
    return [text_of(Table(table.columns, rows))]


def _heading(summary: Summary) -> str:
    """What was measured on what, and whether the run is complete."""
    dataset = summary.dataset
    text = (
        f"{summary.model} ({precision_text(summary.dtype, summary.activations)}) on "
        f"{device_name(summary.device)}, {dataset.name} questions ({dataset.questions})"
    )
    if setting := sampling_text(summary.sampling) or axis_text(summary):
        text += f", {setting}"
    lines = _wrapped(text)
    if not summary.complete:
        lines += _wrapped("INTERRUPTED: only the questions that were finished")
    if summary.excluded_questions:
        ids = ", ".join(map(str, summary.excluded_questions))
        lines += _wrapped(f"FAILED, left out for all methods: question {ids}")
    elif summary.failed:
        lines += _wrapped(f"FAILED: {plural(len(summary.failed), 'turn')}, listed in the report")
    return "\n".join(lines)


def _notes(summary: Summary, methods: bool) -> str:
    """The estimator, its interval, and the terms."""
    output = "identical: turns whose token ids equal vanilla's."
    if summary.sampling:
        output = "sampled answers are not compared token by token."
    more = " (its intervals: report.md)" if intervals(summary) and methods else ""
    words = f"decode: tokens/s after the first token; total: prefill included{more}; "
    words += "CTAR: share of steps that added more than w tokens; " if methods else ""
    return "\n".join(_wrapped(f"{shown_is(summary)} {words}{output}"))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, columns())
