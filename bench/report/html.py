"""`report.html`: a run as one self-contained page, without network, fonts or other files."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from bench.figures.metrics import ordered_tasks
from bench.figures.summary import Estimate, Summary
from bench.report.formats import device_name, precision_text, sampling_text, visible
from bench.report.model import Card, Image, Section
from bench.report.reader import SHADES, SHOWN_DIVERGENCES

TEMPLATES = Path(__file__).parent / "templates"
SAFE_NAME = re.compile(r"[\w:=,./() -]+")
FIGURE = re.compile(r"([\d.,]+[x%]) (\[.+\]|[\d,]+)")  # and what is shown small below it: an interval, a count


def page(summary: Summary, sections: Sequence[Section]) -> str:
    """The page, with `sections` in their order. All text is escaped; it loads nothing and runs only its own script."""
    markdown = MarkdownIt("commonmark", {"html": False}).disable("image")
    markdown.validateLink = lambda url: url.startswith(("#", "https://"))  # type: ignore[method-assign]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "soft": soft,
        "slug": slug,
        "markdown": lambda text: Markup(markdown.render(text)),
        "inline": lambda text: Markup(markdown.renderInline(text)),
        "data": _data,
        "figure": _figure,
    }
    environment.tests["a"] = lambda part, kind: type(part).__name__ == kind
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("report.html.j2").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        summary=summary,
        facts=_facts(summary),
        sections=sections,
        ranges=_ranges,
        shades=range(1, SHADES + 1),
        shown_divergences=SHOWN_DIVERGENCES,
    )
    return visible(text)


def soft(text: str) -> Markup:
    """A method's name that may break after the punctuation of its knobs, and nowhere else if possible."""
    return Markup(re.sub(r"(?<=[:=,_/])", "<wbr>", text)) if SAFE_NAME.fullmatch(text) else Markup(escape(text))


def slug(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _figure(text: str) -> Markup:
    """A cell; an interval or a count after a figure is shown below it, and text between backticks is code."""
    found = FIGURE.fullmatch(text)
    if found:
        return Markup("{} <small>{}</small>").format(*found.groups())
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _data(image: Image) -> str:
    return f"data:image/{image.path.suffix[1:]};base64,{base64.b64encode(image.path.read_bytes()).decode()}"


def _facts(summary: Summary) -> list[tuple[str, Any]]:
    """What was run on what: figures of different models or devices must not be mixed up."""
    dataset = summary.dataset
    tasks = ordered_tasks(task for entry in summary.methods.values() for task in entry.by_task)
    return [
        ("device", device_name(summary.device)),
        ("dtype", precision_text(summary.dtype, summary.activations)),
        ("questions", f"{dataset.questions} ({dataset.name})"),
        ("tasks", len(tasks)),
        ("decoding", sampling_text(summary.sampling) or "greedy"),
        ("rounds", summary.rounds),
    ]


def _ranges(cards: Sequence[Card]) -> list[dict[str, float] | None]:
    """Each card's estimate, its interval and vanilla's 1, in percent of an axis that all cards share."""
    known = [value for card in cards for value in (card.speedup.value, *(card.speedup.bounds or ()))]
    values = [value for value in known if value is not None] + [1.0]
    margin = 0.08 * max(max(values) - min(values), 0.1)
    start, end = min(values) - margin, max(values) + margin

    def points(speedup: Estimate) -> dict[str, float] | None:
        if speedup.value is None:
            return None
        low, high = speedup.bounds or (speedup.value, speedup.value)
        found = {"value": speedup.value, "one": 1.0, "low": low, "high": high}
        return {key: round(100 * (point - start) / (end - start), 2) for key, point in found.items()}

    return [points(card.speedup) for card in cards]
