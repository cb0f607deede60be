"""The pages of a site, from the entries of its index: the first page, and one for each method."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import methods
from bench.figures.index import IndexEntry
from bench.figures.metrics import ordered_tasks
from bench.report import html
from bench.report.formats import UNDEFINED, number, plural, task_name, times, times_between
from bench.report.model import Card, Code, Table, table
from bench.report.origin import value_text
from bench.report.site import board, curves

METHODS = "methods"  # the folder of the methods' pages
_CARDS = 6
_STYLES = ("report.css", "site.css")
_SCRIPTS = ("page.js", "site.js")
_TEXTS = {"kinds": board.KINDS, "history": curves.HISTORY, "batches": curves.BATCHES, "over": curves.OVER}
_LAST = ("composition", "peer")  # kinds, in the list of methods
_UNSAFE = re.compile(r"[^\w.+-]")


def pages(entries: Sequence[IndexEntry]) -> dict[str, str]:
    """The pages by their paths within the site."""
    entries = _with_families(board.by_questions(entries))
    files = _files(entries)
    found = {"index.html": _first(entries, files)}
    for base, file in files.items():
        found[f"{METHODS}/{file}"] = _method(base, [entry for entry in entries if entry.base == base], files)
    return found


def _with_families(entries: Sequence[IndexEntry]) -> list[IndexEntry]:
    """The entries, with the family of a method in all of them: early runs did not record it."""
    known = {entry.base: entry.family for entry in entries if entry.family}
    return [replace(entry, family=entry.family or known.get(entry.base, "")) for entry in entries]


def _files(entries: Sequence[IndexEntry]) -> dict[str, str]:
    """The file of each method's page. Names come from records: whatever they hold, a file is within its folder."""
    found: dict[str, str] = {}
    for base in dict.fromkeys(entry.base for entry in entries):
        safe = _UNSAFE.sub("_", base).lstrip(".")[:80] or "_"
        taken = {name.lower() for name in found.values()}
        found[base] = next(name for n in itertools.count() if (name := _numbered(safe, n)).lower() not in taken)
    return found


def _numbered(name: str, place: int) -> str:
    return f"{name}-{place + 1}.html" if place else f"{name}.html"


def _first(entries: Sequence[IndexEntry], files: Mapping[str, str]) -> str:
    def href(base: str) -> str:
        return quote(f"{METHODS}/{files[base]}")

    runs = {entry.run_id: entry for entry in entries}
    settings = board.by_setting(entries)
    cards = [_card(best, entries) for same in settings if (best := board.best(same)) is not None]
    return html.render(
        "site.html.j2",
        _STYLES,
        _SCRIPTS,
        home="",
        facts=[
            ("runs", len(runs)),
            ("machines", len({board.machine(entry) for entry in entries})),
            ("models", len({entry.model.sha256 for entry in entries})),
            ("methods", len({entry.base for entry in entries if entry.kind == "method"})),
        ],
        cards=cards[:_CARDS],
        more_cards=len(cards) - _CARDS,
        board=board.leaderboard(entries, href),
        about=board.ABOUT,
        cautions=board.cautions(entries),
        facet_titles=board.FACET_TITLES,
        history=curves.history(entries),
        batches=curves.batches(entries),
        over=curves.over_axis(entries),
        axes=curves.axes(entries),
        texts=_TEXTS,
        sizes=(curves.TOP, curves.BOTTOM, curves.LABELS),
        methods=sorted((_listed(base, href(base), entries) for base in files), key=_place),
        runs=_runs(list(runs.values()), entries),
        problems=[(run_id, entry.problems) for run_id, entry in runs.items() if entry.problems],
    )


def _card(best: IndexEntry, entries: Sequence[IndexEntry]) -> Card:
    """The fastest lossless method of a setting."""
    facts = [
        ("model", f"{best.model.name}, {best.dtype}"),
        ("machine", f"{best.machine.name}, {plural(best.threads, 'thread')}"),
        ("questions", f"{best.questions.name} ({best.questions.asked})"),
        ("new tokens, at most", f"{best.questions.max_new_tokens}"),
        ("tokens per step (CR)", number(best.compression_rate)),
    ]
    rivals = {entry.method for entry in entries if entry.setting == best.setting and board.is_fair(entry)}
    among = f"the fastest of {len(rivals)} lossless methods" if len(rivals) > 1 else "the only lossless method"
    sentence = f"{among} measured there, {board.day(best)}"
    if best.speedup.bounds is None:
        sentence += "; too few questions for an interval"
    return Card(best.label, "method", best.speedup, sentence, facts)


def _listed(base: str, href: str, entries: Sequence[IndexEntry]) -> dict[str, Any]:
    """A method in the list of methods."""
    own = [entry for entry in entries if entry.base == base]
    fastest = _fastest(own)
    return {
        "name": base,
        "href": href,
        "about": _title(base),
        "kind": "baseline" if own[0].kind == "vanilla" else board.facets(own[0])["kind"],
        "runs": len({entry.run_id for entry in own}),
        "best": times_between(fastest.speedup) if fastest else UNDEFINED,
    }


def _fastest(own: Sequence[IndexEntry]) -> IndexEntry | None:
    """Of a method's entries the fastest fair one; of a peer's, which promise nothing, the fastest."""
    known = board.with_intervals(own)
    if own[0].kind == "peer":
        return max(known, key=lambda entry: entry.speedup.value or 0.0)
    return board.best(known)


def _place(listed: Mapping[str, Any]) -> tuple[bool, int, str]:
    """The baseline first, then by name, compositions and peers last."""
    kind = listed["kind"]
    return kind != "baseline", _LAST.index(kind) + 1 if kind in _LAST else 0, listed["name"].lower()


def _runs(runs: Sequence[IndexEntry], entries: Sequence[IndexEntry]) -> board.Board:
    """A row a run, with what the checks say."""
    heads = [board.Head("run", wide=True), board.Head("date", wide=True)]
    heads += [board.Head("model and machine", wide=True, long=True), board.Head("questions", wide=True)]
    heads += [board.Head("methods"), board.Head("checks", wide=True)]
    rows = []
    for run in runs:
        many = len({entry.method for entry in entries if entry.run_id == run.run_id and entry.kind == "method"})
        checked = plural(len(run.problems), "problem") if run.problems else "passed"
        cells = [
            board.Cell(run.run_id, "", run.run_id, run.report or ""),
            board.Cell(board.day(run), board.commit(run), run.date),
            board.where(run),
            board.asked(run),
            board.Cell(str(many), "", float(many)),
            board.Cell(checked, "", float(len(run.problems)), state="bad" if run.problems else "good"),
        ]
        rows.append(board.Row(cells))
    return board.Board("Runs", heads, rows)


def _method(base: str, own: Sequence[IndexEntry], files: Mapping[str, str]) -> str:
    best = _fastest(own)
    facts: list[tuple[str, Any]] = [
        ("kind", "baseline" if own[0].kind == "vanilla" else board.facets(own[0])["kind"]),
        ("runs", len({entry.run_id for entry in own})),
        ("machines", len({board.machine(entry) for entry in own})),
    ]
    facts += [("fastest", times(best.speedup.value))] if best else []
    rows = [entry for entry in own if entry.kind != "vanilla"]
    return html.render(
        "site_method.html.j2",
        _STYLES,
        _SCRIPTS,
        home="../index.html",
        name=base,
        title=_title(base),
        description=_description(base),
        facts=facts,
        board=board.leaderboard(own, lambda name: quote(files[name]), "../", f"Results of {base}") if rows else None,
        about=board.ABOUT,
        cautions=board.cautions(rows),
        rates=None if rows else _rates(own),
        tasks=_tasks(rows) if rows else None,
        history=curves.history(own),
        batches=curves.batches(own),
        over=curves.over_axis(own),
        axes=curves.axes(own),
        texts=_TEXTS,
        sizes=(curves.TOP, curves.BOTTOM, curves.LABELS),
        knobs=_knobs(rows),
    )


def _title(base: str) -> str:
    """The first line of what a method says of itself; of a composition, its members."""
    parts = base.split("+")
    if len(parts) > 1:
        return f"Drafts with {' or else '.join(parts)}: the first that has a draft."
    return methods.about(base).partition("\n")[0] if base in methods.names() else ""


def _description(base: str) -> str:
    """The rest of it, as Markdown."""
    return methods.about(base).partition("\n")[2].strip() if base in methods.names() else ""


def _rates(own: Sequence[IndexEntry]) -> Table:
    """The baseline's own speed: a row a run."""
    rows = [[board.setting_text(entry), board.day(entry), number(entry.tok_per_s, 1)] for entry in own]
    return table(["setting", "date", "tokens/s"], rows, 2, "Tokens per second of plain decoding")


def _tasks(rows: Sequence[IndexEntry]) -> Table:
    """Speedup and CR by task: a row an entry."""
    tasks = ordered_tasks(task for entry in rows for task in entry.tasks)
    shown = [
        [entry.method, f"{board.day(entry)}, {board.questions(entry)}", *(_task(entry, task) for task in tasks)]
        for entry in board.ranked(rows)
    ]
    header = ["method", "run", *map(task_name, tasks)]
    return table(header, shown, 2, "Decode speedup and CR by task")


def _task(entry: IndexEntry, task: str) -> str:
    found = entry.tasks.get(task)
    if found is None or found.speedup.value is None:
        return UNDEFINED
    rate = found.compression_rate
    return times(found.speedup.value) + (f" CR {rate:.2f}" if rate is not None else "")


def _knobs(rows: Sequence[IndexEntry]) -> Table | None:
    """The knobs of every variant that have a value, each variant once, in whatever order a run recorded them."""
    variants = {(entry.method, value_text(dict(sorted(entry.knobs.items())))): entry for entry in rows if entry.knobs}
    shown = [
        [method, Code(", ".join(f"{knob}={value_text(value)}" for knob, value in entry.knobs.items() if value != ""))]
        for (method, _), entry in variants.items()
    ]
    return table(["method", "knobs as they ran"], shown, 2, "Every knob") if shown else None
