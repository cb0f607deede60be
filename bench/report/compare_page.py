"""A comparison of two runs for a pull request (Markdown), CI's test view (JUnit XML) and the terminal. No torch."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree

from bench.figures.comparison import ComparedMethod, Comparison, Metric, Side
from bench.figures.summary import OVERALL
from bench.figures.verdicts import BETTER, SAME, UNKNOWN, WORSE
from bench.report import markdown as markdown_writer
from bench.report import plain
from bench.report.formats import UNDEFINED, task_name, visible
from bench.report.model import Part, Section, Table, listed, table

MARKS = {WORSE: "🔴", BETTER: "🟢", SAME: "⚪", UNKNOWN: "🟡"}


def markdown(compared: Comparison) -> str:
    """The whole comparison."""
    return markdown_writer.page(sections(compared))


def terminal(compared: Comparison) -> str:
    """The same without the tasks' tables."""
    return plain.page(sections(compared))


def sections(compared: Comparison) -> list[Section]:
    """The verdict, all figures over all tasks, what changed, then every task."""
    many = f"{compared.questions} question{'s' if compared.questions != 1 else ''}"
    sides = f"{_side(compared.base)} → {_side(compared.new)}, {many}"
    overview: list[Part] = [sides, *listed(compared.warnings), _overview(compared), _rules(compared)]
    tasks = [Section(label, [_by_task(entry)], folded=True) for label, entry in compared.methods.items()]
    return [
        Section(_headline(compared), overview),
        Section("What changed", listed(findings(compared))),
        Section("Every task", tasks),
    ]


def findings(compared: Comparison) -> list[str]:
    """What got worse (first) or better: a sentence each, with method, task and metric, and whether it counts.

    A single task counts where all of them together say the same.
    """
    found = []
    for label, entry in compared.methods.items():
        overall = entry.tasks[OVERALL].metrics
        for task, cell in entry.tasks.items():
            for name, metric in cell.metrics.items():
                if metric.verdict in (WORSE, BETTER) and (metric.counts or task == OVERALL):
                    counts = metric.counts and overall.get(name, metric).verdict == metric.verdict
                    text = f"{label}, {task_name(task)}: {name} {' → '.join(_values(metric))}"
                    order = (metric.verdict != WORSE, task != OVERALL, not counts)
                    mark = f"**{metric.verdict}**" if counts else f"({metric.verdict}, only informs)"
                    found.append((order, f"{mark} {text} {_change(metric)}".rstrip()))
    return [text for _, text in sorted(found, key=lambda item: item[0])]


def junit(compared: Comparison) -> str:
    """A test case a method: failed where it got worse, skipped where the comparison is inconclusive."""
    cases = compared.methods
    failed = sum(entry.verdict == WORSE for entry in cases.values())
    skipped = sum(entry.verdict == UNKNOWN for entry in cases.values())
    counts = {"tests": str(len(cases)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}
    suite = ElementTree.Element("testsuite", {"name": "roobench", **counts})
    for label, entry in cases.items():
        case = ElementTree.SubElement(suite, "testcase", classname="roobench.gate", name=visible(label))
        alone = dataclasses.replace(compared, methods={label: entry})
        told = [visible(text.replace("**", "")) for text in findings(alone)]
        if entry.verdict == WORSE:
            failure = ElementTree.SubElement(case, "failure", message=told[0] if told else "worse")
            failure.text = "\n".join(told)
        elif entry.verdict == UNKNOWN:
            ElementTree.SubElement(case, "skipped", message=f"{UNKNOWN}: more questions or a quieter machine")
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _headline(compared: Comparison) -> str:
    if compared.verdict == SAME:
        return "Nothing got slower"
    which = [label for label, entry in compared.methods.items() if entry.verdict == compared.verdict]
    return f"{compared.verdict.capitalize()}: {', '.join(which)}"


def _side(side: Side) -> str:
    name = (side.commit or "")[:10] or side.run_id
    return f"`{name}`" + (" with uncommitted changes" if side.dirty else "")


def _overview(compared: Comparison) -> Table:
    rows = []
    for label, entry in compared.methods.items():
        for name, metric in entry.tasks[OVERALL].metrics.items():
            verdict = f"{MARKS[metric.verdict]} {metric.verdict}" if metric.counts else metric.verdict
            rows.append([label, name, *_values(metric), _change(metric), verdict])
            label = ""
    return table(["method", "overall", "base", "new", "change", "verdict"], rows, (0, 1, 5))


def _by_task(entry: ComparedMethod) -> Table:
    rows = [
        [task_name(task), name, *_values(metric), _change(metric), metric.verdict]
        for task, cell in entry.tasks.items()
        for name, metric in cell.metrics.items()
        if metric.counts
    ]
    return table(["task", "metric", "base", "new", "change", "verdict"], rows, (0, 1, 5))


def _rules(compared: Comparison) -> str:
    rules = compared.rules
    sentences = [
        f"A time or speedup is worse if its interval and a change of more than {rules.effect:.0%} (of a prefill: "
        f"{rules.prefill_effect:.0%}) both say so.",
        f"Tolerance of counters: {rules.tolerance:.1%}." if rules.tolerance else "Counters must be equal.",
        "The verdict on a method is the one over all tasks.",
    ]
    if compared.gate:
        sentences.append(
            "Overall times are decided by a sequential test on trimmed means, which allows for its many looks: "
            f"unchanged code is called worse in at most {compared.gate.alarm:.0%} of gates, as far as pairs are "
            "independent. The intervals shown are plain 95% intervals; tasks only inform."
        )
    return " ".join(sentences)


def _values(metric: Metric) -> tuple[str, str]:
    """Base and new, with enough digits to show a difference: in counters the smallest one counts."""
    shown = [(_value(metric.base, digits), _value(metric.new, digits)) for digits in (3, 4, 5, 6)]
    return next(((base, new) for base, new in shown if base != new), shown[0])


def _value(value: float | None, digits: int) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:d}" if isinstance(value, int) else f"{value:.{digits}f}"


def _change(metric: Metric) -> str:
    """Like `+5.2% [+4.0%, +6.3%]`; without an interval where it has none."""
    change = metric.change
    if change.value is None:
        return ""
    bounds = change.bounds
    text = _percent(change.value - 1)
    return f"{text} [{bounds[0] - 1:+.1%}, {bounds[1] - 1:+.1%}]" if bounds and bounds[0] != bounds[1] else text


def _percent(change: float) -> str:
    """Like `+5.2%`; with enough digits not to be zero."""
    texts = [f"{change:+.{digits}%}" for digits in (1, 2, 3)]
    return next((text for text in texts if float(text[:-1])), texts[0])
