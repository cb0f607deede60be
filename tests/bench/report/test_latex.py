"""The headline table in LaTeX: whole, balanced, and nothing of a name read as a command."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess

import pytest

from bench.figures.summary import Estimate
from bench.report.latex import escape, report_tex
from tests.bench.report.full_summary import SIX, rich_summary

HOSTILE = r"medusa:weights=C:\dir_1/50%&#{x}$y^2~,note=ünïcode…模"


def table_rows(tex: str) -> list[list[str]]:
    """The cells between the rules, nested tables as they stand."""
    body = tex.split("\\midrule\n")[1].split("\\bottomrule")[0]
    return [re.split(r"(?<!\\)&", line.rstrip("\n").removesuffix(r" \\")) for line in body.strip().splitlines()]


@pytest.mark.parametrize("names", [SIX, (HOSTILE,), ("kangaroo",)])
def test_the_document_is_balanced_and_its_rows_are_complete(names):
    tex = report_tex(rich_summary(names))
    bare = re.sub(r"%.*", "", re.sub(r"\\[\\{}%&#$_]", "", tex))
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    opened = re.findall(r"\\begin\{(\w+)\}", bare)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", bare))
    columns = re.search(r"\\begin\{tabular\}\{@\{\}p\{[\d.]+cm\}(c+)@\{\}\}", tex)
    assert columns
    rows = table_rows(tex)
    assert len(rows) == len(names) + 1, "the peer too"
    assert {len(row) for row in rows} == {1 + len(columns[1])}
    assert not re.search(r"[^\x00-ÿ]", tex), "a letter that pdfLaTeX may not know"


def test_values_stand_with_their_intervals_and_overall_beside_cr():
    summary = rich_summary(("kangaroo",), ("qa", "rag"))
    tex = report_tex(summary)
    cells = summary.methods["kangaroo"].tasks
    first = [cell.strip() for cell in table_rows(tex)[0]]
    assert first[0] == r"\raggedright kangaroo"
    for text, task in zip(first[1:4], ("qa", "rag", "overall"), strict=True):
        shown = (f"{value:.2f}" for value in dataclasses.astuple(cells[task].speedup_decode))
        assert text == r"\valueci" + "".join(f"{{{value}}}" for value in shown)
    assert first[4] == f"{cells['overall'].compression_rate:.2f}"
    assert [cell.strip() for cell in table_rows(tex)[1]][-1] == "--", "a peer has no steps"
    assert r"95\% bootstrap interval" in tex


def test_a_value_without_an_interval_stands_alone():
    summary = rich_summary(("kangaroo",), ("qa",))
    summary.statistics = None
    cell = summary.methods["kangaroo"].tasks["qa"]
    cell.speedup_decode = Estimate(1.25)
    tex = report_tex(summary)
    assert table_rows(tex)[0][1].strip() == r"$1.25\times$"
    assert "no intervals" in tex


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("50% & more_", r"50\% \& more\_"),
        ("a\\b{c}", r"a\textbackslash{}b\{c\}"),
        ("x^2 ~ $3 #1", r"x\textasciicircum{}2 \textasciitilde{} \$3 \#1"),
        ("a…b 模 é", r"a\ldots{}b U+6A21 é"),
        ("two\nlines", "two lines"),
        ("\x1b[31mred", "U+001B[31mred"),
    ],
)
def test_special_letters_are_escaped(text, wanted):
    assert escape(text) == wanted


def test_the_reader_is_told_what_is_not_lossless_and_what_was_interrupted():
    summary = dataclasses.replace(rich_summary(("medusa:accept=typical",)), complete=False)
    tex = report_tex(summary)
    assert "typical (not lossless)" in tex
    assert "interrupted run" in tex
    assert "no method but vanilla was run" in report_tex(rich_summary((), peer=False))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pdflatex_sets_it(tmp_path):
    (tmp_path / "report.tex").write_text(report_tex(rich_summary((HOSTILE, *SIX))), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
