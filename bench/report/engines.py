"""The engines of a run's peers, and those that are compared with a baseline of their own."""

from __future__ import annotations

from functools import partial

from bench.figures.summary import OVERALL, Beside, Summary
from bench.report.formats import (
    UNDEFINED,
    interval_text,
    lossless_text,
    number,
    shown_name,
    task_name,
    times_between,
)
from bench.report.model import Code, Column, Part, Section, Table, table
from bench.report.tables import by_row

ENGINES = (
    "A peer runs on another engine than vanilla and the methods. Kernels, number formats and scheduling differ as well "
    "as the decoding, so a peer's speed over vanilla's is no speedup of a method. Compare a peer that drafts with the "
    "same engine without drafting."
)
BESIDE = (
    "On the turns that both answered (ratio of sums, overall the tasks' unweighted mean). Output: answers that have "
    "the baseline's token ids are identical. Others are numerical where the reference's logits of the two tokens are "
    "as close as those of this run's own forward passes, and different beyond that. An engine that computes with less "
    "precision than this run may be farther off without a fault."
)
_TOLD = ("arithmetic", "tokens", "prompts", "prefix_cache", "times")  # notes that limit what a peer's figures mean


def engines(summary: Summary) -> Section:
    """Name, version and flags of every engine, with what limits the figures of its peer."""
    rows = []
    for name, entry in summary.of_kind("peer").items():
        match entry.notes.get("engine"):
            case {"name": engine, "version": version, "flags": flags}:
                said = [str(entry.notes[key]) for key in _TOLD if entry.notes.get(key)]
                url = str(entry.notes.get("url", ""))
                rows.append(
                    [
                        summary.label(name),
                        str(engine),
                        str(version) or "not told",
                        Code(str(flags)) if flags else UNDEFINED,
                        Code(url) if url else UNDEFINED,
                        "; ".join(said) or UNDEFINED,
                    ]
                )
    header = ["peer", "engine", "version", "flags", "server", "notes"]
    return Section("Engines", [ENGINES, table(header, rows, 6, "Engines of peers")] if rows else [], "Engines")


def beside(summary: Summary) -> Section:
    """Each peer with a baseline of its own, in units of that."""
    parts: list[Part] = []
    for name, found in summary.beside.items():
        entry, other = summary.methods[name], summary.methods[found.baseline]
        title = f"{shown_name(name, entry)} against {shown_name(found.baseline, other)}"
        parts.append(Section(title, [headline(summary, name, found), _table(summary, found)]))
    made = interval_text(summary)
    about = f"{BESIDE} {made[:1].upper()}{made[1:]}." if made else BESIDE
    return Section("Peers against their own baseline", [about, *parts] if parts else [], "Own baseline")


def headline(summary: Summary, name: str, found: Beside) -> str:
    """One sentence: how fast next to its baseline, and whether its output is the same."""
    overall = found.tasks[OVERALL]
    speed, total = times_between(overall.speedup_decode), times_between(overall.speedup_total)
    gap = "" if found.gap is None else f"; where they first differ, logits are at most {found.gap:.3g} apart"
    verdict = lossless_text(overall.lossless, sampled=summary.sampling is not None)
    label, other = summary.label(name), summary.label(found.baseline)
    return f"**{label}** decodes {speed} as fast as **{other}** (end-to-end {total}), output: {verdict}{gap}."


def _table(summary: Summary, found: Beside) -> Table:
    verdict = partial(lossless_text, sampled=summary.sampling is not None)
    told = found.tasks[OVERALL].drafts is not None
    columns = [
        Column("turns", lambda cell: f"{cell.turns}"),
        Column("speedup decode", lambda cell: times_between(cell.speedup_decode)),
        Column("speedup end-to-end", lambda cell: times_between(cell.speedup_total)),
        Column("tok/s", lambda cell: number(cell.tok_per_s, 1)),
        Column("baseline tok/s", lambda cell: number(cell.tok_per_s_vanilla, 1)),
        Column("CR", lambda cell: number(cell.compression_rate)),
        *([Column("drafts accepted", lambda cell: number(cell.drafts.accepted))] if told else []),
        Column("output", lambda cell: verdict(cell.lossless)),
    ]
    return by_row("task", ((task_name(task), cell) for task, cell in found.tasks.items()), columns)
