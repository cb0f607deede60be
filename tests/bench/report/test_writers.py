"""Sections as Markdown and as plain text: everything of theirs is there, and nothing from records can act."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from bench.figures.summary import Estimate
from bench.report import formats, markdown, plain
from bench.report.model import Card, Cards, Code, Image, Section, Strong, listed, table

ROWS = [["a|b", "1"], [Strong("all"), Strong("2")], ["knob", Code("x=`y`|<z>")]]
TABLE = table(["what", "value"], ROWS, 1, "Figures")
PAGE = [
    Section("A run", ["Some **text** with `code`.", TABLE, Image("A plot", Path("p.png"), "plots/p.png")]),
    Section("Notes", listed(["first\n\n# line", "second"])),
    Section("Empty", [Section("Empty too")]),
    Section("More", [Section("A task", ["folded away"], folded=True), Section("Open", ["to read"])]),
]
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/x.png)",
    "![x][y]\n\n[y]: https://evil.example/x.png",
    "\\<b onclick=x>",
    "<!-- hidden",
    "<?php x",
    "</details>",
    "\x1b[31mred\x1b[0m",
    "\u202etxet",
]


def test_sections_become_markdown():
    assert markdown.page(PAGE) == (
        "# A run\n\nSome **text** with `code`.\n\n"
        "| what | value |\n| :--- | ---: |\n| a\\|b | 1 |\n| **all** | **2** |\n| knob | `x='y'\\|<z>` |\n\n"
        "![A plot](plots/p.png)\n\n"
        "## Notes\n\n- first # line\n- second\n\n"
        "## More\n\n<details><summary>A task</summary>\n\nfolded away\n\n</details>\n\n### Open\n\nto read\n"
    )


def test_sections_become_plain_text_without_marks_and_what_is_folded():
    assert plain.page(PAGE) == (
        "A run\n\nSome text with code.\n\n"
        "Figures\nwhat      value\n---------------\n"
        "a|b           1\n---------------\nall           2\nknob  x=`y`|<z>\n\n"
        "Notes\n- first # line\n- second\n\n"
        "More\nOpen\nto read"
    )


def test_long_paragraphs_are_wrapped_for_a_terminal_and_commands_are_not():
    command = "    python run_bench.py " + "--flag " * 30
    text = plain.page([Section("t", ["- " + "word " * 60, command, "see [there](#there)"])])
    lines = text.splitlines()
    assert all(len(line) <= 110 for line in lines if not line.startswith("    "))
    assert lines[3].startswith("  word"), "what continues an entry of a list is indented"
    assert command in lines
    assert lines[-1] == "see there"


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_records_cannot_act_in_markdown(text):
    card = Card("m", "method", Estimate(), f"**{text}** decodes", [])
    page = markdown.page([Section(text, [text, table([text], [[text], [Strong(text)]], 1), Cards([card])])])
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    tokens = [inner for token in rendered for inner in [token, *(token.children or [])]]
    assert not [token for token in tokens if token.type in ("html_block", "html_inline", "image")], page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_a_link_to_a_source_and_a_comparison_stay_what_they_are():
    assert markdown.harmless("a < b, <https://example.org>, x<5") == "a < b, <https://example.org>, x<5"


def test_control_characters_are_spelled_out():
    assert formats.visible("a\x1b[2J\x9b\u202e\nb\tc") == "a⟨U+001B⟩[2J⟨U+009B⟩⟨U+202E⟩\nb\tc"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+2", "'+1+2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-x", "'-x"),
        ("\t=1", "'\t=1"),
        ("-0.5", "-0.5"),
        ("kangaroo:gamma=4", "kangaroo:gamma=4"),
        (-0.5, -0.5),
        (None, None),
        ("a\x1b[0m", "a⟨U+001B⟩[0m"),
    ],
)
def test_no_cell_of_a_csv_is_a_formula(value, cell):
    assert formats.csv_cell(value) == cell
