"""README and docs as tests see them: their examples, commands, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
# Every page that shows commands; `README.md` first.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "templates/method-plugin/README.md",
]
LINKING = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "bench/train/data/README.md",
    *sorted((ROOT / "results/reference").glob("*/README.md")),
    ROOT / "results/contributed/README.md",
]
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*")
_EXAMPLE = re.compile(r"<!-- example: (methods/[\w/]+\.py) -->\n```python\n(.*?)```", re.DOTALL)
PROGRAM = ".venv/bin/roobench"


@dataclass(frozen=True)
class Block:
    """A block of commands; `why_not`: the reason why no test runs it."""

    page: Path
    line: int
    commands: tuple[tuple[str, ...], ...]
    why_not: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def examples(page: Path) -> dict[str, str]:
    """The methods that a page prints, by their file."""
    return dict(_EXAMPLE.findall(page.read_text(encoding="utf-8")))


def all_examples() -> set[tuple[str, str]]:
    """Those of all pages."""
    return {item for page in PAGES for item in examples(page).items()}


def example(name: str) -> str:
    """The code of `methods/NAME.py` as the pages print it, the same on all of them."""
    (code,) = (code for path, code in all_examples() if path == f"methods/{name}.py")
    return code


@cache
def tokens_of(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of commands of a page, in order."""
    before = ""
    for token in tokens_of(page):
        if token.type == "fence" and token.info == "bash":
            marked = _NOT_RUN.fullmatch(before)
            assert token.map is not None
            yield Block(page, token.map[0] + 1, commands_in(token.content), marked[1] if marked else None)
        before = token.content if token.type == "html_block" else ""


def commands_in(text: str) -> tuple[tuple[str, ...], ...]:
    """The words of each command; comments are left out, and lines that go on are joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return tuple(tuple(words) for line in lines if (words := shlex.split(line, comments=True)))


def inline_code(page: Path) -> Iterator[str]:
    for token in tokens_of(page):
        yield from (child.content for child in token.children or () if child.type == "code_inline")


def links(page: Path) -> Iterator[str]:
    """Targets of links and images."""
    for token in tokens_of(page):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if target is not None:
                yield str(target)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    tokens = tokens_of(page)
    titles = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(child.content for child in title.children or ()) for title in titles]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}
