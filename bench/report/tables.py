"""The tables of a summary: for the terminal, for `report.md`, and flat for `summary.csv`."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.metrics import OVERALL, VERDICTS, Cell, ordered_tasks

if TYPE_CHECKING:
    import pandas as pd

TASK_NAMES = {
    "mt_bench": "Multi-turn conversation",
    "translation": "Translation",
    "summarization": "Summarization",
    "qa": "Question answering",
    "math_reasoning": "Math reasoning",
    "rag": "RAG",
    OVERALL: "Overall",
}
TERMINAL_COLUMNS = 110
UNDEFINED = "-"
NOT_LOSSLESS = "NOT lossless"
SAMPLED = "sampled"
_SEPARATOR = "  "
_TASK_CHARS = 24  # of a task's name in the terminal's overview; all of Spec-Bench's fit


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures: its heading, what it belongs to, and what it shows of a task (in an overview: a method)."""

    title: str
    show: Callable[[Cell], str]
    group: str = ""  # neighbours of one group share a heading in the terminal
    left: bool = False
    full: str = ""  # the heading where there is room; else group and title


def task_name(task: str) -> str:
    """A task as people call it; a task from elsewhere keeps its own name."""
    return TASK_NAMES.get(task, task)


def number(value: float | None, digits: int = 2) -> str:
    """A figure with a fixed number of decimals."""
    return UNDEFINED if value is None else f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    """A ratio, like `1.12x`."""
    return UNDEFINED if value is None else f"{value:.2f}x"


def window_list(values: Sequence[float | None] | None, limit: int | None = None) -> str:
    """A rate by window, like `0.50 0.22 0.10`."""
    return " ".join(number(value) for value in (values or [])[:limit]) or UNDEFINED


def count(value: int) -> str:
    """A count with thousands separators."""
    return f"{value:,}" if value else UNDEFINED


def shown_name(name: str, entry: dict[str, Any]) -> str:
    """A method's name where figures stand beside it: those of a lossy one must never pass for a lossless one's."""
    return name if entry["lossless"] else f"{name} (not lossless)"


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters: what is too much is left out in the middle, because labels differ at their ends."""
    if len(text) <= limit:
        return text
    kept = max(limit - 1, 2)
    return f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


def sampling_text(sampling: dict[str, Any] | None) -> str:
    """How tokens were drawn, like `temperature 0.7, top-p 0.8`; nothing for greedy decoding."""
    if sampling is None:
        return ""
    text = f"temperature {sampling['temperature']:g}"
    text += f", top-p {sampling['top_p']:g}" if sampling["top_p"] < 1 else ""
    return text + (f", top-k {sampling['top_k']}" if sampling["top_k"] else "")


def lossless_text(counts: dict[str, int] | None, *, sampled: bool = False) -> str:
    """The audit's verdicts, like `14/14 identical` or `13 identical, 1 numerical`."""
    if counts is None:
        return NOT_LOSSLESS
    audited = sum(counts.values())
    if audited == 0:
        return SAMPLED if sampled else "not checked"
    if counts["identical"] == audited:
        return f"{audited}/{audited} identical"
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def of_kind(summary: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The summary's methods of one kind ("vanilla", "method" or "peer"), by name."""
    return {name: entry for name, entry in summary["methods"].items() if entry["kind"] == kind}


def worth(cell: Cell, key: str) -> float | None:
    """What vanilla is worth in units of a peer: the inverse of the peer's speedup."""
    value = cell[key]["value"]
    return 1 / value if value else None


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[bool] = ()) -> str:
    """A GitHub table; columns are right-aligned but for those that `left` marks (default: the first)."""
    sides = list(left) or [True] + [False] * (len(header) - 1)
    rule = [":---" if side else "---:" for side in sides]
    return "\n".join("| " + " | ".join(map(_escape, row)) + " |" for row in (header, rule, *rows))


def method_markdown(entry: dict[str, Any], *, sampled: bool = False) -> str:
    """A method's main figures, one row a task."""
    return _markdown(entry, _method_columns(None, partial(lossless_text, sampled=sampled)))


def detail_markdown(entry: dict[str, Any]) -> str:
    """A method's other figures: what they were counted from, and why they are what they are."""
    columns = [
        Column("questions", lambda cell: f"{cell['questions']}"),
        Column("tokens", lambda cell: f"{cell['generated_tokens']:,}"),
        Column("steps", lambda cell: number(cell["steps"], 0)),
        Column("prefill, s", lambda cell: number(cell["ttft_s"], 3)),
        Column("time drafting", lambda cell: number(cell["draft_time_share"])),
        Column("repetition", lambda cell: number(cell["repetition"])),
        Column("ended by EOS", lambda cell: number(cell["eos_share"])),
        Column("conditional acceptance", lambda cell: window_list(cell["conditional_acceptance"]), left=True),
    ]
    return _markdown(entry, columns)


def peer_markdown(entry: dict[str, Any], *, sampled: bool = False) -> str:
    """What vanilla is worth in units of a peer, one row a task."""
    return _markdown(entry, _peer_columns(partial(lossless_text, sampled=sampled)))


def overview_markdown(summary: dict[str, Any]) -> str:
    """All methods and peers beside each other: decode speedup and CR by task, then the overall figures."""
    methods = of_kind(summary, "method")
    entries = {**methods, **of_kind(summary, "peer")}
    found = [_side_by_side("decode speedup", entries, lambda cell: times(cell["speedup_decode"]["value"]))]
    if methods:  # a peer brings its own loop: no steps, no CR
        found.append(_side_by_side("CR", methods, lambda cell: number(cell["compression_rate"])))
    columns = _overall_columns()
    rows = [[shown_name(name, e), *(column.show(e) for column in columns)] for name, e in entries.items()]
    found.append(markdown_table(["method, overall", *(column.title for column in columns)], rows))
    return "\n\n".join(found)


def vanilla_markdown(entry: dict[str, Any]) -> str:
    """Vanilla's own rates, one row a task."""
    return _markdown(entry, _vanilla_columns())


def terminal_table(summary: dict[str, Any]) -> str:
    """All of a summary's tables as plain text, at most 110 columns wide."""
    methods, peers = of_kind(summary, "method"), of_kind(summary, "peer")
    blocks = [_heading(summary)]
    for name, entry in methods.items():
        extra = f"{entry['extra_parameters']:,} extra parameters" if entry["extra_parameters"] else ""
        notes = [extra, "" if entry["lossless"] else NOT_LOSSLESS]
        title = name + "".join(f", {note}" for note in notes if note)
        blocks.append(f"{title}\n{_terminal_method(entry)}")
    if len(methods) > 1:
        blocks.append("overview\n" + "\n".join(_terminal_overview(methods)))
    for name, entry in peers.items():
        lines = _align(entry, _peer_columns(_identical))
        value = times(worth(entry["tasks"][OVERALL], "speedup_decode"))
        blocks.append(f"vanilla is {value} {shown_name(name, entry)} (decode, overall)\n" + "\n".join(lines))
    if not methods and not peers:
        for name, entry in of_kind(summary, "vanilla").items():
            blocks.append(f"{name} alone\n" + "\n".join(_align(entry, _vanilla_columns())))
    if methods:
        output = "identical: turns whose token ids equal vanilla's."
        if summary["sampling"]:
            output = "sampled answers are not compared token by token."
        blocks.append(
            "decode: tokens/s after the first token; total: prefill included; a task's speedup is a ratio of\n"
            "sums over the same prompts, overall is the tasks' unweighted mean; CTAR: share of steps that\n"
            f"added more than w tokens; {output}"
        )
    return "\n\n".join(blocks)


def csv_frame(summary: dict[str, Any]) -> pd.DataFrame:
    """One row a method and task (`overall` too), lists spread over numbered columns."""
    import pandas as pd

    rows = []
    for name, entry in summary["methods"].items():
        for task, cell in entry["tasks"].items():
            claimed = {"lossless_claimed": "true" if entry["lossless"] else "false"}  # as JSON spells them
            rows.append({"method": name, "kind": entry["kind"], "task": task} | _flat(cell) | claimed)
    # Columns in the order of first appearance, lists kept together whatever their length.
    order = {key: _csv_rank(key) for row in rows for key in row}
    # Without a type of their own, so that counts beside an empty field stay whole numbers.
    return pd.DataFrame(rows, columns=sorted(order, key=lambda key: order[key]), dtype=object)


def _method_columns(windows: int | None, verdict: Callable[[dict[str, int] | None], str]) -> list[Column]:
    many = "w = 1" if windows == 1 else f"w = 1..{windows}"
    return [
        Column("turns", lambda cell: f"{cell['turns']}"),
        Column("decode", lambda cell: times(cell["speedup_decode"]["value"]), "speedup"),
        Column("total", lambda cell: times(cell["speedup_total"]["value"]), "speedup", full="speedup end-to-end"),
        Column("method", lambda cell: number(cell["tok_per_s"], 1), "tok/s", full="tok/s"),
        Column("vanilla", lambda cell: number(cell["tok_per_s_vanilla"], 1), "tok/s", full="vanilla tok/s"),
        Column("CR", lambda cell: number(cell["compression_rate"])),
        Column(many, lambda cell: window_list(cell["ctar"], windows), "CTAR", left=True, full="CTAR(1..)"),
        Column("share", lambda cell: number(cell["draft_token_share"]), "draft"),
        Column("identical", lambda cell: verdict(cell["lossless"]), "output", full="lossless"),
    ]


def _peer_columns(verdict: Callable[[dict[str, int] | None], str]) -> list[Column]:
    return [
        Column("turns", lambda cell: f"{cell['turns']}"),
        Column("decode", lambda cell: times(worth(cell, "speedup_decode")), "vanilla is", full="vanilla is, decode"),
        Column("total", lambda cell: times(worth(cell, "speedup_total")), "vanilla is", full="vanilla is, end-to-end"),
        Column("peer", lambda cell: number(cell["tok_per_s"], 1), "tok/s", full="peer tok/s"),
        Column("vanilla", lambda cell: number(cell["tok_per_s_vanilla"], 1), "tok/s", full="vanilla tok/s"),
        Column("identical", lambda cell: verdict(cell["lossless"]), "output", full="lossless"),
    ]


def _vanilla_columns() -> list[Column]:
    return [
        Column("turns", lambda cell: f"{cell['turns']}"),
        Column("tokens", lambda cell: f"{cell['generated_tokens']:,}"),
        Column("tok/s", lambda cell: number(cell["tok_per_s"], 1), "decode"),
        Column("seconds", lambda cell: number(cell["ttft_s"], 3), "prefill", full="prefill, s"),
        Column("repetition", lambda cell: number(cell["repetition"])),
        Column("by EOS", lambda cell: number(cell["eos_share"]), "ended", full="ended by EOS"),
    ]


def _overall_columns() -> list[Column]:
    """Of a method or peer, for the page."""
    return [
        Column("extra parameters", lambda entry: count(entry["extra_parameters"])),
        Column("speedup decode", lambda entry: times(_overall(entry)["speedup_decode"]["value"])),
        Column("speedup end-to-end", lambda entry: times(_overall(entry)["speedup_total"]["value"])),
        Column("CR", lambda entry: number(_overall(entry)["compression_rate"])),
        Column("draft share", lambda entry: number(_overall(entry)["draft_token_share"])),
        Column("time drafting", lambda entry: number(_overall(entry)["draft_time_share"])),
    ]


def _overview_columns() -> list[Column]:
    """Of a method, for the terminal."""
    return [
        Column("decode", lambda entry: times(_overall(entry)["speedup_decode"]["value"]), "speedup"),
        Column("total", lambda entry: times(_overall(entry)["speedup_total"]["value"]), "speedup"),
        Column("CR", lambda entry: number(_overall(entry)["compression_rate"])),
        Column("parameters", lambda entry: count(entry["extra_parameters"]), "extra"),
        Column("task", _slowest, "slowest", left=True),
        Column("identical", lambda entry: _identical(_overall(entry)["lossless"]), "output"),
    ]


def _overall(entry: dict[str, Any]) -> Cell:
    cell: Cell = entry["tasks"][OVERALL]
    return cell


def _slowest(entry: dict[str, Any]) -> str:
    """The task that the method helps least, like `RAG 0.45x`."""
    speedups = {task: cell["speedup_decode"]["value"] for task, cell in entry["tasks"].items() if task != OVERALL}
    defined = {task: value for task, value in speedups.items() if value is not None}
    if not defined:
        return UNDEFINED
    task = min(defined, key=lambda task: defined[task])
    return f"{shortened(task_name(task), _TASK_CHARS)} {times(defined[task])}"


def _side_by_side(figure: str, entries: dict[str, dict[str, Any]], show: Callable[[Cell], str]) -> str:
    """One figure of several methods: one column each, one row a task."""
    tasks = [*ordered_tasks(task for e in entries.values() for task in e["tasks"] if task != OVERALL), OVERALL]
    rows = []
    for task in tasks:
        cells = [e["tasks"].get(task) for e in entries.values()]  # a peer may have been asked fewer tasks
        rows.append(_task_row(task, [show(cell) if cell else UNDEFINED for cell in cells]))
    return markdown_table([figure, *(shown_name(name, e) for name, e in entries.items())], rows)


def _task_row(task: str, figures: Sequence[str]) -> list[str]:
    row = [task_name(task), *figures]
    return [f"**{value}**" for value in row] if task == OVERALL else row


def _markdown(entry: dict[str, Any], columns: Sequence[Column]) -> str:
    header = ["task", *(column.full or f"{column.group} {column.title}".strip() for column in columns)]
    rows = [_task_row(task, [column.show(cell) for column in columns]) for task, cell in entry["tasks"].items()]
    return markdown_table(header, rows, [True, *(column.left for column in columns)])


def _terminal_method(entry: dict[str, Any]) -> str:
    """The method's table with as many CTAR windows as the width allows, and what was not identical."""
    windows = len(entry["tasks"][OVERALL]["ctar"] or [0])
    lines = _align(entry, _method_columns(windows, _identical))
    while windows > 1 and max(map(len, lines)) > TERMINAL_COLUMNS:
        windows -= 1
        lines = _align(entry, _method_columns(windows, _identical))
    counts = entry["tasks"][OVERALL]["lossless"]
    if counts and counts["identical"] != sum(counts.values()):
        lines.append(f"output of all turns: {lossless_text(counts)}")
    return "\n".join(lines)


def _terminal_overview(methods: dict[str, dict[str, Any]]) -> list[str]:
    """A line a method, with what fits of its name."""
    columns = _overview_columns()
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


def _identical(counts: dict[str, int] | None) -> str:
    """The share of identical turns, short enough for a terminal."""
    if counts is None:
        return NOT_LOSSLESS
    if not sum(counts.values()):
        return UNDEFINED
    return f"{counts['identical']}/{sum(counts.values())}"


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _flat(cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in cell.items():
        if key == "lossless":
            row |= {f"lossless_{verdict}": (value or {}).get(verdict) for verdict in VERDICTS}
        elif isinstance(value, dict):
            row |= {key if name == "value" else f"{key}_{name}": item for name, item in value.items()}
        elif key in ("ctar", "conditional_acceptance"):
            row |= {f"{key}_{w}": item for w, item in enumerate(value or [], 1)}
        else:
            row[key] = value
    return row


def _csv_rank(key: str) -> tuple[int, str, int]:
    """Plain figures keep their order (rank 0 sorts stably); the lists follow by name and window."""
    stem, _, window = key.rpartition("_")
    return (1, stem, int(window)) if window.isdigit() else (0, "", 0)
