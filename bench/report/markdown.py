"""Sections as Markdown, in GitHub's dialect. Text from records can neither act in it nor load anything."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from bench.report.formats import visible
from bench.report.model import Cards, Code, Image, Section, Strong, Table

_TAG = re.compile(r"<(?=[a-z/!?])(?!https://)", re.IGNORECASE)  # what could begin raw HTML; an https address is a link


def page(sections: Sequence[Section]) -> str:
    """A page; the first section's heading is its title."""
    title, *others = sections
    texts = [f"# {_line(title.title)}", *_parts(title, 1), *(text for one in others for text in _section(one, 2))]
    return visible("\n\n".join(texts)) + "\n"


def text_of(section: Section) -> str:
    """A section without its heading."""
    return visible("\n\n".join(_parts(section, 2)))


def table_text(table: Table) -> str:
    """A table; numbers are right-aligned."""
    rule = [":---" if column.left else "---:" for column in table.columns]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (table.header, rule, *table.rows))


def harmless(text: str) -> str:
    """Markdown without raw HTML and without images: neither is written by us but by `page` itself."""
    return _TAG.sub("&lt;", text).replace("![", "!\\[")


def _section(section: Section, level: int) -> list[str]:
    parts = _parts(section, level)
    return [f"{'#' * level} {_line(section.title)}", *parts] if parts else []


def _parts(section: Section, level: int) -> list[str]:
    found = []
    for part in section.parts:
        match part:
            case str():
                found.append(harmless(part))
            case Table(folded=False):
                found.append(table_text(part))
            case Image():
                found.append(f"![{_line(part.title)}]({part.link})")
            case Cards():
                found.append("\n".join(f"- {_line(card.sentence)}" for card in part.cards))
            case Section(folded=True):
                title = html.escape(" ".join(part.title.split())).replace("[", "&#91;")
                summary = f"<details><summary>{title}</summary>"
                found += [summary, *_parts(part, level + 1), "</details>"]
            case Section():
                found += _section(part, level + 1)
    return found


def _line(text: str) -> str:
    return harmless(" ".join(text.split()))


def _cell(text: str) -> str:
    flat = " ".join(text.replace("|", "\\|").split())
    if isinstance(text, Code):
        return f"`{flat.replace('`', chr(39))}`"  # within code nothing acts
    return f"**{harmless(flat)}**" if isinstance(text, Strong) else harmless(flat)
