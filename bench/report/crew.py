"""The workers of a run on its page: a table of what each of them did, and a warning where they differ."""

from __future__ import annotations

from collections.abc import Iterable

from bench.figures.records import Run
from bench.figures.summary import Summary
from bench.report.formats import number, times
from bench.report.model import Column, Section, Table

ABOUT = (
    "A question is asked with all its methods by one worker, so that every speedup is a ratio of times on one device. "
    "Intervals allow for what workers differ beyond their questions. Speeds and speedups here are over all turns of a "
    "worker, whatever their tasks."
)


def section(summary: Summary) -> Section:
    """A row for each worker; nothing for a run by one process."""
    methods = {name: entry for name, entry in summary.ranked("method").items() if name not in summary.failed_methods}
    titles = ["worker", "host", "machine", "device", "threads", "questions", "vanilla tok/s"]
    columns = [Column(title, left=place < 4) for place, title in enumerate(titles)]
    columns += [Column(f"{entry.label} decode") for entry in methods.values()]
    rows = [
        [
            one.name,
            one.host,
            one.machine,
            one.device,
            str(one.threads),
            str(one.questions),
            number(one.tok_per_s_vanilla, 1),
            *(times(one.speedups.get(name)) for name in methods),
        ]
        for one in summary.workers
    ]
    return Section("Workers", [ABOUT, Table(columns, rows, "Workers of the run")] if rows else [], "Workers")


def cautions(run: Run, summary: Summary) -> Iterable[str]:
    """What a reader must know of the workers."""
    machines = {str(worker.machine) for worker in run.workers.values()}
    if len(machines) > 1:
        yield (
            f"**Unlike machines**: workers ran on {' and '.join(sorted(machines))}. Each kind measured costs of its "
            "own, and figures are over all of them; see [Workers](#workers)."
        )
    for one in summary.worker_differences:
        entry = summary.methods[one.method]
        what = "vanilla decodes" if entry.kind == "vanilla" else f"the decode speedup of {entry.label} is"
        more = "as fast" if entry.kind == "vanilla" else "as large"
        yield (
            f"**Workers differ**: {what} {one.factor:.2f} times {more} on worker {one.fastest} as on worker "
            f"{one.slowest}, more than their questions explain (F test, p = {one.chance:.1g}); see "
            "[Workers](#workers)."
        )
