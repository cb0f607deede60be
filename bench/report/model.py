"""What a page consists of before it is written: sections of Markdown paragraphs, tables, images, cards, answers.

A section is built once. `markdown`, `html`, `latex` and `plain` write it, each as far as its medium allows. They also
make it harmless: text in a section may come from records, and is escaped where it is written.
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
    """A table cell in bold."""

    __slots__ = ()


class Code(str):
    """A table cell as a program spells it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and what it shows of a row's subject (a task's cell, a method's entry)."""

    title: str
    show: Callable[[Any], str] = str
    left: bool = False
    short: str = ""  # the heading in a terminal; default: the title
    group: str = ""  # a terminal's upper heading; neighbours of one group share it


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first cell names the row."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False  # only for pages that can fold it away

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
    """The result in short: a method's speedup in a sentence, with what it cost."""

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
    has_token_texts: bool  # the text of tokens is known


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its content. A text is Markdown; a section without content is left out."""

    title: str
    parts: Sequence[Part] = ()
    nav: str = ""  # its name in a page's table of contents, if it is listed there
    folded: bool = False  # HTML folds it away; so does Markdown within another section; a terminal leaves that out


Part = str | Table | Image | Cards | Answers | Section


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int | Sequence[int] = 1,
    caption: str = "",
    *,
    folded: bool = False,
) -> Table:
    """A table of ready text. `left`: the left-aligned columns, or how many they are; the others are right-aligned."""
    sides = range(left) if isinstance(left, int) else left
    return Table([Column(title, left=place in sides) for place, title in enumerate(header)], rows, caption, folded)


def listed(sentences: Sequence[str]) -> list[str]:
    """The sentences as one list, a line each; no part at all where there are none."""
    return ["\n".join(f"- {' '.join(text.split())}" for text in sentences)] if sentences else []
