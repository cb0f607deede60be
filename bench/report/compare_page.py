"""A comparison of two runs for a pull request (Markdown), CI's test view (JUnit XML) and the terminal. No torch."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from bench.figures.summary import OVERALL
from bench.figures.verdicts import BETTER, SAME, UNKNOWN, WORSE
from bench.report.formats import UNDEFINED, task_name
from bench.report.markdown import table_text
from bench.report.model import table

MARKS = {WORSE: "🔴 worse", BETTER: "🟢 better", SAME: "⚪ same", UNKNOWN: "🟡 cannot tell"}


def markdown(compared: dict[str, Any]) -> str:
    """The whole comparison: the verdict, a row a method, then what moved, then every task."""
    base, new = compared["base"], compared["new"]
    parts = [f"## {_headline(compared)}", f"{_side(base)} → {_side(new)}, {compared['questions']} questions"]
    parts += [f"> {warning}" for warning in compared["warnings"]]
    parts.append(_overview(compared))
    if found := findings(compared):
        parts.append("### What changed\n\n" + "\n".join(f"- {text}" for text in found))
    details = "\n\n".join(f"**{label}**\n\n{_by_task(entry)}" for label, entry in compared["methods"].items())
    parts.append(f"<details><summary>Every task</summary>\n\n{details}\n\n</details>")
    parts.append(_rules(compared))
    return "\n\n".join(parts) + "\n"


def terminal(compared: dict[str, Any]) -> str:
    """The same in short."""
    lines = [_headline(compared)]
    for label, entry in compared["methods"].items():
        lines.append(f"  {label}: {entry['verdict']}")
        for name, metric in entry["tasks"][OVERALL]["metrics"].items():
            base, new = _values(metric)
            lines.append(f"    {name:32} {base:>9} -> {new:>9}  {_change(metric)}")
    return "\n".join([*lines, *(f"- {text}" for text in findings(compared)), *compared["warnings"]])


def findings(compared: dict[str, Any]) -> list[str]:
    """What got worse (first) or better: a sentence each, with method, task and metric, and whether it counts.

    A single task counts where all of them together say the same.
    """
    found = []
    for label, entry in compared["methods"].items():
        for task, cell in entry["tasks"].items():
            for name, metric in cell["metrics"].items():
                if metric["verdict"] in (WORSE, BETTER) and (metric["counts"] or task == OVERALL):
                    together = entry["tasks"][OVERALL]["metrics"].get(name, metric)["verdict"]
                    counts = metric["counts"] and together == metric["verdict"]
                    text = f"{label}, {task_name(task)}: {name} {' → '.join(_values(metric))}"
                    order = (metric["verdict"] != WORSE, task != OVERALL, not counts)
                    mark = f"**{metric['verdict']}**" if counts else f"({metric['verdict']}, only informs)"
                    found.append((order, f"{mark} {text} {_change(metric)}".rstrip()))
    return [text for _, text in sorted(found, key=lambda item: item[0])]


def junit(compared: dict[str, Any]) -> str:
    """A test case a method: failed where it got worse, skipped where nobody can tell."""
    cases = compared["methods"]
    failed = sum(entry["verdict"] == WORSE for entry in cases.values())
    skipped = sum(entry["verdict"] == UNKNOWN for entry in cases.values())
    counts = {"tests": str(len(cases)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}
    suite = ElementTree.Element("testsuite", {"name": "roobench", **counts})
    for label, entry in cases.items():
        case = ElementTree.SubElement(suite, "testcase", classname="roobench.gate", name=label)
        told = [text.replace("**", "") for text in findings({**compared, "methods": {label: entry}})]
        if entry["verdict"] == WORSE:
            failure = ElementTree.SubElement(case, "failure", message=told[0] if told else "worse")
            failure.text = "\n".join(told)
        elif entry["verdict"] == UNKNOWN:
            ElementTree.SubElement(case, "skipped", message="cannot tell: more questions or a quieter machine")
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _headline(compared: dict[str, Any]) -> str:
    verdict = compared["verdict"]
    which = [label for label, entry in compared["methods"].items() if entry["verdict"] == verdict]
    if verdict == SAME:
        return "Nothing got slower"
    said = {WORSE: "Worse", BETTER: "Better", UNKNOWN: "Cannot tell"}[verdict]
    return f"{said}: {', '.join(which)}"


def _side(identity: dict[str, Any]) -> str:
    name = (identity["commit"] or "")[:10] or identity["run_id"]
    return f"`{name}`" + (" with uncommitted changes" if identity["dirty"] else "")


def _overview(compared: dict[str, Any]) -> str:
    rows = []
    for label, entry in compared["methods"].items():
        metrics = entry["tasks"][OVERALL]["metrics"]
        for name, metric in metrics.items():
            mark = MARKS[metric["verdict"]] if metric["counts"] else metric["verdict"]
            rows.append([label, name, *_values(metric), _change(metric), mark])
            label = ""
    return table_text(table(["method", "overall", "base", "new", "change", ""], rows, (0, 1, 5)))


def _by_task(entry: dict[str, Any]) -> str:
    rows = [
        [task_name(task), name, *_values(metric), _change(metric), metric["verdict"]]
        for task, cell in entry["tasks"].items()
        for name, metric in cell["metrics"].items()
        if metric["counts"]
    ]
    return table_text(table(["task", "what", "base", "new", "change", ""], rows, (0, 1, 5)))


def _rules(compared: dict[str, Any]) -> str:
    rules, gate = compared["rules"], compared.get("gate")
    sentences = [
        f"A time or speedup is worse where its interval and a change of more than {rules['effect']:.0%} (of a prefill: "
        f"{rules['prefill_effect']:.0%}) both say so.",
        f"Tolerance of counters: {rules['tolerance']:.1%}." if rules["tolerance"] else "Counters must be equal.",
        "The verdict on a method is the one over all tasks.",
    ]
    if gate:
        sentences.append(
            "Overall times are decided by a sequential test on trimmed means, which allows for its many looks: as far "
            f"as pairs are independent, unchanged code is called worse in at most {gate['alarm']:.0%} of gates. The "
            "intervals shown are plain 95% ones; tasks only inform."
        )
    return " ".join(sentences)


def _values(metric: dict[str, Any]) -> tuple[str, str]:
    """Base and new, with so many digits that a difference is seen: of counters the least one counts."""
    shown = [(_value(metric["base"], digits), _value(metric["new"], digits)) for digits in (3, 4, 5, 6)]
    return next(((base, new) for base, new in shown if base != new), shown[0])


def _value(value: float | None, digits: int) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:d}" if isinstance(value, int) else f"{value:.{digits}f}"


def _change(metric: dict[str, Any]) -> str:
    """Like `+5.2% [+4.0%, +6.3%]`; without an interval where it has none."""
    value, low, high = (metric["change"][key] for key in ("value", "low", "high"))
    if value is None:
        return ""
    text = _percent(value - 1)
    return text if low is None or high is None or low == high else f"{text} [{low - 1:+.1%}, {high - 1:+.1%}]"


def _percent(change: float) -> str:
    """Like `+5.2%`; with so many digits that it is not zero."""
    texts = [f"{change:+.{digits}%}" for digits in (1, 2, 3)]
    return next((text for text in texts if float(text[:-1])), texts[0])
