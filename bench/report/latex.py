"""`report.tex`: the headline table for a paper, with booktabs; a whole document, so that it compiles alone."""

from __future__ import annotations

import re
import unicodedata

from bench.figures.summary import Summary
from bench.report.formats import UNDEFINED, number, setting_text, shortened, shown_is, times_between
from bench.report.tables import by_method, in_order

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "{}$&#%_"},
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
_DOCUMENT = r"""% Run {run}
\documentclass[a4paper]{{article}}
\usepackage[T1]{{fontenc}}
\usepackage{{textcomp}}
\usepackage[margin=1.5cm]{{geometry}}
\usepackage{{booktabs}}
\begin{{document}}
\thispagestyle{{empty}}
% --- the table; needs \usepackage{{booktabs}} ---
\begin{{table}}
\centering\footnotesize\setlength{{\tabcolsep}}{{3pt}}
% A bracket right behind a line's end would be read as its optional argument: the inner group keeps it apart.
\providecommand{{\valueci}}[3]{{\begin{{tabular}}[t]{{@{{}}c@{{}}}}$#1\times$\\{{\scriptsize [#2, #3]}}\end{{tabular}}}}
\caption{{{caption}}}
\begin{{tabular}}{{@{{}}p{{2.9cm}}{columns}@{{}}}}
\toprule
{header} \\
\midrule
{rows}
\bottomrule
\end{{tabular}}
\end{{table}}
% --- end of the table ---
\end{{document}}
"""


def report_tex(summary: Summary) -> str:
    """Methods (and peers) by tasks: decode speedup, overall too, then CR; intervals as small text under the values.

    The part between the marked lines is the table alone, for a paper that loads `booktabs`.
    """
    entries = in_order(summary, "method", "peer")
    table = by_method("decode speedup", entries, lambda cell: times_between(cell.speedup_decode))
    tasks = table.header[1:] if len(table.header) != 3 else table.header[1:2]  # overall of one task is that task
    header = ["Method", *map(_heading, tasks), "CR"]
    rows = [
        " & ".join([_label(name), *map(_value, values[: len(tasks)]), _rate(entry.overall.compression_rate)])
        for (name, *values), entry in zip(table.rows, entries.values(), strict=True)
    ] or [r"\multicolumn{" + str(len(header)) + r"}{l}{no method but vanilla was run}"]
    what = (
        f"Decode speedup over vanilla decoding and compression rate (CR, overall): {', '.join(setting_text(summary))}."
    )
    return _DOCUMENT.format(
        run=re.sub(r"[^ -~]", "?", summary.run_id),
        caption=escape(f"{what} {shown_is(summary)}"),
        columns="c" * (len(header) - 1),
        header=" & ".join(header),
        rows="\n".join(f"{row} \\\\" for row in rows),
    )


def escape(text: str) -> str:
    """Text that LaTeX sets literally; letters that pdfLaTeX may lack are named by their code points."""
    found = []
    for letter in unicodedata.normalize("NFC", " ".join(text.split())):
        if letter in _SPECIAL:
            found.append(_SPECIAL[letter])
        elif " " <= letter <= "~" or "À" <= letter <= "ÿ":
            found.append(letter)
        else:
            found.append(f"U+{ord(letter):04X}")
    return "".join(found)


def _label(name: str) -> str:
    """A long name may be broken where its knobs begin."""
    return r"\raggedright " + re.sub(r"([:,=/])", r"\1\\allowbreak{}", escape(shortened(name, _NAME_CHARS)))


def _value(text: str) -> str:
    """A cell like `1.19x [1.15, 1.23]`, with or without an interval."""
    if text == UNDEFINED:
        return _UNDEFINED
    value, *bounds = re.findall(r"[\d.]+", text)
    return rf"\valueci{{{value}}}{{{bounds[0]}}}{{{bounds[1]}}}" if bounds else rf"${value}\times$"


def _rate(value: float | None) -> str:
    return _UNDEFINED if value is None else number(value)


def _heading(name: str) -> str:
    """On two lines where it has two words."""
    first, _, rest = name.partition(" ")
    if not rest:
        return escape(first)
    return r"\begin{tabular}[t]{@{}c@{}}" + rf"{escape(first)}\\{escape(rest)}" + r"\end{tabular}"
