"""What a page is made of before anything writes it: sections of Markdown paragraphs, tables, images, cards, answers.

A section is built once. `markdown`, `html`, `latex` and `terminal` write it, each as far as its medium goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bench.figures.summary import Estimate
from bench.report.formats import times_between


class Strong(str):
    """A table's cell in bold."""

    __slots__ = ()


class Code(str):
    """A table's cell as a program spells it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and what it shows of whatever a row is about (a task's cell, a method's entry)."""

    title: str
    show: Callable[[Any], str] = str
    left: bool = False
    short: str = ""  # the heading in a terminal; default: the title
    group: str = ""  # a terminal's upper heading; neighbours of one group share it


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; their first cell says what they are about."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False  # for pages that can fold it away

    @property
    def header(self) -> list[str]:
        """The columns' headings."""
        return [column.title for column in self.columns]


@dataclass(frozen=True, slots=True)
class Image:
    """A plot in a file."""

    title: str
    path: Path
    link: str  # from the page's folder
    caption: str = ""  # what a reader should see in it


@dataclass(frozen=True, slots=True)
class Card:
    """The answer in short: a method's speedup in a sentence, with what it cost."""

    name: str
    kind: str  # "method" | "peer"
    speedup: Estimate
    sentence: str
    facts: list[tuple[str, str]]  # what, figure

    @property
    def value(self) -> str:
        """The speedup as a page shows it."""
        return times_between(self.speedup)


@dataclass(frozen=True, slots=True)
class Cards:
    """All cards of a run, side by side."""

    cards: list[Card]


@dataclass(frozen=True, slots=True)
class Panel:
    """One method's answer to one turn."""

    method: str
    verdict: str
    stats: list[tuple[str, str]]  # what, figure
    body: Markup
    hidden: int  # tokens beyond those shown


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn of one question, as every method answered it."""

    title: str
    panels: list[Panel]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers token by token: for pages that react to a pointer."""

    answers: list[Answer]
    has_pieces: bool  # the text of tokens is known


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it. A text is Markdown; a page leaves out a section without content."""

    title: str
    parts: Sequence[Part] = ()
    nav: str = ""  # its name in a page's table of contents, if it stands there
    folded: bool = False


Part = str | Table | Image | Cards | Answers | Section


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int | Sequence[int] = 1, caption: str = ""
) -> Table:
    """A table of ready text; the columns `left` (a number: so many) are left-aligned, the others right-aligned."""
    sides = range(left) if isinstance(left, int) else left
    return Table([Column(title, left=place in sides) for place, title in enumerate(header)], rows, caption)
