"""The tables of a summary: for `report.md`, and flat for `summary.csv`. Words and numbers are written by `formats`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.figures.metrics import OVERALL, VERDICTS, Cell, ordered_tasks
from bench.report.columns import (
    Column,
    method_columns,
    overall_columns,
    peer_columns,
    time_columns,
    vanilla_columns,
)
from bench.report.formats import (
    UNDEFINED,
    Table,
    lossless_text,
    markdown_table,
    number,
    of_kind,
    overall,
    shown_name,
    task_name,
    timed,
    times_between,
    window_list,
)

if TYPE_CHECKING:
    import pandas as pd

ESTIMATORS = {  # by the ending of their keys in a summary
    "": "ratio of sums",
    "_mean_rates": "Spec-Bench's mean of rates",
    "_geometric": "geometric mean",
}
_NESTED = {"step_time": ("draft", "verify", "rest", "total"), "predicted": ("step_cost", "speedup")}
_LISTS = ("ctar", "conditional_acceptance", "window_ctar", "emitted_histogram")
_DISTRIBUTIONS = ("confidence", "context")  # tables of their own: in `summary.json`


def as_markdown(table: Table) -> str:
    """A table as Markdown, the overall row in bold."""
    name = task_name(OVERALL)
    rows = [[f"**{value}**" for value in row] if row[0] == name else row for row in table.rows]
    return markdown_table(table.header, rows, table.left)


def headline_rows(summary: dict[str, Any]) -> Table:
    """Decode speedup with intervals: one row a task, one column a method or peer."""
    entries = {**of_kind(summary, "method"), **of_kind(summary, "peer")}
    return _side_by_side("decode speedup", entries, lambda cell: times_between(cell["speedup_decode"]))


def overall_rows(summary: dict[str, Any]) -> Table:
    """One row a method or peer: what it adds and gains over all tasks."""
    entries = {**of_kind(summary, "method"), **of_kind(summary, "peer")}
    columns = overall_columns()
    rows = [[shown_name(name, e), *(column.show(e) for column in columns)] for name, e in entries.items()]
    return Table(["method, overall", *(column.title for column in columns)], rows, [])


def overview_rows(summary: dict[str, Any]) -> list[Table]:
    """All methods beside each other by task: end-to-end speedup (peers too), then CR."""
    methods = of_kind(summary, "method")
    entries = {**methods, **of_kind(summary, "peer")}
    found = [_side_by_side("end-to-end speedup", entries, lambda cell: times_between(cell["speedup_total"]))]
    if methods:  # a peer brings its own loop: no steps, no CR
        found.append(_side_by_side("CR", methods, lambda cell: number(cell["compression_rate"])))
    return found


def overview_markdown(summary: dict[str, Any]) -> str:
    """`overview_rows` as Markdown."""
    return "\n\n".join(as_markdown(table) for table in overview_rows(summary))


def against_rows(summary: dict[str, Any]) -> Table | None:
    """Decode speed of each method (rows) over each other one's (columns); None for fewer than two."""
    found = summary.get("against")
    if not found:
        return None
    shown = {name: shown_name(name, summary["methods"][name]) for name in found}
    rows = [
        [shown[name], *(times_between(row[other]) if other in row else UNDEFINED for other in found)]
        for name, row in found.items()
    ]
    return Table(["decode speed of", *(f"over {name}" for name in shown.values())], rows, [])


def method_rows(entry: dict[str, Any], *, sampled: bool = False) -> Table:
    """A method's main figures, one row a task."""
    return _by_task(entry, method_columns(None, partial(lossless_text, sampled=sampled)))


def method_markdown(entry: dict[str, Any], *, sampled: bool = False) -> str:
    """`method_rows` as Markdown."""
    return as_markdown(method_rows(entry, sampled=sampled))


def detail_rows(entry: dict[str, Any]) -> Table:
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
    if any(cell.get("window_ctar") for cell in entry["tasks"].values()):
        columns.append(Column("window CTAR(1..)", lambda cell: window_list(cell.get("window_ctar")), left=True))
    return _by_task(entry, columns)


def detail_markdown(entry: dict[str, Any]) -> str:
    """`detail_rows` as Markdown."""
    return as_markdown(detail_rows(entry))


def estimator_rows(entry: dict[str, Any]) -> Table | None:
    """Three ways to average, decode and end-to-end, one row a task; None for a summary from before them."""
    keys = [f"speedup_{part}{ending}" for part in ("decode", "total") for ending in ESTIMATORS]
    if not all(key in overall(entry) for key in keys):
        return None
    names = [f"{part}: {name}" for part in ("decode", "end-to-end") for name in ESTIMATORS.values()]

    def shown(key: str) -> Callable[[Cell], str]:
        return lambda cell: times_between(cell[key])

    return _by_task(entry, [Column(name, shown(key)) for name, key in zip(names, keys, strict=True)])


def time_rows(summary: dict[str, Any]) -> Table | None:
    """Where the time goes, one row for vanilla and each method; None for a summary from before it."""
    entries = {**of_kind(summary, "vanilla"), **of_kind(summary, "method")}
    entries = {name: entry for name, entry in entries.items() if timed(entry)}
    if not entries:
        return None
    columns = time_columns()
    header = ["method", *(column.full or f"{column.group}, {column.title}".strip(", ") for column in columns)]
    rows = [[shown_name(name, e), *(column.show(e) for column in columns)] for name, e in entries.items()]
    return Table(header, rows, [])


def peer_rows(entry: dict[str, Any], *, sampled: bool = False) -> Table:
    """What vanilla is worth in units of a peer, one row a task."""
    return _by_task(entry, peer_columns(partial(lossless_text, sampled=sampled)))


def peer_markdown(entry: dict[str, Any], *, sampled: bool = False) -> str:
    """`peer_rows` as Markdown."""
    return as_markdown(peer_rows(entry, sampled=sampled))


def vanilla_rows(entry: dict[str, Any]) -> Table:
    """Vanilla's own rates, one row a task."""
    return _by_task(entry, vanilla_columns())


def vanilla_markdown(entry: dict[str, Any]) -> str:
    """`vanilla_rows` as Markdown."""
    return as_markdown(vanilla_rows(entry))


def csv_frame(summary: dict[str, Any]) -> pd.DataFrame:
    """One row a method and task (`overall` too): an estimate and its bounds, lists spread over numbered columns.

    Distributions (confidence, time by context) have no place in a row: they stand in `summary.json`.
    """
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


def _side_by_side(figure: str, entries: dict[str, dict[str, Any]], show: Callable[[Cell], str]) -> Table:
    """One figure of several methods: one column each, one row a task."""
    tasks = [*ordered_tasks(task for e in entries.values() for task in e["tasks"] if task != OVERALL), OVERALL]
    rows = []
    for task in tasks:
        cells = [e["tasks"].get(task) for e in entries.values()]  # a peer may have been asked fewer tasks
        rows.append([task_name(task), *(show(cell) if cell else UNDEFINED for cell in cells)])
    return Table([figure, *(shown_name(name, e) for name, e in entries.items())], rows, [])


def _by_task(entry: dict[str, Any], columns: Sequence[Column]) -> Table:
    header = ["task", *(column.full or f"{column.group} {column.title}".strip() for column in columns)]
    rows = [[task_name(task), *(column.show(cell) for column in columns)] for task, cell in entry["tasks"].items()]
    return Table(header, rows, [True, *(column.left for column in columns)])


def _flat(cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in cell.items():
        if key == "lossless":
            row |= {f"lossless_{verdict}": (value or {}).get(verdict) for verdict in VERDICTS}
        elif key in _NESTED:
            row |= {f"{key}_{name}": (value or {}).get(name) for name in _NESTED[key]}
        elif key in _LISTS:
            row |= {f"{key}_{w}": item for w, item in enumerate(value or [], 1)}
        elif isinstance(value, dict) and "value" in value:
            row |= {key if name == "value" else f"{key}_{name}": item for name, item in value.items()}
        elif key not in _DISTRIBUTIONS:
            row[key] = value
    return row


def _csv_rank(key: str) -> tuple[int, str, int]:
    """Plain figures keep their order (rank 0 sorts stably); the lists follow by name and window."""
    stem, _, window = key.rpartition("_")
    return (1, stem, int(window)) if window.isdigit() else (0, "", 0)
