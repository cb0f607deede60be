"""What bounds each method here: one line each, and what hindsight would have given. From recorded figures alone."""

from __future__ import annotations

from bench.figures.breakdown import ratio
from bench.figures.summary import OVERALL, Drafts, Entry, StepTime, Summary
from bench.report.formats import UNDEFINED, number, share, shown_name, times
from bench.report.model import Column, Section, Table

BOUNDS = (
    "*Predicted*: the steps that the method took, at costs measured before the run. *Perfect stopping*: the same steps "
    "without the drafts that were rejected. *Best method at every step*: the cheapest way through each answer by steps "
    "that some method took. Both are known only afterwards: they are bounds computed from records, not measurements. "
    "What bounds a method is what would gain most if it cost nothing: its drafting, the width of its verification, or "
    "its rejected drafts; or that it rarely drafts at all."
)
_RARE = 0.5  # a method that drafts in a smaller share of its steps is bounded by that


def section(summary: Summary) -> Section:
    """Every method by family, the fastest first, then the best choice among all of their steps."""
    shown = {name: e for name, e in summary.ranked("method").items() if e.overall.steps}
    base = next(iter(summary.of_kind("vanilla").values()), None)
    vanilla = base.overall.step_time if base else None
    rows = [[shown_name(name, entry), *_figures(entry), diagnosis(entry, vanilla)] for name, entry in shown.items()]
    best = summary.hindsight.get(OVERALL)
    if best is not None and len(shown) > 1:
        bound = [UNDEFINED, UNDEFINED, UNDEFINED, times(best.choice), times(best.both)]
        rows.append(["best method at every step", *bound, "computed with hindsight, not measured"])
    titles = ("CR", "cost of a step", "decode speedup", "predicted", "perfect stopping")
    columns = [Column("overall", left=True), *map(Column, titles), Column("what bounds it here", left=True)]
    known = any(entry.overall.drafts for entry in shown.values())
    return Section("What bounds each method", [BOUNDS, Table(columns, rows)] if known else [], "Bounds")


def _figures(entry: Entry) -> list[str]:
    cell = entry.overall
    total = cell.step_time.total if cell.step_time else None
    predicted = cell.predicted.speedup if cell.predicted else None
    ratios = (cell.speedup_decode.value, predicted, cell.perfect_stopping)
    return [number(cell.compression_rate), number(total), *map(times, ratios)]


def diagnosis(entry: Entry, vanilla: StepTime | None) -> str:
    """What bounds a method, in one line; UNDEFINED where its steps are not known. `vanilla`: the parts of its step."""
    cell = entry.overall
    drafts, rate = cell.drafts, cell.compression_rate
    if drafts is None or drafts.steps is None or rate is None:
        return UNDEFINED
    if drafts.tokens is None or drafts.accepted is None:
        return "it never drafted"
    if drafts.steps < _RARE:
        gained = 1 + drafts.tokens * drafts.accepted
        return f"coverage: it drafts in {share(drafts.steps)} of its steps, which then add {number(gained)} tokens"
    said = {0.0: f"acceptance: {share(drafts.accepted)} of its drafts"} | _costs(entry, drafts, rate, vanilla)
    return said[max(said)]


def _costs(entry: Entry, drafts: Drafts, rate: float, vanilla: StepTime | None) -> dict[float, str]:
    """What it would gain if a cost were nothing, with the sentence."""
    cell = entry.overall
    found: dict[float, str] = {}
    if (bound := cell.perfect_stopping) is not None and cell.predicted is not None:
        # Predictions may be off: compared is what it gains, from where the method was measured.
        found[(cell.speedup_decode.value or 0.0) * bound / cell.predicted.speedup] = (
            f"acceptance: {share(drafts.accepted)} of its drafts; at most {times(bound)} without the rejected ones"
        )
    if (step := cell.step_time) is None or step.total is None:
        return found
    if step.draft is not None and (free := ratio(rate, step.total - step.draft)) is not None:
        found[free] = (
            f"drafting takes {number(step.draft)} of a step's {number(step.total)} vanilla steps: at most "
            f"{times(free)} if it were free"
        )
    if step.verify is not None and vanilla is not None and vanilla.verify is not None:
        narrow = ratio(rate, step.total - max(0.0, step.verify - vanilla.verify))
        if narrow is not None:
            width = 1 + (drafts.steps or 0) * (drafts.tokens or 0)
            found[narrow] = (
                f"verifying {number(width, 1)} tokens costs {number(step.verify)} "
                f"vanilla steps at CR {number(rate)}: at most {times(ratio(rate, step.verify))}"
            )
    return found
