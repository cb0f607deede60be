"""Sections as Markdown, in GitHub's dialect."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.model import Cards, Code, Image, Section, Strong, Table


def page(sections: Sequence[Section]) -> str:
    """A page; the first section's heading is its title."""
    title, *others = sections
    return (
        "\n\n".join([f"# {title.title}", *_parts(title, 1), *(text for one in others for text in _section(one, 2))])
        + "\n"
    )


def text_of(section: Section) -> str:
    """What stands under a section's heading."""
    return "\n\n".join(_parts(section, 2))


def table_text(table: Table) -> str:
    """A table; numbers are right-aligned."""
    rule = [":---" if column.left else "---:" for column in table.columns]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (table.header, rule, *table.rows))


def _section(section: Section, level: int) -> list[str]:
    parts = _parts(section, level)
    return [f"{'#' * level} {section.title}", *parts] if parts else []


def _parts(section: Section, level: int) -> list[str]:
    found = []
    for part in section.parts:
        match part:
            case str():
                found.append(part)
            case Table(folded=False):
                found.append(table_text(part))
            case Image():
                found.append(f"![{part.title}]({part.link})")
            case Cards():
                found.append("\n".join(f"- {card.sentence}" for card in part.cards))
            case Section():
                found += _section(part, level + 1)
    return found


def _cell(text: str) -> str:
    flat = " ".join(text.replace("|", "\\|").split())
    if isinstance(text, Strong):
        return f"**{flat}**"
    return f"`{flat.replace('`', chr(39))}`" if isinstance(text, Code) else flat
