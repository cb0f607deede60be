"""Write the figures of README.md and docs/ from the committed records.

    .venv/bin/python scripts/figures.py            # after a new reference run
    .venv/bin/python scripts/figures.py --check    # name what does not equal its record

Tables between `<!-- table: NAME -->` and `<!-- /table -->` are those of figure_tables.py, those of docs/methods.md of
methods_table.py. All other figures are in docs/figures.toml: phrases of the pages, with the record of each figure in
braces. It also lists the figures that come from no record, with their source. A figure without either is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # so that it runs from a checkout that is not installed

import figure_tables  # noqa: E402
import methods_table  # noqa: E402

from bench.errors import UserError  # noqa: E402
from bench.figures.summary import OVERALL  # noqa: E402

INDEX = ROOT / "docs" / "figures.toml"
FIGURE = re.compile(  # decimals but no versions; shares, ratios, rates
    r"(?<![\w.])(?<!\w-)(?:[\d,]*\d\.\d+(?![\d.]*\w*\d)|\d+ ?%|\d+[x\u00d7]|\d+ times|\d+ tokens/s)|(?<=\bCR )\d+"
)
_HIDDEN = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL)  # code, links, comments: no figures
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(\n<!-- /table -->)", re.DOTALL)
_PLACE = re.compile(r"\{([^{}]+)\}")
_NUMBER = r"(?<![\d.,])[+-]?(?:\d[\d,]*)?\d(?:\.\d+)?[%M]?(?![\d])"
_FORMS = {  # ways to show what is no number, with what finds it on a page
    "date": r"\d{1,2} [A-Z][a-z]+ \d{4}",
    "commit": r"\b[0-9a-f]{7}\b",
    "version": r"[\d.]+\d",
    "text": r"[^\s`|]+",
}


def pages() -> list[Path]:
    """Return the pages whose figures are checked."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def index() -> dict[str, Any]:
    """Return docs/figures.toml: `records`, `pages` and `cited`."""
    return tomllib.loads(INDEX.read_text(encoding="utf-8"))


# --- records ----------------------------------------------------------------------------------------------------------


@cache
def record(name: str) -> dict[str, Any]:
    """Return a committed record: a file, or the figures of a run's folder by method.

    Raises:
        UserError: docs/figures.toml has no record of that name.

    """
    known = index()["records"]
    if name not in known:
        raise UserError(f"unknown record {name!r}: docs/figures.toml has {', '.join(known)}")
    path = ROOT / known[name]
    return _run(path) if path.is_dir() else json.loads(path.read_text(encoding="utf-8"))


def _run(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    every = {
        name: {task: _cell(cell) for task, cell in entry["tasks"].items()} for name, entry in summary["methods"].items()
    }
    by_name = {name: {**tasks[OVERALL], **tasks, "slowest": _slowest(tasks)} for name, tasks in every.items()}
    ours = {name: by_name[name] for name, entry in summary["methods"].items() if entry["kind"] == "method"}
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {**by_name, "methods": ours, "variants": list(ours.values()), "summary": summary, "run": run}


def _slowest(tasks: Mapping[str, Mapping[str, Any]]) -> float:
    return min(cell["speedup"] for task, cell in tasks.items() if task != OVERALL)


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one method on one task under short names."""
    speedup, whole, step = cell["speedup_decode"], cell["speedup_total"], cell["step_time"] or {}
    half = (speedup["high"] - speedup["low"]) / 2 / speedup["value"] if speedup["high"] is not None else None
    error = cell["prediction_error"]
    return {
        **{"speedup": speedup["value"], "low": speedup["low"], "high": speedup["high"], "half": half},
        **{"end-to-end": whole["value"], "cr": cell["compression_rate"], "tok_per_s": cell["tok_per_s"]},
        **{"step": step.get("total"), "drafting": step.get("draft"), "turns": cell["turns"]},
        **{"error": None if error is None else abs(error), "worth": (cell["worth_decode"] or {}).get("value")},
    }


def figure(text: str) -> tuple[str, str]:
    """Return what belongs in the place of `{text}`, and the pattern of what may be there now.

    The words lead through a record: its name, then keys; `*` stands for all of a table, whose figures the last word
    joins. `median`, `min`, `max` are of a list, `inverse` is of a number, `a / b` a ratio. A last word of a format
    (`.1f`, `.0%`, `+.2%` above one, `M`, `date`, `commit`, `version`, `text`) says how to show it; the default is two
    decimals, and `1,234`.

    Raises:
        UserError: there is no such figure.

    """
    *words, last = shlex.split(text)
    form = last if last in {*_FORMS, "M"} or last[0] in ".+" else ""
    try:
        value = _value(words if form else [*words, last])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"no record has {{{text}}} ({type(error).__name__}: {error})") from error
    if form in _FORMS:
        return _word(value, form), _FORMS[form]
    if not isinstance(value, int | float):
        raise UserError(f"{{{text}}} is no number but {value!r}")
    if form == "M":
        return f"{value / 1e6:.1f}M", _NUMBER
    if form.startswith("+"):
        return format(value - 1, form), _NUMBER
    return format(value, form or ("," if isinstance(value, int) else ".2f")), _NUMBER


def _word(value: str, form: str) -> str:
    if form == "date":
        when = datetime.fromisoformat(value)
        return f"{when.day} {when:%B %Y}"
    return {"commit": value[:7], "version": value.partition("+")[0]}.get(form, value)


def _value(words: list[str]) -> Any:
    if "/" in words:
        place = words.index("/")
        return _value(words[:place]) / _value(words[place + 1 :])
    return _walk(record(words[0]), words[1:])


def _walk(value: Any, words: list[str]) -> Any:
    for place, word in enumerate(words):
        match word:
            case "*":
                found = [_walk(each, words[place + 1 : -1]) for each in value.values()]
                return _walk([each for each in found if each is not None], words[-1:])
            case "median" | "min" | "max" if isinstance(value, list):
                value = {"median": statistics.median, "min": min, "max": max}[word](value)
            case "inverse":
                value = 1 / value
            case _:
                value = value[int(word)] if isinstance(value, list) else value[word]
    return value


# --- pages ------------------------------------------------------------------------------------------------------------


def written(path: Path, text: str) -> str:
    """Return a page with its figures as the records have them.

    Raises:
        UserError: a phrase is not on its page, or a figure or a table is unknown.

    """
    name = path.relative_to(ROOT).as_posix()
    if path == ROOT / methods_table.PAGE:
        text = methods_table.page_with_tables(text, methods_table.RUN)
    if text.count("<!-- table: ") != len(_TABLE.findall(text)):
        raise UserError(f"{name} has a table without an end: put a line <!-- /table --> after each")
    text = _TABLE.sub(lambda found: f"{found[1]}\n{_table(found[2])}\n{found[3]}", text)
    for phrase in index()["pages"].get(name, []):
        found = list(re.finditer(_pattern(phrase), text))
        if len(found) != 1:
            times_ = f"{len(found)} times" if found else "nowhere"
            raise UserError(f"{name} has {phrase!r} {times_}, not once: change the phrase in docs/figures.toml")
        values = [figure(place)[0] for place in _PLACE.findall(phrase)]
        for group, value in reversed(list(enumerate(values, 1))):
            text = text[: found[0].start(group)] + value + text[found[0].end(group) :]
    return text


def _table(name: str) -> str:
    known = figure_tables.TABLES
    if name not in known:
        raise UserError(f"unknown table {name!r}: scripts/figure_tables.py has {', '.join(known)}")
    where, made = known[name]
    return made(ROOT / index()["records"][where])


def _pattern(phrase: str) -> str:
    """Return what finds a phrase, wherever its lines break, with a group for each figure."""
    *parts, last = re.split(_PLACE, phrase)
    texts = [f"{_literal(text)}({figure(place)[1]})" for text, place in zip(parts[::2], parts[1::2], strict=True)]
    return "".join([*texts, _literal(last)])


def _literal(text: str) -> str:
    return re.sub(r"(?:\\ |\\\n|\s)+", r"\\s+", re.escape(text))


def unanswered(path: Path, text: str) -> list[str]:
    """Return the figures of a page that come from no record and have no source, with their lines."""
    spans = list(_answered(path.relative_to(ROOT).as_posix(), text))
    return [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]}"
        for found in FIGURE.finditer(text)
        if not any(start <= found.start() and found.start() < end for start, end in spans)
    ]


def _answered(name: str, text: str) -> Iterator[tuple[int, int]]:
    yield from (found.span() for found in _HIDDEN.finditer(text))
    yield from (found.span() for found in _TABLE.finditer(text))
    if name == methods_table.PAGE.as_posix():
        yield text.index(methods_table.BEGIN), text.index(methods_table.END)
    for phrase in index()["pages"].get(name, []):
        for found in re.finditer(_pattern(phrase), text):
            yield from (found.span(group) for group in range(1, found.re.groups + 1))
    for cited in index()["cited"]:
        for phrase in cited["phrases"]:
            yield from (found.span() for found in re.finditer(rf"(?<![\w.]){_literal(phrase)}", text))


def problems() -> list[str]:
    """Return what is wrong with the figures of all pages, a line each."""
    found = []
    texts = {path: path.read_text(encoding="utf-8") for path in pages()}
    for path, text in texts.items():
        if written(path, text) != text:
            found.append(f"{path.relative_to(ROOT)}: its figures are not those of the records: run scripts/figures.py")
        found += [f"{each}: from no record, and docs/figures.toml names no source" for each in unanswered(path, text)]
    phrases = [phrase for cited in index()["cited"] for phrase in cited["phrases"]]
    stale = [phrase for phrase in phrases if not any(re.search(_literal(phrase), text) for text in texts.values())]
    return found + [f"docs/figures.toml: no page has {phrase!r} any more: remove it" for phrase in stale]


def main() -> int:
    """Return the exit status: 1 where a figure is wrong or has no source, 2 where a record or a phrase is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; name what is wrong")
    asked = parser.parse_args()
    try:
        if not asked.check:
            made = {path: written(path, path.read_text(encoding="utf-8")) for path in pages()}
            for path, text in made.items():
                path.write_text(text, encoding="utf-8")
        wrong = problems()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(wrong) or "all figures come from records")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
