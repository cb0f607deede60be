"""An engine benchmark, and what is projected from it, in the terminal. No torch."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.figures.engine_record import EngineRecord
from bench.figures.summary import Estimate
from bench.report import engine_figures, plain
from bench.report.formats import UNDEFINED, device_name, gibibytes, number, precision_text, share, times, times_between
from bench.report.model import Column, Section, Table, listed, table
from bench.report.tables import by_row

_PROJECTED = (
    "PROJECTION, not a measurement: the cost of forward passes was measured here, with random weights of this shape; "
    "the tokens per step are another model's, as published or recorded. Published speedups are of other devices."
)
_PROJECTED_BATCHES = (
    "PROJECTION, not a measurement: throughput over vanilla's at the same batch size, if every sequence took the steps "
    "that it took alone. A pass costs what its rows do, by the passes measured here, and beyond the widest of them as "
    "much more for each row; all else in units of a vanilla step as in the run. Methods that stop drafting by its cost "
    "draft less in a batch, and do not fall as far. Measured: the crossover of the run's own batches."
)


def terminal(found: EngineRecord) -> str:
    """All figures."""
    parts = [_limit(found), _answers(found), *_peers(found), *_shares(found), *_timings(found)]
    return plain.page([_section(found, parts)])


def neighbour(found: EngineRecord) -> str:
    """What a busy process beside it costs a vanilla step."""
    columns = [
        Column("engine", lambda row: row["engine"], left=True),
        Column("threads", lambda row: str(row["threads"])),
        Column("neighbour", lambda row: row["neighbour"], left=True),
        Column("median, ms", lambda row: number(row["median_ms"])),
        Column("mean, ms", lambda row: number(row["mean_ms"])),
        Column("p90, ms", lambda row: number(row["p90_ms"])),
        Column("of quiet", lambda row: times(row["of_quiet"])),
        Column("of quiet, all threads", lambda row: times(row["of_quiet_all_threads"])),
    ]
    rows = found["neighbour"]["rows"]
    shown = Table(columns, [[column.show(row) for column in columns] for row in rows])
    return plain.page([_section(found, [shown])])


def projection(engine: EngineRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    """The speedup that recorded or published acceptance would give at these costs."""
    columns = [
        Column("method", lambda row: row["method"], left=True),
        Column("acceptance of", lambda row: row["source"]),
        Column("CR", lambda row: number(row["compression_rate"])),
        Column("PROJECTED speedup", lambda row: _between(*row["projected"])),
        Column("published", lambda row: times(row["published"])),
        Column("assumed", lambda row: row["assumed"], left=True),
    ]
    shown = Table(columns, [[column.show(row) for column in columns] for row in rows])
    return plain.page([_section(engine, [shown, _PROJECTED])])


def batches(engine: EngineRecord, rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> str:
    """The speedup of throughput that recorded steps would give in batches at these costs, beside a run's measured."""

    def crossing(row: Mapping[str, Any], key: str, curve: str) -> str:
        known = any(value is not None for value in row[curve].values())
        return number(row[key], 1) if row[key] is not None else ("none" if known else UNDEFINED)

    columns = [
        Column("method", lambda row: row["method"], left=True),
        Column("steps of", lambda row: row["source"], left=True),
        *(Column(f"PROJECTED at batch {size}", functools.partial(_projected, str(size))) for size in sizes),
        Column("crossover", lambda row: crossing(row, "crossover", "projected")),
        Column("measured", lambda row: crossing(row, "measured_crossover", "measured")),
    ]
    shown = Table(columns, [[column.show(row) for column in columns] for row in rows])
    return plain.page([_section(engine, [shown, _PROJECTED_BATCHES])])


def _projected(size: str, row: Mapping[str, Any]) -> str:
    return times(row["projected"][size])


def _section(found: EngineRecord, parts: Sequence[str | Table]) -> Section:
    what = f"{found['model']} with random weights" if found["random_weights"] else found["model"]
    facts = [
        f"{what} ({found['parameters'] / 1e6:,.0f}M parameters)",
        precision_text(found["dtype"], found["engine"].get("activations", "")),
        f"{device_name(found['device'])}, {found['device'].threads} threads",
        f"weights {found['engine']['weights']}",
        f"peak memory {gibibytes(found['peak_bytes'])}",
    ]
    return Section(", ".join(facts), [*listed([f"WARNING: {warning}" for warning in found["warnings"]]), *parts])


def _limit(found: EngineRecord) -> str:
    vanilla, memory = found["vanilla"], found["memory"]
    return (
        f"vanilla {vanilla['tok_per_s']:,.1f} tokens/s: {vanilla['weight_bytes'] / 1e6:,.0f} MB of weights per step at "
        f"{vanilla['gb_s']:,.1f} GB/s\n"
        f"{vanilla['share_of_read_bandwidth']:.0%} of the read bandwidth ({memory['read_gb_s']:,.1f} GB/s), "
        f"{vanilla['share_of_copy_bandwidth']:.0%} of the copy bandwidth ({memory['copy_gb_s']:,.1f} GB/s)"
    )


def _answers(found: EngineRecord) -> Table:
    columns = [
        Column("tokens/s", lambda one: f"{statistics.median(one['tok_per_s']):,.1f}"),
        Column("of vanilla's", lambda one: times_between(Estimate(one["over_vanilla"], *(one.get("interval") or ())))),
        Column("ms per step", lambda one: number(one.get("step_ms"))),
        Column("tokens per step", lambda one: number(one.get("tokens_per_step"))),
        Column("outside forward passes", lambda one: share(one.get("outside_passes"), 1)),
        Column("prefill, ms", lambda one: number(one["prefill_ms"])),
    ]
    return by_row("whole answers", found["answers"].items(), columns)


def _peers(found: EngineRecord) -> list[str]:
    """How much faster vanilla is than each peer, and what the peer says of itself."""
    lines = []
    for name, one in found["answers"].items():
        if "step_ms" in one:  # one of ours
            continue
        low, high = one.get("interval") or (None, None)
        ratio = Estimate(1 / one["over_vanilla"], 1 / high if high else None, 1 / low if low else None)
        notes = one.get("notes", {})
        rates = [f"{n}: {rate:,.1f}" for n, rate in notes.get("tok_per_s_by_threads", {}).items()]
        threads = f"threads: {notes['threads']}, its best (tokens/s by threads: {', '.join(rates)})" if rates else ""
        facts = [f"vanilla is {times_between(ratio)} as fast as {name}", notes.get("arithmetic", ""), threads]
        lines.append("; ".join(filter(None, facts)))
    return listed(lines)


def _shares(found: EngineRecord) -> list[str | Table]:
    """Whole passes and their products alone against both limits, by tokens."""
    by, most = engine_figures.peak(found)
    passes, products, shares = found["passes"], found["products"], found["shares"]
    rows = [
        ["products alone, ms", *(f"{ms:.2f}" for ms in products.values())],
        ["products, of the pass", *(share(products[n] / ms) for n, ms in passes.items())],
    ]
    for kind, reached in shares.items():
        rows.append([f"{kind}, of the bandwidth", *(share(one["bandwidth"]) for one in reached.values())])
        rows.append([f"{kind}, of the arithmetic", *(share(one["arithmetic"]) for one in reached.values())])
    others = [f"{name} {rate:,.0f}" for name, rate in found["arithmetic"].items() if name != by]
    peak = f"arithmetic peak {most:,.0f} G operations/s ({by}{'; ' if others else ''}{', '.join(others)})"
    return [peak, table(["share of the limits, n tokens", *passes], rows)]


def _timings(found: EngineRecord) -> list[str | Table]:
    """Forward passes, layers below an exit, LM heads, draft models, the cache."""
    single, cache = found["passes"]["1"], found["cache"]
    drafters = [f"{name} {ms:.2f} ms ({ms / single:.3f})" for name, ms in found["drafters"].items()]
    return [
        _by_size("forward pass over n tokens", found["passes"], 2, single),
        _by_size("layers below an exit, one token", found["drafts"], 3, single),
        _by_size("LM head of n tokens", found["head"], 3, single),
        *([f"one call of the published draft models, LM heads included: {', '.join(drafters)}"] if drafters else []),
        f"keeping an accepted path in the cache: of a tree {cache['tree']:.3f} ms, of a chain {cache['chain']:.3f} ms",
    ]


def _by_size(title: str, values: Mapping[str, float], digits: int, single: float) -> Table:
    """Milliseconds by size, and relative to a forward pass over one token."""
    units = {"ms": 1.0, "of a pass over one": single}
    rows = [[unit, *(f"{value / of:.{digits}f}" for value in values.values())] for unit, of in units.items()]
    return table([title, *values], rows)


def _between(low: float, high: float) -> str:
    return times(low) if high - low < 0.005 else f"{times(low)} to {times(high)}"
