"""Tables on terminals: never wider, split between columns where they have to be, bold where that is possible."""

from __future__ import annotations

import os
import re
import sys

import pytest

from bench import text
from bench.report import terminal, terminal_table
from bench.report.model import Strong, table
from bench.report.terminal import fitted, lines_of, print_table
from tests.bench.report.full_summary import rich_summary
from tests.bench.report.helpers import LONG, make_summary

TITLES = ["method", *(f"figure {number}" for number in range(8))]
ROWS = [
    ["kangaroo", *(f"{number}.25" for number in range(8))],
    [Strong("a much longer name:of=a,method=x"), *"abcdefgh"],
]
TABLE = table(TITLES, ROWS)


@pytest.fixture
def wide(monkeypatch):
    """Make standard output a terminal of so many columns."""

    def set_width(columns: int, term: str = "xterm-256color") -> None:
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(text.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))

    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return set_width


@pytest.mark.parametrize("limit", [40, 60, 90])
def test_a_table_that_is_too_wide_is_split_between_columns(limit):
    parts = fitted(TABLE, limit)
    assert len(parts) > 1
    assert all(len(line) <= limit for part in parts for line in lines_of(part))
    assert [column.title for part in parts for column in part.columns[1:]] == TITLES[1:]
    assert [cell for part in parts for cell in part.rows[0][1:]] == ROWS[0][1:]
    for part in parts:
        assert part.rows[0][0] == "kangaroo"
        assert part.rows[1][0].startswith("a mu")
        assert part.rows[1][0].endswith("d=x")
        assert isinstance(part.rows[1][0], Strong)


def test_a_table_that_fits_is_left_as_it_is():
    assert fitted(TABLE, 200) == [TABLE]
    assert fitted(table(["only"], [["x" * 50]]), 20)[0].rows == [["x" * 50]]


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("names", [("kangaroo",), (LONG, "medusa:accept=typical")])
def test_all_tables_of_a_run_fit_a_narrow_terminal(wide, columns, names):
    wide(columns)
    lines = terminal_table(rich_summary(names)).splitlines()

    assert max(map(len, lines)) <= columns
    said = " ".join(" ".join(lines).split())
    for word in ("Question", "vanilla", "CR", "draft", "verify"):
        assert word in said


def test_tables_in_a_file_are_plain_and_whole(capsys):
    print_table(TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines_of(TABLE)]
    assert lines[0].split("  ")[0] == "method"


def test_tables_on_a_terminal_have_bold_headings_and_rows(wide, capsys):
    wide(200)
    print_table(TABLE)
    said = capsys.readouterr().out
    assert re.search(r"\x1b\[1m *method", said)
    assert re.search(r"\x1b\[1m *a much longer name", said)
    assert not re.search(r"\x1b\[1m *kangaroo", said)
    assert "|" not in said
    rows = [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", said).splitlines()]
    assert ROWS[0] in rows


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_tables_on_a_narrow_terminal_lose_nothing(wide, capsys, columns, term):
    wide(columns, term)
    print_table(TABLE)
    said = capsys.readouterr().out
    assert ("\x1b" in said) == (term != "dumb")
    said = re.sub(r"\x1b\[[\d;]*m", "", said)
    assert max(map(len, said.splitlines())) <= columns
    assert set(ROWS[0]) <= set(said.split())


def test_no_cell_commands_the_terminal(wide, capsys):
    hostile = table(["m\x1b[2J", "[bold]x"], [["\x1b[31mred", "[/]"]])
    for columns in (None, 80):
        if columns:
            wide(columns)
        print_table(hostile)
        said = capsys.readouterr().out
        assert "⟨U+001B⟩[2J" in said
        assert "[bold]x" in said
        assert "[/]" in said
        assert "\x1b[2J" not in said
        assert "\x1b[31m" not in said
    summary = make_summary({"kangaroo": "method"})
    summary.model = "a\x1b[2Jb"
    assert terminal.terminal_table(summary).startswith("a⟨U+001B⟩[2Jb ")
