"""scripts/methods_table.py: the tables in docs/methods.md are those of the methods and of the committed run."""

from __future__ import annotations

import json
import re
import sys

import pytest

import methods
from bench.errors import UserError
from tests.test_scripts import ROOT, script

tables = script("methods_table")
PAGE = ROOT / tables.PAGE


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_committed_tables_are_what_the_script_writes():
    page = PAGE.read_text(encoding="utf-8")
    assert tables.page_with_tables(page, tables.RUN) == page, "run scripts/methods_table.py"


def test_every_method_has_its_needs_and_its_paper():
    made = rows(tables.page_with_tables(PAGE.read_text(encoding="utf-8"), tables.RUN))
    shown = {re.sub(r"\[([\w-]+)\].*", r"\1", row[0]): row for row in made if len(row) == 6}
    assert set(shown) == {"method", ":---", *(name for name in methods.built_in() if not methods.is_peer(name))}
    assert shown["medusa"][2:4] == ["heads", "training"]
    assert shown["medusa"][5] == "Cai et al., [2401.10774](https://arxiv.org/abs/2401.10774)"
    assert shown["rest"][3] == "a corpus"
    assert shown["sam"][3] == "optionally a corpus"
    assert shown["suffix"][3] == "optionally memory of the run"
    assert shown["pld"][0] == "[pld](methods/pld.md)"
    assert shown["pld"][2:] == [
        "text",
        "nothing",
        "-",
        "Saxena, 2023, [apoorvumang/prompt-lookup-decoding](https://github.com/apoorvumang/prompt-lookup-decoding)",
    ]
    assert shown["suffix"][0] == "[suffix](methods/text.md#suffix)"
    assert [name for name, row in shown.items() if row[5] == "-"] == ["ngram", "vanilla"]


def test_figures_are_the_runs(tmp_path, monkeypatch):
    run = json.loads((ROOT / tables.RUN / "summary.json").read_text())
    cell = run["methods"]["kangaroo"]["tasks"]["qa"]
    cell["speedup_decode"]["value"], cell["compression_rate"] = 9.87, 6.54
    run["methods"]["kangaroo"]["extra_parameters"] = 123_456
    folder = tmp_path / "results" / "other"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(run))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    made = tables.page_with_tables(f"a\n{tables.BEGIN}\nold\n{tables.END}\nb\n", folder)
    assert made.startswith(f"a\n{tables.BEGIN}\n")
    assert made.endswith(f"\n{tables.END}\nb\n")
    assert "(../results/other/report.md)" in made
    header, *measured = [row for row in rows(made) if len(row) == 8]
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in measured}
    assert by_name["kangaroo"]["Question answering"] == "9.87x, CR 6.54"
    assert re.fullmatch(
        r"0\.\d\dx", next(row for name, row in by_name.items() if name.startswith("hf-generate"))["Question answering"]
    )
    assert (
        next(row for row in rows(made) if row[0].endswith("kangaroo`") or row[0].startswith("[kangaroo"))[4]
        == "123,456"
    )


def test_a_page_without_a_place_and_a_run_elsewhere_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="has no lines"):
        tables.page_with_tables("# Methods\n", tables.RUN)
    before = PAGE.read_bytes()
    for folder, said in (tmp_path, "is outside the repository"), (ROOT / "tests", "is no summary of a run"):
        monkeypatch.setattr(sys, "argv", ["methods_table.py", str(folder)])
        assert tables.main() == 2
        assert said in capsys.readouterr().err
    assert PAGE.read_bytes() == before
