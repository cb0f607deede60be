"""The tables of the HTML report as plain data; `templates/` turns them into markup. Old summaries lack some figures.

A table whose figures a run does not have at all is left out; a single missing figure is shown as "-".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.figures.metrics import OVERALL, Cell, ordered_tasks
from bench.figures.published import our_setting, places_of
from bench.report.formats import (
    NO_INTERVALS,
    UNDEFINED,
    device_name,
    interval_text,
    lossless_text,
    number,
    shown_name,
    task_name,
    times,
)

PERCENT = 100
ESTIMATORS = (  # key of the summary, heading
    ("speedup_decode", "decode, ratio of sums"),
    ("speedup_decode_mean_rates", "decode, mean of rates"),
    ("speedup_decode_geometric", "decode, geometric mean"),
    ("speedup_total", "end-to-end, ratio of sums"),
    ("speedup_total_mean_rates", "end-to-end, mean of rates"),
    ("speedup_total_geometric", "end-to-end, geometric mean"),
)


@dataclass(frozen=True, slots=True)
class Item:
    """A cell: what it says, and what stands small beneath, such as an interval."""

    text: str
    small: str = ""
    kind: str = ""  # "" for a figure; "text", "code", "main" (the figure that counts)
    link: str = ""  # address of the source, https only; any other is not made a link


@dataclass(frozen=True, slots=True)
class Row:
    """A row with its heading."""

    head: str
    items: list[Item]
    kind: str = ""  # "overall", "aside" (baseline, peers, other people's figures) or ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its caption; `columns` excludes the heading of the rows, which is `corner`."""

    caption: str
    corner: str
    columns: list[str]
    rows: list[Row]
    note: str = ""
    text: frozenset[int] = field(default_factory=frozenset)  # columns of words, set flush left


def interval(estimate: dict[str, Any] | None) -> str:
    """Like `[1.15, 1.23]`; nothing where there is none."""
    low, high = (estimate or {}).get("low"), (estimate or {}).get("high")
    return "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def percent(value: float | None, digits: int = 0, *, signed: bool = False) -> str:
    """A share in percent."""
    return UNDEFINED if value is None else f"{PERCENT * value:{'+' if signed else ''}.{digits}f}%"


def speed(estimate: dict[str, Any] | None, kind: str = "") -> Item:
    """A speedup with its interval beneath."""
    return Item(times((estimate or {}).get("value")), interval(estimate), kind)


def millions(count: int) -> str:
    """A number of parameters."""
    return UNDEFINED if not count else f"{count / 1e6:,.1f}M"


def shown_tasks(summary: dict[str, Any]) -> list[str]:
    """Every task that any method has, without `overall`."""
    tasks = itertools.chain.from_iterable(entry["tasks"] for entry in summary["methods"].values())
    return [task for task in ordered_tasks(tasks) if task != OVERALL]


def interval_note(summary: dict[str, Any]) -> str:
    """What the brackets are."""
    text = interval_text(summary, full=True) or NO_INTERVALS
    return f"{text[:1].upper()}{text[1:]}."


def headline_table(summary: dict[str, Any]) -> Table:
    """Methods by tasks: decode speedup with its interval; then what it cost and whether the output is vanilla's."""
    tasks = shown_tasks(summary)
    extra = ["overall", "end-to-end", "CR", "extra parameters", "output"]
    rows = []
    for name, entry in summary["methods"].items():
        rows.append(_vanilla_row(name, entry, tasks) if entry["kind"] == "vanilla" else _row(summary, name, tasks))
    note = "Ratio of sums (tokens per second); overall is the unweighted mean of the tasks. "
    return Table(
        "Decode speedup over vanilla, by task",
        "method",
        [*map(task_name, tasks), *extra],
        rows,
        note + interval_note(summary),
        frozenset({len(tasks) + len(extra) - 1}),
    )


def against_table(summary: dict[str, Any]) -> Table | None:
    """Each method's decode speed over each other one's; None for fewer than two."""
    found = summary.get("against")
    if not found:
        return None
    names = {name: shown_name(name, summary["methods"][name]) for name in found}
    rows = [
        Row(names[name], [speed(row[other]) if other in row else Item(UNDEFINED) for other in found])
        for name, row in found.items()
    ]
    columns = [f"over {name}" for name in names.values()]
    note = "On the questions that both answered; ratio of sums, overall. " + interval_note(summary)
    return Table("Method against method: decode speed", "method", columns, rows, note)


def _row(summary: dict[str, Any], name: str, tasks: Sequence[str]) -> Row:
    entry = summary["methods"][name]
    peer = entry["kind"] == "peer"
    cells, overall = entry["tasks"], entry["tasks"][OVERALL]
    items = [speed(cells[task]["speedup_decode"]) if task in cells else Item(UNDEFINED) for task in tasks]
    items += [
        speed(overall["speedup_decode"], "main"),
        speed(overall["speedup_total"]),
        Item(number(overall["compression_rate"])),
        Item(millions(entry["extra_parameters"])),
        Item(lossless_text(overall["lossless"], sampled=summary["sampling"] is not None)),
    ]
    shown = shown_name(name, entry)
    return Row(f"{shown} (a peer)" if peer else shown, items, "aside" if peer else "")


def _vanilla_row(name: str, entry: dict[str, Any], tasks: Sequence[str]) -> Row:
    cells = [entry["tasks"].get(task, {}) for task in [*tasks, OVERALL]]
    items = [Item(number(cell.get("tok_per_s"), 1), "tok/s") for cell in cells]
    items += [Item(UNDEFINED), Item(number(entry["tasks"][OVERALL]["compression_rate"]))]
    return Row(name, [*items, Item(UNDEFINED), Item("the baseline")], "aside")


def detail_tables(entry: dict[str, Any], *, sampled: bool) -> list[Table]:
    """Everything that is known of one method, by task. Vanilla's speedup over itself says nothing and is left out."""
    cells, vanilla = entry["tasks"], entry["kind"] == "vanilla"
    found = [
        None if vanilla else _estimators(cells),
        None if vanilla and not cells[OVERALL].get("step_time") else _time(cells),
        _windows(cells, "ctar", "CTAR(w): share of steps that added more than w tokens", "w = {}"),
        _windows(cells, "conditional_acceptance", "Conditional acceptance by position of the draft", "draft {}"),
        _windows(
            cells, "window_ctar", "Window CTAR(w): positions at which w forced drafts in a row are right", "w = {}"
        ),
        _histogram(cells),
        _context(cells),
        _counts(cells, (lambda _: "the baseline") if vanilla else partial(lossless_text, sampled=sampled)),
    ]
    return [table for table in found if table is not None]


def _by_task(cells: dict[str, Cell], items: Callable[[Cell], list[Item]]) -> list[Row]:
    """One row a task; overall last, which of one task alone would be its repetition."""
    shown_cells = {task: cell for task, cell in cells.items() if task != OVERALL or len(cells) != 2}
    return [
        Row(task_name(task), items(cell), "overall" if task == OVERALL else "") for task, cell in shown_cells.items()
    ]


def _estimators(cells: dict[str, Cell]) -> Table:
    known = [(key, title) for key, title in ESTIMATORS if key in cells[OVERALL]]
    rows = _by_task(cells, lambda cell: [speed(cell[key]) for key, _ in known])
    note = "Overall: mean of the tasks; for the mean of rates, all questions pooled as Spec-Bench's script does."
    return Table("Speedup over vanilla", "task", [title for _, title in known], rows, note)


def _time(cells: dict[str, Cell]) -> Table | None:
    if not cells[OVERALL].get("step_time"):
        return _drafting(cells)
    parts = ("draft", "verify", "rest", "total")

    def items(cell: Cell) -> list[Item]:
        times_of, predicted = cell.get("step_time") or {}, cell.get("predicted") or {}
        found = [Item(number(times_of.get(part))) for part in parts]
        found += [Item(number(predicted.get("step_cost"))), Item(times(predicted.get("speedup")))]
        measured = times(cell["speedup_decode"]["value"])
        return [*found, Item(measured), Item(percent(cell.get("prediction_error"), 1, signed=True))]

    columns = [*parts, "predicted step", "predicted speedup", "measured", "error"]
    note = (
        "Per step, in units of one vanilla step of the same turns. Predictions come from microbenchmarks and the "
        "warm-up, made before the run."
    )
    return Table("Where the time goes", "task", columns, _by_task(cells, items), note)


def _drafting(cells: dict[str, Cell]) -> Table | None:
    """An older run knows the drafting's share alone; a peer not even that."""
    if cells[OVERALL].get("draft_time_share") is None:
        return None
    rows = _by_task(cells, lambda cell: [Item(percent(cell["draft_time_share"], 1))])
    return Table("Where the time goes", "task", ["drafting, of decode time"], rows)


def _windows(cells: dict[str, Cell], key: str, caption: str, heading: str) -> Table | None:
    widest = max((len(cell.get(key) or []) for cell in cells.values()), default=0)
    if not widest:
        return None

    def items(cell: Cell) -> list[Item]:
        values = cell.get(key) or []
        return [Item(number(values[i]) if i < len(values) else UNDEFINED) for i in range(widest)]

    return Table(caption, "task", [heading.format(w) for w in range(1, widest + 1)], _by_task(cells, items))


def _histogram(cells: dict[str, Cell]) -> Table | None:
    widest = max((len(cell.get("emitted_histogram") or []) for cell in cells.values()), default=0)
    if not widest:
        return None

    def items(cell: Cell) -> list[Item]:
        counts = cell.get("emitted_histogram") or []
        total = sum(counts)
        padded = [*counts, *[0] * (widest - len(counts))]
        return [Item(percent(count / total, 1) if total else UNDEFINED, f"{count:,}") for count in padded]

    columns = ["1 token", *(f"{n} tokens" for n in range(2, widest + 1))]
    return Table("Steps by how many tokens they added", "task", columns, _by_task(cells, items))


def _context(cells: dict[str, Cell]) -> Table | None:
    """Of all tasks together: a task's own turns are of much the same length."""
    bins = cells[OVERALL].get("context") or []
    rows = [
        Row(
            f"{number(one['context'], 0)} tokens",
            [
                Item(number(one["ms_per_token"], 1)),
                Item(number(one["vanilla_ms_per_token"], 1)),
                Item(f"{one['turns']:,}"),
            ],
        )
        for one in bins
    ]
    columns = ["ms per token", "vanilla, ms per token", "turns"]
    return Table("Time per token by length of context", "mean context", columns, rows) if rows else None


def _counts(cells: dict[str, Cell], output: Callable[[dict[str, int] | None], str]) -> Table:
    columns = ["questions", "turns", "tokens", "steps", "CR", "tokens/s", "vanilla, tokens/s", "draft share"]
    columns += ["prefill, s", "ended by EOS", "repetition", "numerical", "output"]

    def items(cell: Cell) -> list[Item]:
        counts = [cell["questions"], cell["turns"], cell["generated_tokens"], cell["steps"]]
        return [
            *(Item(number(count, 0)) for count in counts),
            Item(number(cell["compression_rate"])),
            Item(number(cell["tok_per_s"], 1)),
            Item(number(cell["tok_per_s_vanilla"], 1)),
            Item(percent(cell["draft_token_share"])),
            Item(number(cell["ttft_s"], 3)),
            Item(percent(cell["eos_share"])),
            Item(number(cell["repetition"])),
            Item(percent(cell.get("numerical_rate"), 1)),
            Item(output(cell["lossless"])),
        ]

    text = frozenset({len(columns) - 1})
    return Table("What the figures were counted from", "task", columns, _by_task(cells, items), text=text)


def published_tables(summary: dict[str, Any], published: Sequence[dict[str, Any]]) -> list[Table]:
    """Other people's figures under ours, every row with its source, model and hardware; none where none are given.

    A published row has `method`, `source`, `model`, `hardware`, by task `speedup` and `compression_rate` (`overall`
    among the tasks where it is given), and may have `url`, `label` (the source's name of the method) and `settings`.
    Ours stand beside them end-to-end, and as Spec-Bench's script averages where the summary has it: so do papers.
    """
    known = all("speedup_total_mean_rates" in entry["tasks"][OVERALL] for entry in summary["methods"].values())
    key, what = ("speedup_total_mean_rates", "mean of rates") if known else ("speedup_total", "ratio of sums")
    kinds: list[tuple[str, str, Callable[[Cell], Item], Callable[[float], str]]] = [
        ("speedup", f"Speedup, here (end-to-end, {what}) and as published", lambda cell: speed(cell[key]), times),
        ("compression_rate", "CR, here and as published", lambda cell: Item(number(cell["compression_rate"])), number),
    ]
    return [
        _published_table(summary, [row for row in published if row.get(figure)], figure, caption, ours, theirs)
        for figure, caption, ours, theirs in kinds
        if any(row.get(figure) for row in published)
    ]


def _published_table(
    summary: dict[str, Any],
    published: Sequence[dict[str, Any]],
    figure: str,
    caption: str,
    ours: Callable[[Cell], Item],
    theirs: Callable[[float], str],
) -> Table:
    tasks = [*shown_tasks(summary), OVERALL]
    device = device_name(summary["device"])
    bases = {row["method"] for row in published}
    rows = []
    for name, entry in summary["methods"].items():
        if entry["kind"] == "method" and name.partition(":")[0] in bases:
            cells = entry["tasks"]
            about = [Item(text, kind="text") for text in ("this run", our_setting(summary), device)]
            values = [ours(cells[task]) if task in places_of(entry) else Item(UNDEFINED) for task in tasks]
            rows.append(Row(shown_name(name, entry), [*about, *values]))
    for row in published:
        about = [Item(str(row["source"]), kind="text", link=str(row.get("url") or ""))]
        about += [
            Item(str(row["model"]), str(row.get("settings") or ""), "text"),
            Item(str(row["hardware"]), kind="text"),
        ]
        found = row[figure]
        values = [Item(theirs(found[task]) if found.get(task) is not None else UNDEFINED) for task in tasks]
        rows.append(Row(str(row.get("label") or row["method"]), [*about, *values], "aside"))
    note = "Other models on other hardware, with other software: nothing but the rows of this run was measured here."
    columns = ["source", "model", "hardware", *map(task_name, tasks)]
    return Table(caption, "method", columns, rows, note, frozenset({0, 1, 2}))
