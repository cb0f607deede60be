"""What a reader must know before believing a figure: the warnings of the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.figures.records import FLOAT32_STATES, Run
from bench.figures.summary import OVERALL, Summary
from bench.report.formats import number, percent, shown_name, task_name

FEW_QUESTIONS = 20  # a task with fewer gives indicative figures
MUCH_REPETITION = 0.3
WIDE_INTERVAL = 0.05  # half the interval over the value
PREDICTION_OFF = 0.07
BUSY_SHARE = 0.1  # of the processors, used by others during a session
NUMERICAL_FLOAT32 = 1 / 500  # above it, a run in float32 has a finding to explain
_NAMED = 6  # of several places with the same trouble


def cautions(run: Run, summary: Summary) -> list[str]:
    """Everything that limits what a run's figures mean, as Markdown sentences."""
    return [
        *(f"**{text[:1].upper()}{text[1:]}.**" for text in _recorded(run)),
        *_busy(run),
        *_interrupted(summary),
        *_commits(run),
        *_dead(summary),
        *_failures(summary),
        *_divergences(summary),
        *_numerical(summary),
        *_few_questions(summary),
        *_wide_intervals(summary),
        *_predictions(summary),
        *_repetition(summary),
    ]


def sessions(run: Run) -> list[dict[str, Any]]:
    """The sessions that a run was made in; if none is recorded, one from the provenance."""
    recorded: list[dict[str, Any]] = [dict(session) for session in run.provenance.get("sessions", [])]
    return recorded or [{key: run.provenance.get(key) for key in ("started", "load_1min", "commit", "dirty")}]


def _recorded(run: Run) -> list[str]:
    """The warnings that the run recorded, each once."""
    found = [*run.provenance.get("warnings", [])]
    found += [text for session in sessions(run) for text in session.get("warnings") or []]
    return list(dict.fromkeys(found))


def _busy(run: Run) -> Iterable[str]:
    """By what others used during the run; a load average before it would count what had just ended."""
    shares = [session.get("others_share") or 0 for session in sessions(run)]
    if max(shares) > BUSY_SHARE:
        listed = ", ".join(f"{share:.0%}" for share in shares)
        yield (
            f"**Busy machine**: other programs used {listed} of the processors during the run, which slows some turns "
            "and not others."
        )


def _interrupted(summary: Summary) -> Iterable[str]:
    if not summary.complete:
        yield "**The run was interrupted**: the figures cover the questions that were finished."


def _commits(run: Run) -> Iterable[str]:
    found = {(session.get("commit"), bool(session.get("dirty"))) for session in sessions(run)}
    if len(found) > 1:
        yield (
            "**Sessions on different commits**: the run was resumed with different code than it was started with; see "
            "[Provenance](#provenance)."
        )


def _dead(summary: Summary) -> Iterable[str]:
    for name, error in summary.failed_methods.items():
        label = summary.label(name)
        yield f"**{label} failed in every question** and is left out; first error: `{error.replace('`', chr(39))}`."


def _failures(summary: Summary) -> Iterable[str]:
    if summary.failed:
        yield (
            f"**Failed questions: {len(summary.excluded_questions)}**, left out of every method and of vanilla; see "
            "[Failures](#failures)."
        )


def _divergences(summary: Summary) -> Iterable[str]:
    found = summary.divergences
    different = [summary.label(turn.method) for turn in found if turn.verdict == "different"]
    if different:
        names = ", ".join(dict.fromkeys(different))
        yield f"**Not lossless**: {len(different)} answers of {names} differ from vanilla's beyond rounding."
    if found:
        yield f"**Answers that differ from vanilla's in some token: {len(found)}**; see [Divergences](#divergences)."


def _numerical(summary: Summary) -> Iterable[str]:
    """In float32 ties are rare, and many of them often mean a mistake."""
    if summary.dtype not in FLOAT32_STATES:
        return
    high = [
        f"{entry.label} {rate:.1%}"
        for entry in summary.of_kind("method").values()
        if (rate := entry.overall.numerical_rate or 0) > NUMERICAL_FLOAT32
    ]
    if high:
        yield (
            f"**Many numerical divergences for float32** ({', '.join(high)} of the audited turns): more than one in "
            f"{1 / NUMERICAL_FLOAT32:.0f} needs an explanation."
        )


def _few_questions(summary: Summary) -> Iterable[str]:
    """Peers may be given fewer questions on purpose; their own table shows it."""
    asked: dict[str, int] = {}
    for entry in summary.methods.values():
        for task, cell in entry.tasks.items():
            if entry.kind != "peer" and task != OVERALL:
                asked[task] = min(asked.get(task, cell.questions), cell.questions)
    few = [f"{task_name(task)} {count}" for task, count in asked.items() if count < FEW_QUESTIONS]
    if few:
        yield (
            f"**Few questions** ({', '.join(few)}): below {FEW_QUESTIONS} per task, intervals are wide and the figures "
            "only indicative."
        )


def _wide_intervals(summary: Summary) -> Iterable[str]:
    """Of the decode speedup, widest first; overall before all tasks, because it is what gets quoted."""
    wide = []
    for name, entry in summary.of_kind("method").items():
        for task, cell in entry.tasks.items():
            estimate = cell.speedup_decode
            interval = estimate.bounds
            half = (interval[1] - interval[0]) / 2 / estimate.value if interval and estimate.value else 0
            if half > WIDE_INTERVAL:
                wide.append((task != OVERALL, -half, f"{shown_name(name, entry)}, {task_name(task)}: ±{half:.0%}"))
    if wide:
        shown = "; ".join(text for *_, text in sorted(wide)[:_NAMED])
        more = f"; and {len(wide) - _NAMED} more" if len(wide) > _NAMED else ""
        yield (
            f"**Wide intervals** (half of the 95% interval above {WIDE_INTERVAL:.0%} of the decode speedup): {shown}"
            f"{more}. These are intervals of one method over vanilla; the ratio of two methods has its own."
        )


def _predictions(summary: Summary) -> Iterable[str]:
    off = [
        f"{entry.label} {percent(error)}"
        for entry in summary.of_kind("method").values()
        if abs(error := entry.overall.prediction_error or 0) > PREDICTION_OFF
    ]
    if off:
        yield (
            f"**Predictions off by more than {PREDICTION_OFF:.0%}** ({', '.join(off)}): the speed of the machine "
            "changed after its costs were measured, or a cost is missing; see "
            "[Where the time goes](#where-the-time-goes)."
        )


def _repetition(summary: Summary) -> Iterable[str]:
    high = [
        f"{entry.label} {number(cell.repetition)} in {task_name(task)}"
        for entry in summary.methods.values()
        for task, cell in entry.tasks.items()
        if task != OVERALL and (cell.repetition or 0) > MUCH_REPETITION
    ]
    if high:
        yield (
            f"**Repetition above {MUCH_REPETITION}** favours every drafter, because loops are easy to predict: "
            f"{'; '.join(high)}."
        )
