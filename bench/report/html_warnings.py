"""What a reader must know before believing a figure: the warnings of the HTML report, as (what, why)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.metrics import OVERALL
from bench.records import Run
from bench.report.html_tables import PERCENT, percent
from bench.report.tables import number, task_name, times

FEW_QUESTIONS = 20  # a task with fewer gives indicative figures
MUCH_REPETITION = 0.3
WIDE = 0.05  # half an interval's width over its value
PREDICTION_OFF = 0.07

Warnings = Iterator[tuple[str, str]]


def warnings_of(run: Run, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Every warning, the gravest first; empty where nothing speaks against the figures."""
    found = [_not_lossless, _interrupted, _failures, _divergences]
    after = [_few_questions, _wide, _predictions, _repetition]
    return [
        *(item for rule in found for item in rule(summary)),
        *_recorded(run),
        *(item for rule in after for item in rule(summary)),
    ]


def _not_lossless(summary: dict[str, Any]) -> Warnings:
    different = [turn["method"] for turn in summary["divergences"] if turn["verdict"] == "different"]
    if different:
        names = ", ".join(dict.fromkeys(different))
        yield "Not lossless", f"{len(different)} answers of {names} differ from vanilla's beyond rounding."


def _interrupted(summary: dict[str, Any]) -> Warnings:
    if not summary["complete"]:
        yield "Interrupted", "The figures are of the questions that were finished until then."


def _failures(summary: dict[str, Any]) -> Warnings:
    if summary["failed"]:
        count = len(summary["excluded_questions"])
        yield f"Failed questions: {count}", "Left out of every method and of vanilla; see Failures for the errors."


def _divergences(summary: dict[str, Any]) -> Warnings:
    if summary["divergences"]:
        count = len(summary["divergences"])
        yield f"Answers that are not vanilla's, token for token: {count}", "Listed under Divergences."


def _recorded(run: Run) -> Warnings:
    """What the run itself noticed, and what its sessions tell of each other."""
    sessions = run.provenance.get("sessions") or []
    said = [*run.provenance.get("warnings", []), *(text for one in sessions for text in one.get("warnings", []))]
    for text in dict.fromkeys(said):
        yield "Noticed during the run", f"{text[:1].upper()}{text[1:]}."
    if len({one.get("commit") for one in sessions}) > 1:
        yield "Different commits", "The sessions of this run were made by different versions of the code."


def _few_questions(summary: dict[str, Any]) -> Warnings:
    """Peers may be asked less on purpose; their own rows show it."""
    asked: dict[str, int] = {}
    for entry in summary["methods"].values():
        for task, cell in entry["tasks"].items():
            if entry["kind"] != "peer" and task != OVERALL:
                asked[task] = min(asked.get(task, cell["questions"]), cell["questions"])
    few = [f"{task_name(task)} {count}" for task, count in asked.items() if count < FEW_QUESTIONS]
    if few:
        yield "Few questions", f"{', '.join(few)}: below {FEW_QUESTIONS} a task the figures are indicative."


def _wide(summary: dict[str, Any]) -> Warnings:
    wide = []
    for name, entry in summary["methods"].items():
        estimate = entry["tasks"][OVERALL]["speedup_decode"]
        value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
        if entry["kind"] == "method" and value and low is not None and high is not None:
            half = (high - low) / 2 / value
            wide += [f"{name} ±{PERCENT * half:.0f}%"] if half > WIDE else []
    if wide:
        yield "Wide intervals", f"Half the overall speedup's interval exceeds {percent(WIDE)} of it: {', '.join(wide)}."


def _predictions(summary: dict[str, Any]) -> Warnings:
    for name, entry in summary["methods"].items():
        overall = entry["tasks"][OVERALL]
        error = overall.get("prediction_error")
        if error is not None and abs(error) > PREDICTION_OFF:
            predicted, measured = overall["predicted"]["speedup"], overall["speedup_decode"]["value"]
            yield (
                "Time not explained",
                f"The costs measured before the run predict {times(predicted)} for {name}; measured were "
                f"{times(measured)} ({percent(error, signed=True)}).",
            )


def _repetition(summary: dict[str, Any]) -> Warnings:
    high: dict[str, list[str]] = {}
    for name, entry in summary["methods"].items():
        for task, cell in entry["tasks"].items():
            if task != OVERALL and (cell["repetition"] or 0) > MUCH_REPETITION:
                high.setdefault(task, []).append(f"{name} {number(cell['repetition'])}")
    for task, found in high.items():
        text = f"{', '.join(found)} of the 8-grams repeat: loops are easy to draft, which flatters every method."
        yield f"Repetition in {task_name(task)}", text
