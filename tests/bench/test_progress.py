"""Progress: a bar where lines can be overwritten, elsewhere few lines, and nothing for what is done quickly."""

from __future__ import annotations

import io
import sys

import pytest

from bench import progress as module
from bench.progress import LINE_EVERY_S, progress, weighed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def terminal_of(monkeypatch, term: str = "xterm") -> Terminal:
    """A terminal in the place of standard error."""
    monkeypatch.setenv("TERM", term)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_log_gets_a_line_now_and_then_with_what_is_left(clock, capsys):
    with progress(10, "warming up") as shown:
        for _ in range(10):
            clock[0] += LINE_EVERY_S / 2
            shown.add(1)
    # After 2 of 10 in 15 s, 60 s are left.
    assert capsys.readouterr().err.splitlines() == [
        "warming up 20%: 00:15 elapsed, 01:00 left",
        "warming up 40%: 00:30 elapsed, 00:45 left",
        "warming up 60%: 00:45 elapsed, 00:30 left",
        "warming up 80%: 01:00 elapsed, 00:15 left",
    ]


def test_what_is_done_quickly_is_not_worth_a_line(clock, capsys):
    with progress(2, "loading") as shown:
        for _ in range(2):
            clock[0] += 0.4 * LINE_EVERY_S
            shown.at("a")
            shown.add(1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_names_what_is_worked_on(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with progress(4, "warming up") as shown:
        shown.at("vanilla\x1b[2J")
        shown.add(4)
    said = terminal.getvalue()
    assert "warming up" in said
    assert "vanilla⟨U+001B⟩[2J" in said
    assert "\x1b[2J" not in said
    assert "\n" not in said, "the bar of a short piece of work goes away"


def test_a_bar_can_stay(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with progress(4, "decoding", keep=True) as shown:
        shown.add(4)
    assert terminal.getvalue().endswith("\n")
    assert "100%" in terminal.getvalue()


def test_a_dumb_terminal_gets_lines(clock, monkeypatch):
    terminal = terminal_of(monkeypatch, "dumb")
    with progress(2, "decoding") as shown:
        clock[0] += LINE_EVERY_S
        shown.add(1)
    assert terminal.getvalue() == "decoding 50%: 00:15 elapsed, 00:15 left\n"


def test_items_count_by_their_weight(clock, capsys):
    def weight(size: int) -> int:
        clock[0] += 20
        return size

    assert list(weighed([2, 6], 8, "reading weights", weight)) == [2, 6]
    assert capsys.readouterr().err == "reading weights 25%: 00:20 elapsed, 01:00 left\n"
