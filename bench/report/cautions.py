"""What a reader must know before believing a figure: the page's warnings, each a sentence."""

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
    """Everything that speaks against a run's figures, as Markdown sentences; empty where nothing does."""
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
    """The sessions that a run was made in; where none is recorded there is one, told by the provenance."""
    recorded: list[dict[str, Any]] = [dict(session) for session in run.provenance.get("sessions", [])]
    return recorded or [{key: run.provenance.get(key) for key in ("started", "load_1min", "commit", "dirty")}]


def _recorded(run: Run) -> list[str]:
    """What the run itself warned of, once."""
    found = [*run.provenance.get("warnings", [])]
    found += [text for session in sessions(run) for text in session.get("warnings") or []]
    return list(dict.fromkeys(found))


def _busy(run: Run) -> Iterable[str]:
    """By what others used while the run went on; a load average before it would count what had just ended."""
    shares = [session.get("others_share") or 0 for session in sessions(run)]
    if max(shares) > BUSY_SHARE:
        listed = ", ".join(f"{share:.0%}" for share in shares)
        yield (
            f"**Busy machine**: other programs used {listed} of the processors while the run went on; they slow some "
            "turns and not others."
        )


def _interrupted(summary: Summary) -> Iterable[str]:
    if not summary.complete:
        yield "**The run was interrupted**: the figures are of the questions that were finished until then."


def _commits(run: Run) -> Iterable[str]:
    found = {(session.get("commit"), bool(session.get("dirty"))) for session in sessions(run)}
    if len(found) > 1:
        yield (
            "**Sessions on different commits**: the run was resumed with other code than it began with; see "
            "[Provenance](#provenance)."
        )


def _dead(summary: Summary) -> Iterable[str]:
    for name, error in summary.failed_methods.items():
        yield f"**{name} failed in every question** and is left out, first with: `{error.replace('`', chr(39))}`."


def _failures(summary: Summary) -> Iterable[str]:
    if summary.failed:
        yield (
            f"**Failed questions: {len(summary.excluded_questions)}**, left out of every method and of "
            "vanilla; the errors stand under [Failures](#failures)."
        )


def _divergences(summary: Summary) -> Iterable[str]:
    found = summary.divergences
    different = [turn.method for turn in found if turn.verdict == "different"]
    if different:
        names = ", ".join(dict.fromkeys(different))
        yield f"**Not lossless**: {len(different)} answers of {names} differ from vanilla's beyond rounding."
    if found:
        yield (
            f"**Answers that are not vanilla's, token for token: {len(found)}**, listed under "
            "[Divergences](#divergences)."
        )


def _numerical(summary: Summary) -> Iterable[str]:
    """A tie may fall either way; in float32 that is rare, and often means a mistake."""
    if summary.dtype not in FLOAT32_STATES:
        return
    high = [
        f"{name} {rate:.1%}"
        for name, entry in summary.of_kind("method").items()
        if (rate := entry.overall.numerical_rate or 0) > NUMERICAL_FLOAT32
    ]
    if high:
        yield (
            f"**Many numerical divergences for float32** ({', '.join(high)} of the audited turns): more than one in "
            f"{1 / NUMERICAL_FLOAT32:.0f} is a finding to explain."
        )


def _few_questions(summary: Summary) -> Iterable[str]:
    """Peers may be asked less on purpose; their own table shows it."""
    asked: dict[str, int] = {}
    for entry in summary.methods.values():
        for task, cell in entry.tasks.items():
            if entry.kind != "peer" and task != OVERALL:
                asked[task] = min(asked.get(task, cell.questions), cell.questions)
    few = [f"{task_name(task)} {count}" for task, count in asked.items() if count < FEW_QUESTIONS]
    if few:
        yield (
            f"**Few questions** ({', '.join(few)}): below {FEW_QUESTIONS} a task, intervals are wide and "
            "the figures indicative."
        )


def _wide_intervals(summary: Summary) -> Iterable[str]:
    """The decode speedup's, widest first; overall by itself, because it is what gets quoted."""
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
            f"{more}. They are of one method over vanilla; the difference of two methods has its own, narrower or not."
        )


def _predictions(summary: Summary) -> Iterable[str]:
    off = [
        f"{name} {percent(error)}"
        for name, entry in summary.of_kind("method").items()
        if abs(error := entry.overall.prediction_error or 0) > PREDICTION_OFF
    ]
    if off:
        yield (
            f"**Predictions off by more than {PREDICTION_OFF:.0%}** ({', '.join(off)}): the machine was not as fast as "
            "when its costs were measured, or a cost is missing from them; see "
            "[Where the time goes](#where-the-time-goes)."
        )


def _repetition(summary: Summary) -> Iterable[str]:
    high = [
        f"{name} {number(cell.repetition)} in {task_name(task)}"
        for name, entry in summary.methods.items()
        for task, cell in entry.tasks.items()
        if task != OVERALL and (cell.repetition or 0) > MUCH_REPETITION
    ]
    if high:
        yield (
            f"**Repetition above {MUCH_REPETITION}** flatters every drafter, because loops are easy to "
            f"predict: {'; '.join(high)}."
        )
