"""An engine benchmark in the terminal. No torch."""

from __future__ import annotations

import statistics
from typing import Any

from bench.report.formats import UNDEFINED, device_name, gibibytes
from bench.report.model import table
from bench.report.terminal import lines_of


def terminal(found: dict[str, Any]) -> str:
    """All figures as plain text."""
    return "\n\n".join((_heading(found), _limit(found), _answers(found), _passes(found), _others(found)))


def projection(engine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What acceptance would be worth at these costs."""
    header = ["method", "acceptance of", "CR", "PROJECTED speedup", "published", "assumed"]
    lines = []
    for row in rows:
        low, high = row["projected"]
        projected = f"{low:.2f}x" if high - low < 0.005 else f"{low:.2f}x to {high:.2f}x"
        published = UNDEFINED if row["published"] is None else f"{row['published']:.2f}x"
        rate = f"{row['compression_rate']:.2f}"
        lines.append([row["method"], row["source"], rate, projected, published, row["assumed"]])
    said = (
        "PROJECTION, not a measurement: the costs of passes were measured here, with random weights of this shape; "
        "what a step yields is another model's, as published or recorded. Published speedups are of other devices."
    )
    return "\n\n".join((_heading(engine), _aligned(header, lines), said))


def _heading(found: dict[str, Any]) -> str:
    what = f"{found['model']} with random weights" if found["random_weights"] else found["model"]
    parts = [
        f"{what} ({found['parameters'] / 1e6:,.0f}M parameters)",
        found["dtype"],
        f"{device_name(found['device'])}, {found['device'].threads} threads",
        f"weights {found['engine']['weights']}",
        f"peak memory {gibibytes(found['peak_bytes'])}",
    ]
    return "\n".join([", ".join(parts), *(f"WARNING: {warning}" for warning in found["warnings"])])


def _limit(found: dict[str, Any]) -> str:
    vanilla, memory = found["vanilla"], found["memory"]
    return (
        f"vanilla {vanilla['tok_per_s']:,.1f} tokens/s: {vanilla['weight_bytes'] / 1e6:,.0f} MB of weights a step at "
        f"{vanilla['gb_s']:,.1f} GB/s\n"
        f"{vanilla['share_of_read_bandwidth']:.0%} of the read bandwidth ({memory['read_gb_s']:,.1f} GB/s), "
        f"{vanilla['share_of_copy_bandwidth']:.0%} of the copy bandwidth ({memory['copy_gb_s']:,.1f} GB/s)"
    )


def _answers(found: dict[str, Any]) -> str:
    header = ["whole answers", "tokens/s", "of vanilla's", "ms a step", "tokens a step", "outside passes", "prefill ms"]
    rows = []
    for label, answer in found["answers"].items():
        rows.append(
            [
                label,
                f"{statistics.median(answer['tok_per_s']):,.1f}",
                f"{answer['over_vanilla']:.2f}x",
                _number(answer.get("step_ms")),
                _number(answer.get("tokens_per_step")),
                UNDEFINED if answer.get("outside_passes") is None else f"{answer['outside_passes']:.1%}",
                _number(answer["prefill_ms"]),
            ]
        )
    return _aligned(header, rows)


def _passes(found: dict[str, Any]) -> str:
    return _over(found, "a pass over n positions", found["passes"], 2)


def _others(found: dict[str, Any]) -> str:
    single = found["passes"]["1"]
    tables = [
        _over(found, "layers below an exit, one position", found["drafts"], 3),
        _over(found, "LM head of n tokens", found["head"], 3),
    ]
    if found["drafters"]:
        told = (f"{name} {ms:.2f} ms ({ms / single:.3f})" for name, ms in found["drafters"].items())
        tables.append(f"a call of the published draft models, LM heads included: {', '.join(told)}")
    cache = found["cache"]
    tables.append(f"keeping a tree's path in the cache {cache['tree']:.3f} ms, a chain's {cache['chain']:.3f} ms")
    return "\n\n".join(tables)


def _over(found: dict[str, Any], title: str, values: dict[str, float], digits: int) -> str:
    """Milliseconds by size, and in passes over one position."""
    single = found["passes"]["1"]
    rows = [["ms", *(f"{value:.{digits}f}" for value in values.values())]]
    rows.append(["of a pass over one", *(f"{value / single:.{digits}f}" for value in values.values())])
    return _aligned([title, *values], rows)


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.2f}"


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(lines_of(table(header, rows)))
