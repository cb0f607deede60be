"""`report.tex`: the headline table for a paper, with booktabs; a whole document, so that it can be looked at alone."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from bench.figures.metrics import OVERALL, Cell, ordered_tasks
from bench.report.formats import (
    bounds,
    number,
    of_kind,
    overall,
    sampling_text,
    shortened,
    shown_is,
    shown_name,
    task_name,
)

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "…": r"\ldots{}",
    "·": r"\textperiodcentered{}",
    "±": r"\textpm{}",
}
_NAME_CHARS = 48
_UNDEFINED = "--"


def report_tex(summary: dict[str, Any]) -> str:
    """Methods (and peers) by tasks: decode speedup, overall too, then CR; intervals as small text under the values.

    The part between the marked lines is the table alone, for a paper that loads `booktabs`.
    """
    entries = {**of_kind(summary, "method"), **of_kind(summary, "peer")}
    tasks = ordered_tasks(task for entry in entries.values() for task in entry["tasks"] if task != OVERALL)
    shown = [*tasks, OVERALL] if len(tasks) != 1 else tasks
    header = ["Method", *(_heading(task_name(task)) for task in shown), "CR"]
    rows = [_row(shown_name(name, entry), entry, shown) for name, entry in entries.items()]
    rows = rows or [r"\multicolumn{" + str(len(header)) + r"}{l}{no method was run beside vanilla}"]
    table = [
        "% --- the table; needs \\usepackage{booktabs} ---",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        # A bracket right behind a line's end would be read as its optional argument: the inner group keeps it apart.
        r"\providecommand{\valueci}[3]{\begin{tabular}[t]{@{}c@{}}$#1\times$\\{\scriptsize [#2, #3]}\end{tabular}}",
        r"\caption{" + _caption(summary) + "}",
        r"\begin{tabular}{@{}p{2.9cm}" + "c" * (len(header) - 1) + "@{}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(f"{row} \\\\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "% --- end of the table ---",
    ]
    return "\n".join([*_before(summary), *table, r"\end{document}", ""])


def escape(text: str) -> str:
    """Text that LaTeX sets as it stands; letters that pdfLaTeX may lack are named by their code points."""
    found = []
    for letter in unicodedata.normalize("NFC", " ".join(text.split())):
        if letter in _SPECIAL:
            found.append(_SPECIAL[letter])
        elif letter.isascii() or "À" <= letter <= "ÿ":
            found.append(letter)
        else:
            found.append(f"U+{ord(letter):04X}")
    return "".join(found)


def _before(summary: dict[str, Any]) -> list[str]:
    return [
        f"% Run {re.sub(r'[^ -~]', '?', str(summary['run_id']))}",
        r"\documentclass[a4paper]{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{textcomp}",
        r"\usepackage[margin=1.5cm]{geometry}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        r"\thispagestyle{empty}",
    ]


def _row(name: str, entry: dict[str, Any], tasks: list[str]) -> str:
    # A long name may be broken where its knobs begin.
    label = re.sub(r"([:,=/])", r"\1\\allowbreak{}", escape(shortened(name, _NAME_CHARS)))
    cells = [_value(entry["tasks"].get(task)) for task in tasks]
    rate = overall(entry)["compression_rate"]
    return " & ".join([rf"\raggedright {label}", *cells, _UNDEFINED if rate is None else number(rate)])


def _value(cell: Cell | None) -> str:
    estimate = cell["speedup_decode"] if cell else None
    if estimate is None or estimate["value"] is None:
        return _UNDEFINED
    interval = bounds(estimate)
    value = f"{estimate['value']:.2f}"
    if interval is None:
        return rf"${value}\times$"
    return rf"\valueci{{{value}}}{{{interval[0]:.2f}}}{{{interval[1]:.2f}}}"


def _heading(name: str) -> str:
    """On two lines where it has two words."""
    first, _, rest = name.partition(" ")
    if not rest:
        return escape(first)
    return r"\begin{tabular}[t]{@{}c@{}}" + rf"{escape(first)}\\{escape(rest)}" + r"\end{tabular}"


def _caption(summary: dict[str, Any]) -> str:
    """What was measured on what, and which average the figures are."""
    device, dataset = summary["device"], summary["dataset"]
    setting = [
        str(summary["model"]),
        str(summary["dtype"]),
        str(device.get("name") or device.get("type")),
        f"{dataset['name']} questions ({dataset['questions']})",
    ]
    if summary["sampling"]:
        setting.append(sampling_text(summary["sampling"]))
    if not summary["complete"]:
        setting.append("interrupted run")
    text = f"Decode speedup over vanilla decoding and compression rate (CR, overall): {', '.join(setting)}."
    return escape(f"{text} {shown_is(summary)}")
