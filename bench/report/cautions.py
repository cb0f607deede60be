"""What a reader must know before believing a figure: the warnings of the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import methods
from bench.figures.disturbed import BUSY_SHARE, BUSY_TURN_SHARE
from bench.figures.records import FLOAT32_STATES, Run
from bench.figures.summary import OVERALL, Summary
from bench.report import crew
from bench.report.formats import at_text, number, percent, shown_name, task_name, times, where

FEW_QUESTIONS = 20  # a task with fewer gives indicative figures
MUCH_REPETITION = 0.3
WIDE_INTERVAL = 0.05  # half the interval over the value
PREDICTION_OFF = 0.07
NUMERICAL_FLOAT32 = 1 / 500  # above it, a run in float32 has a finding to explain
_NAMED = 6  # of several places with the same trouble


def cautions(run: Run, summary: Summary) -> list[str]:
    """Everything that limits what a run's figures mean, as Markdown sentences."""
    return [
        *map(_told, _recorded(run)),
        *_of_methods(run, summary),
        *_axis(summary),
        *_busy(run),
        *_busy_turns(summary),
        *_outliers(summary),
        *_interrupted(summary),
        *_commits(run),
        *crew.cautions(run, summary),
        *_dead(summary),
        *_failures(summary),
        *_divergences(summary),
        *_numerical(summary),
        *_few_questions(summary),
        *_no_intervals(summary),
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


def _told(text: str) -> str:
    """A recorded warning as a sentence; what stands in front of a colon is its heading."""
    if text.partition(" ")[0] not in methods.names():
        text = text[:1].upper() + text[1:]
    heading, colon, rest = text.partition(": ")
    return f"**{heading}**: {rest}." if colon else f"**{text}.**"


def _of_methods(run: Run, summary: Summary) -> Iterable[str]:
    """What methods, and members of compositions, say of their own figures."""
    for name, info in run.methods.items():
        for notes in (info.notes, *(part for part in info.notes.values() if isinstance(part, dict))):
            if text := notes.get("caution"):
                yield f"**{summary.label(name)}**: {text}."


def _axis(summary: Summary) -> Iterable[str]:
    if summary.axis is not None:
        first, *others = (at_text(summary.axis, point.value) for point in summary.axis.points)
        if others:
            yield f"**Figures are at {first}**; those at {', '.join(others)} are in the section By {summary.axis.name}."


def _busy(run: Run) -> Iterable[str]:
    """By what others used during the run; a load average before it would count what had just ended."""
    shares = [session.get("others_share") or 0 for session in sessions(run)]
    if max(shares) > BUSY_SHARE:
        listed = ", ".join(f"{share:.0%}" for share in shares)
        many = run.machine.type == "cpu" and run.machine.threads > 1
        advice = " A run with `--threads 1` may be faster on such a machine." if many else ""
        yield (
            f"**Busy machine**: other programs used {listed} of the processors during the run, which slows some turns "
            f"and not others.{advice}"
        )


def _busy_turns(summary: Summary) -> Iterable[str]:
    """A burst is too short for the run's average, and yet decides the figures of the turns that it hits."""
    busy = summary.busy_turns
    if busy is None:
        return
    tasks = ", ".join(f"{task_name(task)} {count}" for task, count in busy.by_task.items())
    worst = "; ".join(f"{where(turn, summary)}: {turn.others_share:.0%}" for turn in busy.worst)
    which = "the most" if busy.turns > len(busy.worst) else "these"
    robust = "; ".join(
        f"{shown_name(name, entry)} {times(cell.speedup_decode_steps.value)}, ratio of sums "
        f"{times(cell.speedup_decode.value)}"
        for name, entry in summary.of_kind("method").items()
        if (cell := entry.overall).speedup_decode_steps.value is not None
    )
    share = busy.turns / busy.of
    yield (
        f"**Busy moments**: in {busy.turns} of {busy.of} turns ({share:.1%}: {tasks}) other programs used more than "
        f"{BUSY_TURN_SHARE:.0%} of the processors. They are not left out; {which}: {worst}."
        f"{f' Decode speedup by step medians, which bursts do not move: {robust}.' if robust else ''}"
    )


def _outliers(summary: Summary) -> Iterable[str]:
    for turn in summary.outliers[:_NAMED]:
        speedups = "; ".join(
            f"{summary.label(name)} {times(found.speedup)}, without it {times(found.without)}"
            for name, found in turn.speedups.items()
        )
        busy = f", while other programs used {turn.others_share:.0%} of the processors" if turn.others_share else ""
        yield (
            f"**Outlier**: {where(turn, summary)}, decoded in {turn.decode_s:.3g} s; its tokens usually take "
            f"{turn.usual_s:.3g} s{busy}. It is not left out. Decode speedup in {task_name(turn.task)}: {speedups}."
        )
    if len(summary.outliers) > _NAMED:
        yield f"**{len(summary.outliers) - _NAMED} more outliers**; all are in `summary.json`."


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
    if not summary.failed:
        return
    seen = "see [Failures](#failures)."
    if summary.axis is not None:  # at one value a question is left out, and kept at the others
        yield (
            f"**Failed turns: {len(summary.failed)}**; a question that failed is left out of every method and of "
            f"vanilla at the same {summary.axis.name}; {seen}"
        )
    elif count := len(summary.excluded_questions):
        yield f"**Failed questions: {count}**, left out of every method and of vanilla; {seen}"
    else:  # of methods that answered nothing at all
        yield f"**Failed turns: {len(summary.failed)}**; {seen}"


def _divergences(summary: Summary) -> Iterable[str]:
    found = summary.divergences
    different = [summary.label(turn.method) for turn in found if turn.verdict == "different"]
    if different:
        names = ", ".join(dict.fromkeys(different))
        yield f"**Not lossless**: {len(different)} answers of {names} differ from vanilla's beyond rounding."
    if found:
        yield f"**Answers that differ from vanilla's in some token: {len(found)}**; see [Divergences](#divergences)."


def _numerical(summary: Summary) -> Iterable[str]:
    """Ties are rare where states are float32, and many of them often mean a mistake."""
    if summary.dtype not in FLOAT32_STATES:
        return
    high = [
        f"{entry.label} {rate:.1%}"
        for entry in summary.of_kind("method").values()
        if (rate := entry.overall.numerical_rate or 0) > NUMERICAL_FLOAT32
    ]
    if high:
        yield (
            f"**Many numerical divergences for {summary.dtype}** ({', '.join(high)} of the audited turns): more than "
            f"one in {1 / NUMERICAL_FLOAT32:.0f} needs an explanation."
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


def _no_intervals(summary: Summary) -> Iterable[str]:
    """Where the overall speedup has no interval, with the estimate that single turns do not move."""
    without = [
        f"{shown_name(name, entry)} {times(cell.speedup_decode.value)}, median of questions "
        f"{times(cell.speedup_decode_median.value)}"
        for name, entry in summary.of_kind("method").items()
        if (cell := entry.overall).speedup_decode.value is not None and cell.speedup_decode.bounds is None
    ]
    if without:
        yield (
            "**No interval** for the overall decode speedup: too few questions, or times too uneven; the median is not "
            f"moved by single turns: {'; '.join(without)}."
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
