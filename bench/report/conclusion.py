"""How a run ends on a terminal: how fast, why, and where the report is; then the warnings and all tables."""

from __future__ import annotations

import shlex
from pathlib import Path

from bench.errors import program
from bench.figures.records import read_run
from bench.figures.summary import Entry, StepTime, Summary, read_summary
from bench.report import HTML_FILE, batched, over_axis
from bench.report.cautions import cautions
from bench.report.diagnosis import diagnosis
from bench.report.formats import UNDEFINED, number, plural
from bench.report.model import listed
from bench.report.plain import page, paragraphs
from bench.report.terminal import terminal_table
from bench.text import visible

_SHOWN = 3  # methods, the fastest first; all are in the tables


def conclusion(run_dir: Path) -> str:
    """Return the text for a run whose report is written.

    Raises:
        UserError: it is not.

    """
    run, summary = read_run(run_dir), read_summary(run_dir)
    where = f"Report: {run_dir / HTML_FILE}; open it with: {program()} report {shlex.quote(str(run_dir))} --open"
    warnings = map(paragraphs, listed(cautions(run, summary)))
    batches = [page([batched.section(summary)])] if summary.batches else []
    return "\n\n".join([visible("\n".join([*answer(summary), where, *warnings])), terminal_table(summary), *batches])


def answer(summary: Summary) -> list[str]:
    """How fast the methods are, and why; of peers, only where there is no method."""
    from bench.report.sections import headline  # draws with libraries that take a second to load

    found = summary.of_kind("method") or summary.of_kind("peer")
    fastest = sorted(found.items(), key=lambda item: -(item[1].overall.speedup_decode.value or 0))
    lines = []
    vanilla = next((e.overall.step_time for e in summary.of_kind("vanilla").values()), None)
    for name, entry in fastest[:_SHOWN]:
        lines += [paragraphs(headline(name, entry, sampled=summary.sampling is not None)), *_reason(entry, vanilla)]
        lines += [f"Decode speedup at {over_axis.listed(summary, name)}."] if summary.axis else []
    if slower := sum(entry.overall.speedup_decode.value is not None for _, entry in fastest[_SHOWN:]):
        more = plural(slower, f"more {fastest[0][1].kind}")
        lines.append(f"{more} {'is' if slower == 1 else 'are'} slower: see the overview.")
    for name, entry in summary.of_kind("vanilla").items():
        if not found:
            lines.append(f"{name} decodes {number(entry.overall.tok_per_s, 1)} tokens/s; there is nothing to compare.")
    return lines


def _reason(entry: Entry, vanilla: StepTime | None) -> list[str]:
    """Tokens per step and the cost of a step, whose ratio is the speedup; then what bounds it."""
    rate, step = entry.overall.compression_rate, entry.overall.step_time
    if rate is None or entry.kind == "peer":
        return []
    text = f"Reason: {number(rate)} tokens per step (CR)"
    if step is not None and step.total is not None:
        text += f", and a step costs {number(step.total)} vanilla steps"
        parts = {name: getattr(step, name) for name in ("draft", "verify", "rest")}
        if None not in parts.values():
            text += f" ({', '.join(f'{name} {number(value)}' for name, value in parts.items())})"
    said = diagnosis(entry, vanilla)
    return [paragraphs(f"{text}." + ("" if said == UNDEFINED else f" What bounds it: {said}."))]
