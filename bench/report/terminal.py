"""A summary's tables as plain text, at most 110 columns wide."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.report.columns import (
    Column,
    method_columns,
    overview_columns,
    peer_columns,
    time_columns,
    vanilla_columns,
)
from bench.report.formats import (
    NOT_LOSSLESS,
    has_intervals,
    identical_text,
    lossless_text,
    of_kind,
    overall,
    sampling_text,
    shortened,
    shown_is,
    shown_name,
    task_name,
    timed,
    times,
    times_between,
)

TERMINAL_COLUMNS = 110
_SEPARATOR = "  "


def terminal_table(summary: dict[str, Any]) -> str:
    """All of a summary's tables as plain text, at most 110 columns wide."""
    methods, peers = of_kind(summary, "method"), of_kind(summary, "peer")
    blocks = [_heading(summary), *(_method(name, entry) for name, entry in methods.items())]
    if len(methods) > 1:
        blocks.append("overview\n" + "\n".join(_by_method(methods, overview_columns())))
    steps = {name: e for name, e in {**of_kind(summary, "vanilla"), **methods}.items() if timed(e)}
    if any(name in methods for name in steps):
        blocks.append(_times(steps))
    for name, entry in peers.items():
        lines = _align(entry, peer_columns(identical_text))
        value = times_between(overall(entry).get("worth_decode"))
        blocks.append(f"vanilla is {value} {shown_name(name, entry)} (decode, overall)\n" + "\n".join(lines))
    if not methods and not peers:
        for name, entry in of_kind(summary, "vanilla").items():
            blocks.append(f"{name} alone\n" + "\n".join(_align(entry, vanilla_columns())))
    if methods or peers:
        blocks.append(_notes(summary, bool(methods)))
    return "\n\n".join(blocks)


def _notes(summary: dict[str, Any], methods: bool) -> str:
    """What the figures are: the estimator and its interval, then the words."""
    output = "identical: turns whose token ids equal vanilla's."
    if summary["sampling"]:
        output = "sampled answers are not compared token by token."
    more = " (its intervals: report.md)" if has_intervals(summary) and methods else ""
    words = f"decode: tokens/s after the first token; total: prefill included{more}; "
    words += "CTAR: share of steps that added more than w tokens; " if methods else ""
    return "\n".join(textwrap.wrap(f"{shown_is(summary)} {words}{output}", TERMINAL_COLUMNS))


def _method(name: str, entry: dict[str, Any]) -> str:
    extra = f"{entry['extra_parameters']:,} extra parameters" if entry["extra_parameters"] else ""
    notes = [extra, "" if entry["lossless"] else NOT_LOSSLESS]
    title = name + "".join(f", {note}" for note in notes if note)
    lines = _fitting(entry)
    counts = overall(entry)["lossless"]
    if counts and counts["identical"] != sum(counts.values()):
        lines.append(f"output of all turns: {lossless_text(counts)}")
    return "\n".join([title, *lines])


def _fitting(entry: dict[str, Any]) -> list[str]:
    """The method's table as wide as it may be: first CTAR windows go, then the draft share, then an interval."""
    windows = len(overall(entry)["ctar"] or [0])
    for dropped in ((), ("share",), ("share", "total")):
        for limit in range(windows, min(windows, 2) - 1, -1):
            lines = _align(entry, _without(method_columns(limit, identical_text), dropped))
            if max(map(len, lines)) <= TERMINAL_COLUMNS:
                return lines
    return _align(entry, _without(method_columns(1, identical_text), ("share", "total")))


def _without(columns: Sequence[Column], dropped: Sequence[str]) -> list[Column]:
    """Without the draft share; with an end-to-end speedup that lost its interval."""
    kept = [column for column in columns if not (column.title == "share" and "share" in dropped)]
    if "total" not in dropped:
        return kept
    bare = {"total": lambda cell: times(cell["speedup_total"]["value"])}
    return [replace(column, show=bare[column.title]) if column.title in bare else column for column in kept]


def _times(entries: dict[str, dict[str, Any]]) -> str:
    lines = _by_method(entries, time_columns())
    note = (
        "in vanilla steps, all tasks (their unweighted mean); predictions come from microbenchmarks and the "
        "warm-up, made before the run, over the steps that it took; error: predicted over measured speedup, less one"
    )
    return "\n".join(["where the time goes", *lines, *textwrap.wrap(note, TERMINAL_COLUMNS)])


def _by_method(methods: dict[str, dict[str, Any]], columns: Sequence[Column]) -> list[str]:
    """A line a method, with what fits of its name."""
    figures = [[column.show(entry) for column in columns] for entry in methods.values()]
    longest = max(map(len, methods))
    lines = _grid("method", columns, [[name, *row] for name, row in zip(methods, figures, strict=True)])
    limit = longest - max(0, max(map(len, lines)) - TERMINAL_COLUMNS)
    names = [shortened(name, limit) for name in methods]
    return _grid("method", columns, [[name, *row] for name, row in zip(names, figures, strict=True)])


def _align(entry: dict[str, Any], columns: Sequence[Column]) -> list[str]:
    """Two lines of headings, a rule, a line a task, a rule, the overall line."""
    rows = [[task_name(task), *(column.show(cell) for column in columns)] for task, cell in entry["tasks"].items()]
    lines = _grid("task", columns, rows)
    return [*lines[:-1], lines[2], lines[-1]]


def _grid(first: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Two lines of headings, a rule, a line a row. A row has its name, then the columns' figures."""
    groups = ["", *(column.group for column in columns)]
    titles = [first, *(column.title for column in columns)]
    left = [True, *(column.left for column in columns)]
    widths = [max(map(len, values)) for values in zip(titles, *rows, strict=True)]
    for index, group in enumerate(groups):
        # A heading over one column must fit in it; over several, the first takes what is missing.
        members = [i for i, other in enumerate(groups) if group and other == group]
        if members and members[0] == index:
            span = sum(widths[i] for i in members) + len(_SEPARATOR) * (len(members) - 1)
            room = len(group) + (2 if len(members) > 1 else 0)
            widths[index] += max(0, room - span)
    lines = [_group_line(groups, widths, left)]
    for row in [titles, *rows]:
        cells = zip(row, widths, left, strict=True)
        text = (value.ljust(width) if side else value.rjust(width) for value, width, side in cells)
        lines.append(_SEPARATOR.join(text).rstrip())
    rule = "-" * (sum(widths) + len(_SEPARATOR) * (len(widths) - 1))
    return [*lines[:2], rule, *lines[2:]]


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


def _heading(summary: dict[str, Any]) -> str:
    """What was measured on what, and whether all of it was."""
    dataset, device = summary["dataset"], summary["device"]
    text = (
        f"{summary['model']} ({summary['dtype']}) on {device.get('name') or device.get('type')}, "
        f"{dataset['name']} questions ({dataset['questions']})"
    )
    if summary["sampling"]:
        text += f", {sampling_text(summary['sampling'])}"
    lines = textwrap.wrap(text, TERMINAL_COLUMNS)
    if not summary["complete"]:
        lines.append("INTERRUPTED: these are the questions that were finished")
    if summary["failed"]:
        ids = ", ".join(map(str, summary["excluded_questions"]))
        lines += textwrap.wrap(f"FAILED, left out on both sides: question {ids}", TERMINAL_COLUMNS)
    return "\n".join(lines)
