"""Where a run's figures come from: all knobs, the machine, the code, and the sessions of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.figures.records import Run
from bench.figures.summary import Summary
from bench.report.cautions import sessions
from bench.report.formats import NOT_LOSSLESS, PEAK_MEMORY, UNDEFINED, gibibytes, share
from bench.report.model import Code, Section, Table, table


def knobs(run: Run, summary: Summary) -> Section:
    """Every method with every knob."""
    rows = [
        [
            summary.label(name),
            info.kind,
            "yes" if info.lossless else NOT_LOSSLESS,
            value_text(info.notes.get("memory", "question")),
            f"{info.extra_parameters:,}",
            gibibytes(run.memory.get("methods", {}).get(name)),
            Code(", ".join(f"{knob}={value_text(value)}" for knob, value in info.config.items()))
            if info.config
            else UNDEFINED,
            Code(", ".join(f"{knob}={value_text(value)}" for knob, value in info.measured.items()))
            if info.measured
            else UNDEFINED,
        ]
        for name, info in run.methods.items()
    ]
    header = ["method", "kind", "lossless", "remembers", "extra parameters", "peak memory", "knobs"]
    header.append("measured or chosen at start")
    return Section("Knobs", [PEAK_MEMORY, table(header, rows, (0, 1, 2, 3, 6), "Methods with every knob")], "Knobs")


def provenance(run: Run) -> Section:
    """What was run on which machine and by which code; warnings are at the top of the page."""
    more = {
        key: value for key, value in run.provenance.items() if key not in ("sessions", "warnings", "commit", "dirty")
    }
    questions = f"{run.dataset.get('name')} ({run.dataset.get('questions')}), {_sha256(run.dataset)}"
    rows = [
        ["run", run.run_id],
        ["command", Code(run.command)],
        ["model", f"{run.model.get('name')}, {_sha256(run.model)}"],
        ["questions", questions],
        ["dtype", run.dtype],
        ["device", value_text(run.machine.facts())],
        ["engine", value_text(run.engine)],
        ["commit", _commit(run.provenance)],
        *([key.replace("_", " "), value_text(value)] for key, value in more.items()),
        ["wall time", f"{run.wall_s:,.0f} s"],
        ["peak memory", gibibytes(run.memory.get("peak_bytes"))],
    ]
    parts = [table(["what", "value"], rows, 2, "Provenance of the run")]
    several = [Section("Sessions", [_sessions(run)])] if run.provenance.get("sessions") else []
    return Section("Provenance", [*parts, *several], "Provenance")


def value_text(value: Any) -> str:
    """A recorded value for readers: no quotes around words, dictionaries spelled out but for what is empty."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items() if item != "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _sessions(run: Run) -> Table:
    """A resumed run has several; each may have had a busier machine or another commit."""
    every = sessions(run)
    by_workers = any(session.get("workers") for session in every)
    rows = [
        [
            str(place),
            str(session.get("started") or UNDEFINED),
            UNDEFINED if session.get("wall_s") is None else f"{session['wall_s']:,.0f} s",
            share(session.get("others_share"), 1),
            *([_workers(session)] if by_workers else []),
            _commit(session),
            "; ".join(session.get("warnings") or []) or UNDEFINED,
        ]
        for place, session in enumerate(every, 1)
    ]
    header = ["session", "started", "wall time", "CPU used by others", *(["workers"] if by_workers else [])]
    header += ["commit", "warnings"]
    left = (0, 1, *range(4, len(header)))
    return table(header, rows, left, "Sessions")


def _workers(session: Mapping[str, Any]) -> str:
    """How many processes answered questions, and how many of these were lost; one process does not count itself."""
    lost = f", {session['lost']} lost" if session.get("lost") else ""
    return f"{session['workers']}{lost}" if session.get("workers") else UNDEFINED


def _commit(session: Mapping[str, Any]) -> str:
    commit = session.get("commit")
    return f"{commit}{' with uncommitted changes' if session.get('dirty') else ''}" if commit else "unknown"


def _sha256(of: Mapping[str, Any]) -> str:
    return f"sha256 `{of['sha256'][:12]}`" if of.get("sha256") else "sha256 unknown"
