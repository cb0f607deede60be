"""`report.html`: a run as one page that needs nothing else, neither network nor fonts nor other files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.figures.metrics import OVERALL
from bench.figures.records import Run, Turn
from bench.report.formats import PEAK_MEMORY, UNDEFINED, gibibytes, lossless_text, number, shown_name, times, where
from bench.report.html_tables import (
    Item,
    Row,
    Table,
    against_table,
    detail_tables,
    headline_table,
    interval,
    millions,
    percent,
    published_tables,
    shown_tasks,
)
from bench.report.reader import SHADES, SHOWN_DIVERGENCES, answers, piece

TEMPLATES = Path(__file__).parent / "templates"
MIME_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
LISTED = 50  # failures and divergences that the page spells out

# Figures by the stems of their files: the group that they stand in, and what a reader should see in them.
FIGURE_GROUPS = {
    "How fast": ("speedup_by_task", "three_estimators", "published"),
    "Where the time goes": ("time_per_step", "time_per_token_by_context"),
    "What is accepted": (
        "compression_rate_by_task",
        "emitted_per_step",
        "ctar_by_window",
        "window_ctar",
        "acceptance_by_position",
        "draft_confidence",
    ),
}
OTHER_FIGURES = "Further figures"
INLINE = (  # applied to escaped text: none of these can open a tag of its own
    (r"\*\*(.+?)\*\*", r"<strong>\1</strong>"),
    (r"(?<![*\w])\*([^*\s][^*]*?)\*(?![*\w])", r"<em>\1</em>"),
    (r"`(.+?)`", r"<code>\1</code>"),
    (r"\[([^\]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>'),
)
SAFE_NAME = re.compile(r"[\w:=,./() -]+")
CAPTIONS = {
    "speedup_by_task": "Tokens per second over vanilla's on the same prompts; the line at 1 is vanilla.",
    "three_estimators": "Three ways to average the same measurements. Where they part, few questions weigh much.",
    "published": "Published values come from other models on other hardware: compare their order, not their height.",
    "time_per_step": "A step of each method in units of a vanilla step: CR over its length is, by task, the speedup.",
    "time_per_token_by_context": "A longer context makes every pass dearer, and prefill is not in it.",
    "compression_rate_by_task": "Tokens per verification step: the speedup if drafts and wide passes were free.",
    "emitted_per_step": "How many tokens the steps added; one means that no draft was accepted.",
    "ctar_by_window": "Share of steps that added more than w tokens. A step that drafted less counts as a miss.",
    "window_ctar": "The same asked at every position of vanilla's answer: are w forced drafts in a row right?",
    "acceptance_by_position": "Chance that a draft is accepted, given that all before it in its step were.",
    "draft_confidence": "A draft model worth its confidence keeps accepted and rejected tokens apart.",
}


def report_html(
    run: Run,
    summary: dict[str, Any],
    turns: Sequence[Turn],
    pieces: Mapping[Any, str],
    figures: Sequence[tuple[str, Path]],
    *,
    warnings: Sequence[str],
    definitions: str,
    published: Sequence[dict[str, Any]] = (),
) -> str:
    """The page. Everything in it is escaped; its policy lets it load nothing and run its own script alone.

    `pieces` gives the text of token ids (empty: ids are shown), `figures` are (title, .svg or .png file), `warnings`
    and `definitions` are Markdown as `report.md` has it, so that both pages say the same, and `published` are other
    people's figures, for whose keys see `html_tables.published_tables`.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = soft
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        title=_title(run, summary),
        cards=_cards(summary),
        headline=headline_table(summary),
        against=against_table(summary),
        warnings=[marked_up(text) for text in warnings],
        published=published_tables(summary, published),
        figure_groups=_figure_groups(figures),
        details=_details(summary),
        failures=_failures(summary),
        divergences=_divergences(summary, pieces),
        answers=answers(summary, turns, pieces),
        shades=range(1, SHADES + 1),
        shown_divergences=SHOWN_DIVERGENCES,
        has_pieces=bool(pieces),
        provenance=_provenance(run),
        sessions=_sessions(run),
        knobs=_knobs(run),
        definitions=[marked_up(text) for text in list_items(definitions)],
    )


def marked_up(text: str) -> Markup:
    """One line of the reports' Markdown: bold, italics, code, and links within the page. All else is escaped."""
    found = str(escape(text))
    for pattern, replacement in INLINE:
        found = re.sub(pattern, replacement, found)
    return Markup(found)


def list_items(text: str) -> list[str]:
    """The items of a Markdown list, each on one line."""
    items = re.split(r"^- ", text, flags=re.MULTILINE)
    return [" ".join(item.split()) for item in items if item.strip()]


def soft(text: str) -> Markup:
    """A method's name that may break after the punctuation of its knobs, and nowhere else if it can."""
    return Markup(re.sub(r"(?<=[:=,_/])", "<wbr>", text)) if SAFE_NAME.fullmatch(text) else Markup(escape(text))


def _title(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """What was run on what: figures of different models or devices must never be taken for each other."""
    dataset, sampling = summary["dataset"], summary["sampling"]
    facts = [
        ("device", str(summary["device"].get("name") or summary["device"].get("type"))),
        ("dtype", summary["dtype"]),
        ("questions", f"{dataset['questions']} ({dataset['name']})"),
        ("tasks", f"{len(shown_tasks(summary))}"),
        ("decoding", "greedy" if sampling is None else _text(sampling)),
        ("rounds", f"{summary['rounds']}"),
    ]
    return {"model": str(summary["model"]), "facts": facts, "run_id": run.run_id}


def _cards(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer in short, one card a method; peers last, since they only say what the baseline is worth."""
    entries = summary["methods"].items()
    ordered = [(name, entry) for kind in ("method", "peer") for name, entry in entries if entry["kind"] == kind]
    scale = _scale([entry["tasks"][OVERALL]["speedup_decode"] for _, entry in ordered])
    cards = [_peer_card(name, e) if e["kind"] == "peer" else _method_card(summary, name, e) for name, e in ordered]
    for card, (_, entry) in zip(cards, ordered, strict=True):
        card["range"] = _range(entry["tasks"][OVERALL]["speedup_decode"], scale)
    return cards


def _method_card(summary: dict[str, Any], name: str, entry: dict[str, Any]) -> dict[str, Any]:
    overall = entry["tasks"][OVERALL]
    values = [cell["speedup_decode"]["value"] for task, cell in entry["tasks"].items() if task != OVERALL]
    values = [value for value in values if value is not None]
    span = f"; {times(min(values))} to {times(max(values))} by task" if len(values) > 1 else ""
    sampled = summary["sampling"] is not None
    return {
        "name": shown_name(name, entry),
        "value": times(overall["speedup_decode"]["value"]),
        "interval": interval(overall["speedup_decode"]),
        "what": f"vanilla's decode speed{span}" if values else "no turn was finished beside vanilla's",
        "facts": [
            ("end-to-end", times(overall["speedup_total"]["value"])),
            ("tokens per step (CR)", number(overall["compression_rate"])),
            ("extra parameters", millions(entry["extra_parameters"])),
            ("output", lossless_text(overall["lossless"], sampled=sampled)),
        ],
        "peer": False,
    }


def _peer_card(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    overall = entry["tasks"][OVERALL]
    value = overall["speedup_decode"]["value"]
    worth = times((overall.get("worth_decode") or {}).get("value"))
    what = f"vanilla's decode speed; vanilla is {worth} the peer" if value else "nothing was measured"
    turns = ("turns", f"{overall['turns']:,}")
    return {
        "name": f"{shown_name(name, entry)} (a peer)",
        "value": times(value),
        "interval": interval(overall["speedup_decode"]),
        "what": what,
        "facts": [("end-to-end", times(overall["speedup_total"]["value"])), turns],
        "peer": True,
    }


def _scale(estimates: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The ends of the cards' common axis: every estimate, and vanilla's 1, with a little room."""
    known = [one.get(key) for one in estimates for key in ("value", "low", "high")]
    values = [value for value in known if value is not None] + [1.0]
    room = 0.08 * max(max(values) - min(values), 0.1)
    return min(values) - room, max(values) + room


def _range(estimate: dict[str, Any], scale: tuple[float, float]) -> dict[str, float] | None:
    """An estimate, its interval and vanilla's 1 in percent of the axis."""
    low, high = scale
    if estimate["value"] is None:
        return None
    ends = {key: estimate.get(key) for key in ("low", "high")}
    points = {"value": estimate["value"], "one": 1.0}
    points |= {key: estimate["value"] if end is None else end for key, end in ends.items()}
    return {key: round(100 * (point - low) / (high - low), 2) for key, point in points.items()}


def _figure_groups(figures: Sequence[tuple[str, Path]]) -> list[tuple[str, list[dict[str, str]]]]:
    places = {stem: group for group, stems in FIGURE_GROUPS.items() for stem in stems}
    groups: dict[str, list[dict[str, str]]] = {group: [] for group in (*FIGURE_GROUPS, OTHER_FIGURES)}
    for title, path in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        source = f"data:{MIME_TYPES[path.suffix]};base64,{data}"
        figure = {"title": title, "caption": CAPTIONS.get(path.stem, ""), "source": source}
        groups[places.get(path.stem, OTHER_FIGURES)].append(figure)
    return [(group, found) for group, found in groups.items() if found]


def _details(summary: dict[str, Any]) -> list[dict[str, Any]]:
    sampled = summary["sampling"] is not None
    return [
        {
            "name": shown_name(name, entry),
            "value": "the baseline" if entry["kind"] == "vanilla" else _short(entry["tasks"][OVERALL]),
            "tables": detail_tables(entry, sampled=sampled),
            "notes": [(key.replace("_", " "), _text(value)) for key, value in entry["notes"].items()],
        }
        for name, entry in summary["methods"].items()
    ]


def _short(overall: dict[str, Any]) -> str:
    estimate = overall["speedup_decode"]
    return f"{times(estimate['value'])} {interval(estimate)}".strip()


def _failures(summary: dict[str, Any]) -> Table | None:
    failed = summary["failed"]
    rows = [Row(where(turn), [Item(turn["error"], kind="code")]) for turn in failed[:LISTED]]
    note = f"The first {LISTED} of {len(failed)}." if len(failed) > LISTED else ""
    return Table("Turns that failed", "where", ["error"], rows, note, frozenset({0})) if failed else None


def _divergences(summary: dict[str, Any], pieces: Mapping[Any, str]) -> Table | None:
    """The worst first: what is beyond rounding."""
    names = {int(token): text for token, text in pieces.items()}
    found = sorted(summary["divergences"], key=lambda turn: turn["verdict"] != "different")

    def token(turn: dict[str, Any], key: str) -> Item:
        return Item("its answer ended" if turn[key] is None else piece(turn[key], names), kind="code")

    rows = [
        Row(
            where(turn),
            [
                Item(turn["verdict"], kind="text"),
                Item(number(turn["position"], 0)),
                token(turn, "token"),
                token(turn, "vanilla_token"),
                *(Item(UNDEFINED if turn[key] is None else f"{turn[key]:.3g}") for key in ("gap", "tolerance")),
            ],
        )
        for turn in found[:LISTED]
    ]
    columns = ["verdict", "position", "token", "vanilla's token", "logit gap", "tolerance"]
    note = "Positions count from 0. " + (f"The first {LISTED} of {len(found)}." if len(found) > LISTED else "")
    return Table("First differing tokens", "where", columns, rows, note, frozenset({0, 2, 3})) if found else None


def _knobs(run: Run) -> Table:
    rows = [
        Row(
            name,
            [
                Item("  ".join(f"{knob}={_text(value)}" for knob, value in info.config.items()) or "none", kind="code"),
                Item(info.kind),
                Item("yes" if info.lossless else "no"),
                Item(f"{info.extra_parameters:,}"),
                Item(gibibytes(run.memory.get("methods", {}).get(name))),
            ],
        )
        for name, info in run.methods.items()
    ]
    columns = ["knobs", "kind", "lossless", "extra parameters", "peak memory"]
    return Table("Methods with every knob", "method", columns, rows, PEAK_MEMORY, text=frozenset({0}))


def _provenance(run: Run) -> Table:
    provenance = {key: value for key, value in run.provenance.items() if key not in ("sessions", "warnings")}
    commit, dirty = provenance.pop("commit", None), provenance.pop("dirty", False)
    facts = [
        ("run", run.run_id),
        ("command", run.command),
        ("model", _text(run.model)),
        ("questions", _text(run.dataset)),
        ("dtype", run.dtype),
        ("device", _text(run.machine.facts())),
        ("engine", _text(run.engine)),
        ("settings", _text(run.config)),
        ("commit", f"{commit or 'unknown'}{' with uncommitted changes' if dirty else ''}"),
        *((key.replace("_", " "), _text(value)) for key, value in provenance.items()),
        ("wall time", f"{run.wall_s:,.0f} s"),
        ("peak memory", gibibytes(run.memory.get("peak_bytes"))),
        ("complete", "yes" if run.complete else "no, interrupted"),
    ]
    rows = [Row(what, [Item(value, kind="code")]) for what, value in facts]
    return Table("Provenance of the run", "what", ["value"], rows, text=frozenset({0}))


def _sessions(run: Run) -> Table | None:
    """A run that was interrupted and resumed has several."""
    rows = [
        Row(
            str(one.get("started", "unknown")),
            [
                Item(number(one.get("wall_s"), 0)),
                Item(percent(one.get("others_share"), 1)),
                Item(
                    f"{one.get('commit') or 'unknown'}{', uncommitted changes' if one.get('dirty') else ''}",
                    kind="code",
                ),
                Item("; ".join(one.get("warnings") or []) or "none", kind="text"),
            ],
        )
        for one in run.provenance.get("sessions") or []
    ]
    columns = ["wall time, s", "used by others", "commit", "warnings"]
    return Table("Sessions", "started", columns, rows, text=frozenset({2, 3})) if rows else None


def _text(value: Any) -> str:
    """A recorded value as a reader wants it: no quotes around words, dictionaries spelled out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
