"""An engine benchmark in the terminal. No torch."""

from __future__ import annotations

import statistics
from typing import Any

from bench.report.formats import UNDEFINED, device_name, gibibytes


def terminal(found: dict[str, Any]) -> str:
    """All figures as plain text."""
    return "\n\n".join((_heading(found), _limit(found), _answers(found), _passes(found), _others(found)))


def projection(engine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What acceptance would be worth at these costs."""
    table = [["method", "acceptance of", "CR", "PROJECTED speedup", "published", "assumed"]]
    for row in rows:
        low, high = row["projected"]
        projected = f"{low:.2f}x" if high - low < 0.005 else f"{low:.2f}x to {high:.2f}x"
        published = UNDEFINED if row["published"] is None else f"{row['published']:.2f}x"
        rate = f"{row['compression_rate']:.2f}"
        table.append([row["method"], row["source"], rate, projected, published, row["assumed"]])
    said = (
        "PROJECTION, not a measurement: the costs of passes were measured here, with random weights of this shape; "
        "what a step yields is another model's, as published or recorded. Published speedups are of other devices."
    )
    return "\n\n".join((_heading(engine), _aligned(table), said))


def _heading(found: dict[str, Any]) -> str:
    what = f"{found['model']} with random weights" if found["random_weights"] else found["model"]
    parts = [
        f"{what} ({found['parameters'] / 1e6:,.0f}M parameters)",
        found["dtype"],
        f"{device_name(found['device'])}, {found['device']['threads']} threads",
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
    rows = [["whole answers", "tokens/s", "of vanilla's", "ms a step", "tokens a step", "outside passes", "prefill ms"]]
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
    return _aligned(rows)


def _passes(found: dict[str, Any]) -> str:
    single = found["passes"]["1"]
    rows = [["a pass over n positions", *found["passes"]]]
    rows.append(["ms", *(_number(value) for value in found["passes"].values())])
    rows.append(["of a pass over one", *(f"{value / single:.2f}" for value in found["passes"].values())])
    return _aligned(rows)


def _others(found: dict[str, Any]) -> str:
    single = found["passes"]["1"]
    tables = []
    for title, values in (
        ("layers below an exit, one position", found["drafts"]),
        ("LM head of n tokens", found["head"]),
    ):
        rows = [[title, *values], ["ms", *(f"{value:.3f}" for value in values.values())]]
        rows.append(["of a pass over one", *(f"{value / single:.3f}" for value in values.values())])
        tables.append(_aligned(rows))
    if found["drafters"]:
        names = {"kangaroo": "Kangaroo's adapter", "medusa": "Medusa-1's four heads"}
        told = (f"{names[name]} {ms:.2f} ms ({ms / single:.3f})" for name, ms in found["drafters"].items())
        tables.append(f"a call of the published draft models, LM heads included: {', '.join(told)}")
    cache = found["cache"]
    tables.append(f"keeping a tree's path in the cache {cache['tree']:.3f} ms, a chain's {cache['chain']:.3f} ms")
    return "\n\n".join(tables)


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.2f}"


def _aligned(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, figures to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
