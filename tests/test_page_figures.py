"""scripts/figures.py: the figures of README.md and docs/ are those of the committed records, and no other is typed."""

from __future__ import annotations

import json
import sys

import pytest

from bench.errors import UserError
from tests.test_scripts import ROOT, script

figures = script("figures")

INDEX = """
[records]
run = "results/run"
engine = "results/engine.json"

[pages]
"README.md" = [
    "`pld` decodes {run pld speedup}x [{run pld low}, {run pld high}] on {run run dataset questions} questions",
    "on {run run provenance started date}, at {engine share .0%}",
    "median {engine rates median .1f} tokens/s, a ratio of {engine rates 0 / engine rates 2}",
]

[[cited]]
source = "a setting"
phrases = ["threshold 0.6"]
"""
PAGE = """# A page

`pld` decodes 1.00x
[1.00,
1.00] on 7 questions, with threshold 0.6. It ran
on 1 January 2020, at 0%; median 1.0 tokens/s, a ratio of 1.00.

<!-- table: headline -->

old

<!-- /table -->
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository: one page, one run of two methods, one engine file."""
    run = tmp_path / "results" / "run"
    run.mkdir(parents=True)
    summary = json.loads((ROOT / "results/reference/all-methods-cpu/summary.json").read_text())
    kept = {name: summary["methods"][name] for name in ("vanilla", "pld")}
    kept["pld"]["tasks"]["overall"]["speedup_decode"] = {"value": 9.876, "low": 8.0, "high": 11.5}
    (run / "summary.json").write_text(json.dumps({**summary, "methods": kept}))
    started = {"started": "2026-12-03T10:00:00+00:00"}
    (run / "run.json").write_text(json.dumps({"provenance": started, "dataset": {"questions": 1234}}))
    (tmp_path / "results" / "engine.json").write_text(json.dumps({"share": 0.876, "rates": [30.0, 50.04, 60.0]}))
    (tmp_path / "docs").mkdir()
    index = tmp_path / "docs" / "figures.toml"
    index.write_text(INDEX.replace("[pages]", 'headline = "results/run"\n[pages]'))
    (tmp_path / "README.md").write_text(PAGE)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "INDEX", index)
    for cached in (figures.index, figures.record):
        cached.cache_clear()
    yield tmp_path
    for cached in (figures.index, figures.record):
        cached.cache_clear()


def run_script(monkeypatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["figures.py", *flags])
    return figures.main()


def test_every_figure_of_the_pages_equals_its_record_or_has_a_source():
    assert figures.problems() == []


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("README.md", "| `medusa` | 1", "| `medusa` | 2"),  # in a table
        ("README.md", "have run on 60 of", "have run on 61 of"),  # in a sentence
        ("docs/results.md", "`kangaroo:tree` went from 1.34x to 1", "`kangaroo:tree` went from 1.34x to 2"),
        ("docs/methods.md", "| medusa | 1", "| medusa | 2"),
        ("docs/sweeps.md", "gamma 8: 0", "gamma 8: 2"),
        ("docs/engine.md", "| float32 | float32 | 3", "| float32 | float32 | 4"),
    ],
)
def test_a_wrong_figure_is_written_over(name, right, wrong):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.count(right) == 1
    assert figures.written(ROOT / name, text.replace(right, wrong)) == text


def test_a_figure_that_nobody_answers_for_is_named_with_its_line():
    page = ROOT / "docs" / "gate.md"
    text = page.read_text(encoding="utf-8")
    assert figures.unanswered(page, text) == []
    typed = "1.77x, 1.78\u00d7 and 3x as fast, CR 4, 41 %, 3.5 ms, 6 times, [1.2, +1.3%, 12 tokens/s, `1.5x`, v2.13.0\n"
    first = text.count("\n") + 1
    found = [each.removeprefix(f"docs/gate.md:{first}: ") for each in figures.unanswered(page, text + typed)]
    assert found == ["1.77", "1.78", "3x", "4", "41 %", "3.5", "6 times", "1.2", "1.3", "12 tokens/s"]


def test_an_empty_table_is_filled(repository, monkeypatch):
    (repository / "README.md").write_text(PAGE.replace("old\n\n", ""))
    assert run_script(monkeypatch, "--check") == 1
    assert run_script(monkeypatch) == 0
    assert "| `pld` | 1.44x |" in (repository / "README.md").read_text()


def test_one_command_writes_the_figures_of_a_new_run(repository, monkeypatch, capsys):
    assert run_script(monkeypatch, "--check") == 1
    assert "README.md: its figures are not those of the records" in capsys.readouterr().out
    assert (repository / "README.md").read_text() == PAGE  # which only looked
    assert run_script(monkeypatch) == 0
    written = (repository / "README.md").read_text()
    assert "`pld` decodes 9.88x\n[8.00,\n11.50] on 1,234 questions, with threshold 0.6." in written
    assert "on 3 December 2026, at 88%; median 50.0 tokens/s, a ratio of 0.50." in written
    assert "| 98.4 |\n| `pld` | 1.44x |" in written
    assert "| 1.98x | **9.88x [8.00, 11.50]** |\n\n<!-- /table -->\n" in written
    assert run_script(monkeypatch, "--check") == 0
    (repository / "README.md").write_text(written.replace("9.88x\n", "9.89x\n"))
    assert run_script(monkeypatch, "--check") == 1


@pytest.mark.parametrize(
    ("page", "index", "said"),
    [
        (("`pld` decodes", "It decodes"), None, "nowhere, not once"),
        (("# A page", PAGE), None, "2 times, not once"),
        (("table: headline", "table: speeds"), None, "unknown table 'speeds'"),
        (("<!-- /table -->", ""), None, "has a table without an end"),
        (None, ("{run pld low}", "{other pld low}"), "unknown record 'other'"),
        (None, ("{run pld low}", "{run pld lowest}"), "no record has {run pld lowest} (KeyError"),
        (None, ("{run pld low}", "{run pld}"), "is no number"),
    ],
)
def test_phrases_and_records_that_are_missing_are_named(repository, monkeypatch, capsys, page, index, said):
    for name, change in ("README.md", page), ("docs/figures.toml", index):
        if change:
            path = repository / name
            path.write_text(path.read_text().replace(*change))
    before = (repository / "README.md").read_text()
    assert run_script(monkeypatch) == 2
    assert said in capsys.readouterr().err
    assert (repository / "README.md").read_text() == before


def test_a_source_that_no_page_needs_any_more_is_named(repository, monkeypatch, capsys):
    index = repository / "docs" / "figures.toml"
    index.write_text(index.read_text().replace('["threshold 0.6"]', '["threshold 0.6", "gamma 8.5"]'))
    assert run_script(monkeypatch) == 1
    assert "no page has 'gamma 8.5' any more" in capsys.readouterr().out


def test_the_least_and_the_largest_figure_of_all_methods():
    speedups = [method["speedup"] for method in figures.record("all")["methods"].values()]
    assert figures.figure("all methods * speedup min")[0] == f"{min(speedups):.2f}"
    assert figures.figure("all methods * speedup max")[0] == f"{max(speedups):.2f}"
    with pytest.raises(UserError, match="no record has"):
        figures.figure("all methods * speed min")
