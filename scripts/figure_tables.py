"""The tables of README.md and docs/results.md, made from the committed records by figures.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from bench.figures.summary import OVERALL, read_summary
from bench.report import batched, over_axis
from bench.report.formats import identical_text, number, task_name, times, times_between
from bench.report.markdown import table_text
from bench.report.model import Code, Section, Strong, Table, table


def headline(run: Path) -> str:
    """Return the decode speedups of a run: a row for each method, a column for each task, the overall interval."""
    summary = read_summary(run)
    vanilla = next(iter(summary.of_kind("vanilla").values()))
    rows = [["vanilla, tokens/s", *(number(base.tok_per_s, 1) for base in vanilla.tasks.values())]]
    for entry in summary.of_kind("method").values():
        cells = [times(entry.tasks[task].speedup_decode.value) for task in vanilla.tasks if task != OVERALL]
        rows.append([Code(entry.label), *cells, Strong(times_between(entry.overall.speedup_decode))])
    return table_text(table(["decode speedup", *map(task_name, vanilla.tasks)], rows))


def costs(run: Path) -> str:
    """Return what bounds the methods of a run, over all tasks: speedup, tokens per pass, and the cost of a step."""
    header = ["method", "decode", "end-to-end", "tokens per pass (CR)", "cost of a step", "of it drafting", "predicted"]
    rows = []
    for entry in read_summary(run).of_kind("method").values():
        cell, step = entry.overall, entry.overall.step_time
        speedups = [times_between(cell.speedup_decode), times_between(cell.speedup_total)]
        parts = [number(part) for part in (cell.compression_rate, step and step.total, step and step.draft)]
        predicted = times(cell.predicted and cell.predicted.speedup)
        rows.append([Code(entry.label), *speedups, *parts, predicted, identical_text(cell.lossless)])
    return table_text(table([*header, "output identical"], rows))


def passes(counters: Path) -> str:
    """Return tokens per pass out of the counters of greedy decoding in results/reference/seam/README.md."""
    text = counters.read_text(encoding="utf-8").partition("## Temperature")[0]
    steps = re.findall(r"^(\w+(?::[a-z]+(?![\w=]))?)\S*: \d+ turns, (\d+) steps", text, re.MULTILINE)
    vanilla = int(dict(steps)["vanilla"])
    rows = [[Code(name), f"{int(made):,}", number(vanilla / int(made))] for name, made in steps]
    return table_text(table(["method", "forward passes of the target", "tokens per pass"], rows))


def batches(run: Path) -> str:
    """Return throughput by batch size, and where methods cross vanilla."""
    return _of_section(batched.section(read_summary(run)))


def by_value(*captions: str) -> Callable[[Path], str]:
    """Return what makes these tables of a run over temperatures or prompt lengths."""
    return lambda run: _of_section(over_axis.section(read_summary(run)), *captions)


def prefill(folder: Path) -> str:
    """Return the time to the first token by prompt length and weights, ours and transformers', as its records say."""
    found = [json.loads((folder / f"{kind}.json").read_text()) for kind in ("float32", "bfloat16", "q4")]
    rows = []
    for lengths in zip(*(each["prefills"] for each in found), strict=True):
        cells = [f"{row['ours_ms']:,.0f} ms, {row['generate_ms']:,.0f} ms: {row['ratio']:.2f}x" for row in lengths]
        rows.append([f"{lengths[0]['tokens']:,} tokens", *cells])
    return table_text(table(["prompt", *(each["precision"] for each in found)], rows))


def _of_section(section: Section, *captions: str) -> str:
    """Return tables of a report's section, by default all."""
    every = [part for part in section.parts if isinstance(part, Table)]
    return "\n\n".join(table_text(each) for each in every if not captions or each.caption in captions)


TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {  # by name: the record and what shows it
    "headline": ("headline", headline),
    "costs": ("headline", costs),
    "passes": ("seam", passes),
    "second": ("second", costs),
    "eagle": ("eagle", costs),
    "prefill": ("prefills", prefill),
    "batches": ("batches", batches),
    "temperatures": ("temperatures", by_value("Decode speedup", "CR")),
    "prompt-lengths": ("prompt-lengths", by_value("Decode speedup", "CR", "Time per token, ms")),
}
