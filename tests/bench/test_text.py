"""Text for terminals."""

from __future__ import annotations

import os
import sys

import pytest

from bench import text
from bench.cli import main
from bench.commands import say


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\x1b[2Jb\x07\n\tc", "a⟨U+001B⟩[2Jb⟨U+0007⟩\n\tc"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("over\rwritten", "over⟨U+000D⟩written"),
        ("caf\udce9", "caf⟨U+DCE9⟩"),
        ("Zürich, 5 € 😀 你好", "Zürich, 5 € 😀 你好"),
    ],
)
def test_control_characters_are_spelled_out_and_text_stays(given, shown):
    assert text.visible(given) == shown
    text.visible(given).encode("utf-8")


@pytest.mark.parametrize(("width", "columns"), [(40, 40), (80, 80), (200, 110)])
def test_text_is_as_wide_as_the_terminal_up_to_a_limit(monkeypatch, width, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(text.shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    assert text.columns() == columns
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert text.columns() == 110


def test_neither_errors_nor_progress_command_the_terminal(capsys):
    assert main(["--model", "\x1b[2J"]) == 2
    say("WARNING: \x1b[31m")
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "⟨U+001B⟩[2J" in told or "x1b[2J" in told
    assert told.endswith("WARNING: ⟨U+001B⟩[31m\n")
