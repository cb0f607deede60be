"""`report.html`: a run as one self-contained page, without network, fonts or other files."""

from __future__ import annotations

import base64
import functools
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
from bench.report.model import Image, Section
from bench.report.reader import SHADES, SHOWN_DIVERGENCES

TEMPLATES = Path(__file__).parent / "templates"
SAFE_NAME = re.compile(r"[\w:=,./() -]+")
# And what is shown small below it: an interval, a count, a compression rate.
FIGURE = re.compile(r"([\d.,]+[x%]) (\[.+\]|[\d,]+|CR [\d.,]+)")


def page(summary: Summary, sections: Sequence[Section], home: str = "") -> str:
    """The page, with `sections` in their order; `home`: the address of the page to which it belongs, if any."""
    return render(
        "report.html.j2",
        ("report.css",),
        ("page.js", "report.js"),
        summary=summary,
        facts=_facts(summary),
        sections=sections,
        home=home,
        shades=range(1, SHADES + 1),
        shown_divergences=SHOWN_DIVERGENCES,
    )


def render(template: str, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> str:
    """A page of a template. All text is escaped; it loads nothing and runs only its own scripts."""
    script = "\n".join(_read(name).rstrip() for name in scripts) + "\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        _environment()
        .get_template(template)
        .render(
            style=Markup("\n".join(map(_read, styles))),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            ranges=ranges,
            **values,
        )
    )
    return visible(text)


@functools.cache
def _environment() -> Environment:
    markdown = MarkdownIt("commonmark", {"html": False}).disable("image")
    markdown.validateLink = lambda url: url.startswith(("#", "https://"))  # type: ignore[method-assign]
    plain = MarkdownIt("zero", {"html": False}).enable(["emphasis", "backticks", "escape"])
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
        "emphasis": lambda text: Markup(plain.renderInline(text)),  # of texts that records hold: nothing leads away
        "data": _data,
        "figure": _figure,
    }
    environment.tests["a"] = lambda part, kind: type(part).__name__ == kind
    return environment


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def soft(text: str) -> Markup:
    """A method's name that may break after the punctuation of its knobs, and nowhere else if possible."""
    return Markup(re.sub(r"(?<=[:=,_/])", "<wbr>", text)) if SAFE_NAME.fullmatch(text) else Markup(escape(text))


def slug(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _figure(text: str) -> Markup:
    """A cell; an interval, a count or a CR after a figure is shown below it, and text between backticks is code."""
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


def ranges(speedups: Sequence[Estimate]) -> list[dict[str, float] | None]:
    """Each estimate, its interval and vanilla's 1, in percent of an axis that all of them share."""
    known = [value for one in speedups for value in (one.value, *(one.bounds or ()))]
    values = [value for value in known if value is not None] + [1.0]
    margin = 0.08 * max(max(values) - min(values), 0.1)
    start, end = min(values) - margin, max(values) + margin

    def points(speedup: Estimate) -> dict[str, float] | None:
        if speedup.value is None:
            return None
        low, high = speedup.bounds or (speedup.value, speedup.value)
        found = {"value": speedup.value, "one": 1.0, "low": low, "high": high}
        return {key: round(100 * (point - start) / (end - start), 2) for key, point in found.items()}

    return [points(speedup) for speedup in speedups]
