"""Sections as plain text for a terminal. Images, and what other pages fold away, are left out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from bench.report.model import Cards, Section, Table
from bench.report.terminal import text_of
from bench.text import columns, visible

_MARKS = re.compile(r"\*\*|`")
_LINKS = re.compile(r"\[([^\]]+)\]\([^)]*\)")


def page(sections: Sequence[Section]) -> str:
    """All sections; the first one's heading is the first line."""
    title, *others = sections
    blocks = [paragraphs(title.title), *_parts(title), *(block for one in others for block in _parts(one, one.title))]
    return visible("\n\n".join(blocks))


def _parts(section: Section, heading: str = "") -> Iterator[str]:
    """A block of lines for each part, under the heading if there is any part."""
    found = []
    for part in section.parts:
        match part:
            case str():
                found.append(paragraphs(part))
            case Table(folded=False):
                found.append("\n".join(filter(None, [part.caption, text_of(part)])))
            case Cards():
                found += [paragraphs(card.sentence) for card in part.cards]
            case Section(folded=False):
                found += _parts(part, part.title)
    if found and heading:
        found[0] = f"{paragraphs(heading)}\n{found[0]}"
    yield from found


def paragraphs(markdown: str) -> str:
    """Paragraphs and lists without their marks, at most as wide as a terminal; code blocks as they are."""
    lines = []
    for line in _LINKS.sub(r"\1", _MARKS.sub("", markdown)).splitlines():
        indent = "  " if line.startswith("- ") else ""
        wrapped = textwrap.wrap(line, columns(), subsequent_indent=indent, break_long_words=False)
        lines += [line] if line.startswith("    ") else wrapped
    return "\n".join(lines)
