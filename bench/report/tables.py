"""The tables of a summary, each built once for all pages and the terminal; and flat, for `summary.csv`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.figures.breakdown import ratio
from bench.figures.metrics import VERDICTS, ordered_tasks
from bench.figures.summary import OVERALL, Cell, Drafts, Entry, Estimate, Predicted, StepTime, Summary
from bench.report.formats import (
    UNDEFINED,
    count,
    csv_cell,
    identical_text,
    lossless_text,
    number,
    percent,
    share,
    shortened,
    shown_name,
    task_name,
    times,
    times_between,
    window_list,
)
from bench.report.model import Column, Strong, Table, table

if TYPE_CHECKING:
    import pandas as pd

ESTIMATORS = {  # by the ending of their fields in a cell
    "": "ratio of sums",
    "_mean_rates": "Spec-Bench's mean of rates",
    "_geometric": "geometric mean",
}
MANY = 7  # methods: more have a row each in tables by task, and no colour of their own in plots
_TASK_CHARS = 24  # of a task's name in the terminal's overview; all of Spec-Bench's fit
_BY_WINDOW = {  # rates by window: heading of a column, caption
    "ctar": ("w = {}", "CTAR(w): share of steps that added more than w tokens"),
    "conditional_acceptance": ("draft {}", "Conditional acceptance by position of the draft"),
    "window_ctar": ("w = {}", "Window CTAR(w): share of positions at which w forced drafts are right"),
}
_NESTED: dict[str, Sequence[str]] = {
    "lossless": VERDICTS,
    "step_time": [field.name for field in dataclasses.fields(StepTime)],
    "drafts": [field.name for field in dataclasses.fields(Drafts)],
    "predicted": [field.name for field in dataclasses.fields(Predicted)],
}
_LISTS = ("ctar", "conditional_acceptance", "window_ctar", "emitted_histogram")
# Distributions are tables of their own (in `summary.json`); only a peer has what vanilla is worth.
_NOT_FLAT = ("confidence", "context", "worth_decode", "worth_total")

Verdict = Callable[[dict[str, int] | None], str]


def headline(summary: Summary) -> Table:
    """Decode speedup with intervals: one row a task, one column a method or peer; the other way round for many."""
    shown = in_order(summary, "method", "peer")
    return _side_by_side("decode speedup", shown, lambda cell: times_between(cell.speedup_decode))


def overall(summary: Summary) -> Table:
    """One row a method or peer: what it adds to the model, and what it gains over all tasks. By family, if recorded."""
    shown = summary.ranked("method", "peer")
    families = any(entry.family for entry in shown.values())
    columns = [
        *([Column("kind", kind_of, left=True)] if families else []),
        Column("extra parameters", lambda entry: count(entry.extra_parameters)),
        Column("speedup decode", lambda entry: times_between(entry.overall.speedup_decode)),
        Column("speedup end-to-end", lambda entry: times_between(entry.overall.speedup_total)),
        Column("CR", lambda entry: number(entry.overall.compression_rate)),
        Column("draft share", lambda entry: number(entry.overall.draft_token_share)),
        Column("time drafting", lambda entry: number(entry.overall.draft_time_share)),
        Column("output identical", lambda entry: identical_text(entry.overall.lossless)),
    ]
    return by_row("method, overall", _shown(shown).items(), columns, "Over all tasks")


def kind_of(entry: Entry) -> str:
    """How a method drafts, in a word."""
    return entry.family or (entry.kind if entry.kind == "peer" else UNDEFINED)


def in_order(summary: Summary, *kinds: str) -> dict[str, Entry]:
    """Methods as tables show them: many are sorted, few are in the order in which they were asked for."""
    found = summary.of_kind(*kinds)
    return summary.ranked(*kinds) if len(found) > MANY else found


def fastest(summary: Summary, *kinds: str) -> dict[str, Entry]:
    """Of many methods, the fastest of each family; else all."""
    found = summary.of_kind(*kinds)
    if len(found) <= MANY:
        return found
    first: dict[tuple[str, str], str] = {}
    for name, entry in summary.ranked(*kinds).items():
        first.setdefault((entry.kind, entry.family), name)
    return {name: found[name] for name in first.values()}


def overview(summary: Summary) -> list[Table]:
    """All methods and peers by task: end-to-end speedup, then CR, which most peers do not show."""
    shown = in_order(summary, "method", "peer")
    known = {name: e for name, e in shown.items() if e.kind == "method" or e.overall.compression_rate is not None}
    found = [_side_by_side("end-to-end speedup", shown, lambda cell: times_between(cell.speedup_total))]
    return [*found, _side_by_side("CR", known, lambda cell: number(cell.compression_rate))] if known else found


def short_overview(entries: Mapping[str, Entry]) -> Table:
    """One row a method, for the terminal."""
    columns = [
        Column("decode", lambda entry: times_between(entry.overall.speedup_decode), group="speedup"),
        Column("total", lambda entry: times(entry.overall.speedup_total.value), group="speedup"),
        Column("CR", lambda entry: number(entry.overall.compression_rate)),
        Column("parameters", lambda entry: count(entry.extra_parameters), group="extra"),
        Column("task", _slowest, group="slowest", left=True),
        Column("identical", lambda entry: identical_text(entry.overall.lossless), group="output"),
    ]
    return by_row("method", entries.items(), columns)


def against(summary: Summary) -> Table | None:
    """Decode speed of each method (rows) over each other one's (columns); None for fewer than two.

    Of many methods, the columns are the fastest of each family.
    """
    if not summary.against:
        return None
    names = {name: shown_name(name, e) for name, e in in_order(summary, "method").items() if name in summary.against}
    others = [name for name in fastest(summary, "method") if name in names]
    rows = [
        [shown, *(times_between(summary.against[name].get(other)) for other in others)] for name, shown in names.items()
    ]
    columns = [Column("decode speed of", left=True), *(Column(f"over {names[name]}") for name in others)]
    return Table(columns, rows, "Method against method: decode speed")


def method(entry: Entry, verdict: Verdict, windows: int | None = None, narrow: int = 0) -> Table:
    """A method's main figures, one row a task, with the first `windows` windows of CTAR (None: all).

    `narrow` 1 leaves out the draft share, 2 also the interval of the end-to-end speedup.
    """
    many = "w = 1" if windows == 1 else f"w = 1..{windows}"

    def total(cell: Cell) -> str:
        return times_between(cell.speedup_total) if narrow < 2 else times(cell.speedup_total.value)

    columns = [
        Column("turns", lambda cell: f"{cell.turns}"),
        Column("speedup decode", lambda cell: times_between(cell.speedup_decode), short="decode", group="speedup"),
        Column("speedup end-to-end", total, short="total", group="speedup"),
        Column("tok/s", lambda cell: number(cell.tok_per_s, 1), short="method", group="tok/s"),
        Column("vanilla tok/s", lambda cell: number(cell.tok_per_s_vanilla, 1), short="vanilla", group="tok/s"),
        Column("CR", lambda cell: number(cell.compression_rate)),
        Column("CTAR(1..)", lambda cell: window_list(cell.ctar, windows), left=True, short=many, group="CTAR"),
        Column("draft share", lambda cell: number(cell.draft_token_share), short="share", group="draft"),
        Column("lossless", lambda cell: verdict(cell.lossless), short="identical", group="output"),
    ]
    return by_task(entry, [column for column in columns if not narrow or column.short != "share"])


def detail(entry: Entry) -> Table:
    """A method's other figures: what the main ones were counted from, and what explains them."""
    columns = [
        Column("questions", lambda cell: f"{cell.questions}"),
        Column("tokens", lambda cell: f"{cell.generated_tokens:,}"),
        Column("steps", lambda cell: number(cell.steps, 0)),
        Column("prefill, s", lambda cell: number(cell.ttft_s, 3)),
        Column("time drafting", lambda cell: number(cell.draft_time_share)),
        Column("repetition", lambda cell: number(cell.repetition)),
        Column("ended by EOS", lambda cell: number(cell.eos_share)),
        Column("conditional acceptance", lambda cell: window_list(cell.conditional_acceptance), left=True),
    ]
    if any(cell.window_ctar for cell in entry.tasks.values()):
        columns.append(Column("window CTAR(1..)", lambda cell: window_list(cell.window_ctar), left=True))
    return by_task(entry, columns, "What the figures were counted from")


def three_ways(name: str, entry: Entry) -> Table:
    """Three ways to average, decode and end-to-end, and the robust estimates, one row a task."""

    def shown(key: str) -> Callable[[Cell], str]:
        return lambda cell: times_between(getattr(cell, key))

    columns = [
        Column(f"{what}: {way}", shown(f"speedup_{part}{ending}"))
        for part, what in (("decode", "decode"), ("total", "end-to-end"))
        for ending, way in ESTIMATORS.items()
    ]
    if any(cell.speedup_decode_steps.value is not None for cell in entry.tasks.values()):
        columns.insert(1, Column("decode: ratio of sums by step medians", shown("speedup_decode_steps")))
    columns.append(Column("decode: median of questions", shown("speedup_decode_median")))
    return by_task(entry, columns, f"Speedup over vanilla: {name}")


def time_columns() -> list[Column]:
    """Where the time of a step goes, in vanilla steps, with its prediction."""
    step, speed = "time of a step", "decode speedup"
    return [
        *_step_parts(),
        Column(
            "total, predicted",
            lambda cell: number(getattr(cell.predicted, "step_cost", None)),
            False,
            "predicted",
            step,
        ),
        Column("CR", lambda cell: number(cell.compression_rate)),
        Column(f"{speed}, measured", lambda cell: times(cell.speedup_decode.value), False, "measured", speed),
        Column(
            f"{speed}, predicted",
            lambda cell: times(getattr(cell.predicted, "speedup", None)),
            False,
            "predicted",
            speed,
        ),
        Column("prediction's error", lambda cell: percent(cell.prediction_error), short="error"),
    ]


def _step_parts() -> list[Column]:
    def part(name: str) -> Callable[[Cell], str]:
        return lambda cell: number(getattr(cell.step_time, name, None))

    return [Column(name, part(name), group="time of a step") for name in ("draft", "verify", "rest", "total")]


def time(entries: Mapping[str, Entry]) -> Table:
    """Where the time goes, one row a method."""
    return by_row("method", ((name, entry.overall) for name, entry in entries.items()), time_columns())


def folded(entry: Entry) -> list[Table]:
    """Tables for pages only: a step's time by task, acceptance by window, steps by their tokens, time by context."""
    drafts = entry.kind != "vanilla"  # which adds one token a step, and is the unit of all times
    found = [by_task(entry, time_columns() if drafts else _step_parts(), "Where the time goes")] if entry.timed else []
    if drafts:
        found += [table for key, shown in _BY_WINDOW.items() if (table := _by_window(entry, key, *shown)).columns[1:]]
        widest = max(len(cell.emitted_histogram or []) for cell in entry.tasks.values())
        columns = [Column(f"{n + 1} token{'s' if n else ''}", _steps_of(n)) for n in range(widest)]
        found += [by_task(entry, columns, "Steps by how many tokens they added")] if widest else []
    if drafts and entry.overall.context:
        columns = [
            Column("ms per token", lambda each: number(each.ms_per_token, 1)),
            Column("vanilla, ms per token", lambda each: number(each.vanilla_ms_per_token, 1)),
            Column("turns", lambda each: f"{each.turns:,}"),
        ]
        rows = [(f"{number(each.context, 0)} tokens", each) for each in entry.overall.context]
        found.append(by_row("mean context", rows, columns, "Time per token by length of context"))
    return [dataclasses.replace(table, folded=True) for table in found]


def _by_window(entry: Entry, key: str, heading: str, caption: str) -> Table:
    """A rate by window or position, one column each; without such columns where the method has no such rate."""
    widest = max(len(getattr(cell, key) or []) for cell in entry.tasks.values())

    def rate(place: int) -> Callable[[Cell], str]:
        return lambda cell: number(next(iter((getattr(cell, key) or [])[place : place + 1]), None))

    return by_task(entry, [Column(heading.format(n + 1), rate(n)) for n in range(widest)], caption)


def members(entry: Entry) -> Table:
    """How often each member of a composition drafted, and how many of its drafts were accepted."""
    steps = entry.overall.steps
    rows = [
        [one.label, share(ratio(one.steps, steps)), str(one.drafted), share(ratio(one.accepted, one.drafted))]
        for one in entry.members
    ]
    return table(["member", "steps in which it drafted", "drafts", "accepted"], rows, 1, "Members")


def peer(entry: Entry, verdict: Verdict = lossless_text) -> Table:
    """What vanilla is worth in units of a peer, one row a task."""
    group = "vanilla is"
    columns = [
        Column("turns", lambda cell: f"{cell.turns}"),
        Column("vanilla is, decode", lambda cell: times_between(cell.worth_decode), short="decode", group=group),
        Column("vanilla is, end-to-end", lambda cell: times_between(cell.worth_total), short="total", group=group),
        Column("peer tok/s", lambda cell: number(cell.tok_per_s, 1), short="peer", group="tok/s"),
        Column("vanilla tok/s", lambda cell: number(cell.tok_per_s_vanilla, 1), short="vanilla", group="tok/s"),
        Column("lossless", lambda cell: verdict(cell.lossless), short="identical", group="output"),
    ]
    return by_task(entry, columns)


def vanilla(entry: Entry) -> Table:
    """Vanilla's own rates, one row a task."""
    columns = [
        Column("turns", lambda cell: f"{cell.turns}"),
        Column("tokens", lambda cell: f"{cell.generated_tokens:,}"),
        Column("decode tok/s", lambda cell: number(cell.tok_per_s, 1), short="tok/s", group="decode"),
        Column("prefill, s", lambda cell: number(cell.ttft_s, 3), short="seconds", group="prefill"),
        Column("repetition", lambda cell: number(cell.repetition)),
        Column("ended by EOS", lambda cell: number(cell.eos_share), short="by EOS", group="ended"),
    ]
    return by_task(entry, columns, "Vanilla's own rates")


def by_task(entry: Entry, columns: Sequence[Column], caption: str = "") -> Table:
    """One row a task, the overall row in bold."""
    return by_row("task", ((task_name(task), cell) for task, cell in entry.tasks.items()), columns, caption)


def by_row(first: str, things: Iterable[tuple[str, Any]], columns: Sequence[Column], caption: str = "") -> Table:
    """One row a thing, after its name; the one called overall in bold."""
    rows = [[name, *(column.show(thing) for column in columns)] for name, thing in things]
    return Table([Column(first, left=True), *columns], [_marked(row) for row in rows], caption)


def csv_frame(summary: Summary) -> pd.DataFrame:
    """One row a method and task (`overall` too): an estimate and its bounds, lists spread over numbered columns.

    Distributions (confidence, time by context) do not fit into a row: they are in `summary.json`.
    """
    import pandas as pd

    rows = []
    for name, entry in summary.methods.items():
        for task, cell in entry.tasks.items():
            claimed = {"lossless_claimed": "true" if entry.lossless else "false"}  # as JSON spells them
            row = {"method": name, "kind": entry.kind, "task": task} | _flat(cell) | claimed
            rows.append({key: csv_cell(value) for key, value in row.items()})
    # Columns in the order of first appearance, lists kept together whatever their length.
    order = {key: _csv_rank(key) for row in rows for key in row}
    # As objects, so that counts stay whole numbers where another row has none.
    return pd.DataFrame(rows, columns=sorted(order, key=lambda key: order[key]), dtype=object)


def _shown(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {shown_name(name, entry): entry for name, entry in entries.items()}


def _marked(row: list[str]) -> list[str]:
    return [Strong(text) for text in row] if row[0] == task_name(OVERALL) else row


def by_method(figure: str, entries: Mapping[str, Entry], show: Callable[[Cell], str]) -> Table:
    """One figure of several methods: one row each, one column a task, overall in bold."""
    tasks = [*ordered_tasks(task for entry in entries.values() for task in entry.by_task), OVERALL]
    rows = []
    for name, entry in _shown(entries).items():
        cells = [entry.tasks.get(task) for task in tasks]  # a peer may have been given fewer tasks
        *found, overall = [show(cell) if cell else UNDEFINED for cell in cells]
        rows.append([name, *found, Strong(overall)])
    caption = f"{figure[:1].upper()}{figure[1:]} by task"
    return Table([Column(figure, left=True), *map(Column, map(task_name, tasks))], rows, caption)


def _side_by_side(figure: str, entries: Mapping[str, Entry], show: Callable[[Cell], str]) -> Table:
    """The same with one column a method and one row a task, unless there are many methods."""
    table = by_method(figure, entries, show)
    if len(entries) > MANY:
        return table
    names, *tasks = zip(table.header, *table.rows, strict=True)
    columns = [table.columns[0], *map(Column, names[1:])]
    return dataclasses.replace(table, columns=columns, rows=[_marked(list(row)) for row in tasks])


def _steps_of(place: int) -> Callable[[Cell], str]:
    def shown(cell: Cell) -> str:
        counts = cell.emitted_histogram or []
        steps = counts[place] if place < len(counts) else 0
        return f"{steps / sum(counts):.1%} {steps:,}" if sum(counts) else UNDEFINED

    return shown


def _slowest(entry: Entry) -> str:
    """The task that the method helps least, like `RAG 0.45x`."""
    speedups = {task: cell.speedup_decode.value for task, cell in entry.by_task.items()}
    defined = {task: value for task, value in speedups.items() if value is not None}
    if not defined:
        return UNDEFINED
    task = min(defined, key=lambda task: defined[task])
    return f"{shortened(task_name(task), _TASK_CHARS)} {times(defined[task])}"


def _flat(cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key in (field.name for field in dataclasses.fields(Cell)):
        value = getattr(cell, key)
        if key in _NESTED:
            known = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value or {}  # type: ignore[arg-type]
            row |= {f"{key}_{name}": known.get(name) for name in _NESTED[key]}
        elif key in _LISTS:
            row |= {f"{key}_{w}": item for w, item in enumerate(value or [], 1)}
        elif isinstance(value, Estimate):
            row |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
        elif key not in _NOT_FLAT:
            row[key] = value
    return row


def _csv_rank(key: str) -> tuple[int, str, int]:
    """Plain figures keep their order (rank 0 sorts stably); the lists follow by name and window."""
    stem, _, window = key.rpartition("_")
    return (1, stem, int(window)) if window.isdigit() else (0, "", 0)
