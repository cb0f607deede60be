"""A reproduced paper as one page: each of its tables and figures, with the published values next to ours. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.drafting.reproduction import Part, Recipe
from bench.errors import UserError
from bench.figures.published import Ablation, Source, read_published
from bench.figures.records import SWEEP_FILE, atomic_writer, plots_of, read_records, read_run
from bench.figures.summary import Summary, read_summary
from bench.report import html, link, markdown
from bench.report.cautions import cautions
from bench.report.figures import PLOTS
from bench.report.formats import UNDEFINED, number, setting_text, shown_is, times
from bench.report.model import Code, Column, Image, Section, Table, listed, table
from bench.report.published_section import by_method
from bench.report.sweep_figures import published_name
from bench.report.sweep_page import Point, Sweep, measured, read_sweep
from bench.report.sweep_page import table as sweep_table
from bench.typed_json import Json, MismatchError, read

SCHEMA = 1
STATE_FILE = "reproduction.json"
PAGE, HTML_PAGE = "reproduction.md", "reproduction.html"
_OTHER = (
    "Compare the shape of a curve and the order of methods, not heights: model, device, harness and answer lengths "
    "are others than the paper's. A fast device and a strong baseline leave less to gain."
)
_ANCHOR = re.compile(r"\[([^]]*)\]\(#[^)]*\)")  # to a section of a part's own report
_SHOWN = {"speedup": times, "compression_rate": number}  # figures of an ablation's points
_HEADINGS = {"compression_rate": "CR"}


@dataclass(frozen=True)
class PartState:
    """A part as it was asked for."""

    name: str
    command: str  # without the program's name
    reason: str = ""  # why it is not carried out; empty: it is
    left_out: dict[str, str] = field(default_factory=dict)  # methods, and why


@dataclass(frozen=True)
class Reproduction:
    """What `reproduction.json` holds."""

    method: str
    model: str
    parts: list[PartState]
    schema: int = SCHEMA


def read_reproduction(folder: Path) -> Reproduction:
    """The `reproduction.json` of a folder.

    Raises:
        UserError: missing, malformed, or of another version.

    """
    path = folder / STATE_FILE
    try:
        found = read(Reproduction, path)
    except (OSError, MismatchError) as error:
        raise UserError(f"{path} is no record of a reproduction ({error}): choose another folder with --out") from error
    if found.schema != SCHEMA:
        raise UserError(f"{path} has schema {found.schema}; this version reads {SCHEMA}: choose another --out")
    return found


def write_page(folder: Path, made: Reproduction, recipe: Recipe) -> list[Path]:
    """Write the pages over all parts that have records; none where no part has any.

    Raises:
        UserError: records are malformed, or the folder cannot be written.

    """
    states = {state.name: state for state in made.parts}
    shown = {part.name: folder / part.name for part in recipe.parts if _has_report(folder / part.name, part)}
    if not shown:
        return []
    source = next((one for one in read_published() if one.source == recipe.source), None)
    parts = [_part(part, states[part.name], shown.get(part.name), source, folder) for part in recipe.parts]
    summary = read_summary(next(iter(shown.values())))
    sections = [_overview(made, recipe, source, summary, folder), *parts]
    pages = {PAGE: markdown.page(sections), HTML_PAGE: html.page(summary, sections)}
    for name, text in pages.items():
        with atomic_writer(folder / name) as file:
            file.write(text)
    return [folder / name for name in pages]


def _has_report(folder: Path, part: Part) -> bool:
    names = ["summary.json", *([SWEEP_FILE] if part.grid else [])]
    return all((folder / name).is_file() for name in names)


def status(folder: Path, state: PartState) -> tuple[str, str]:
    """Return what became of a part, and how long it took."""
    if not (folder / "run.json").is_file():
        return (f"not run: {state.reason}" if state.reason else "not run yet"), UNDEFINED
    run = read_run(folder)
    return "done" if run.complete else "interrupted; the same command goes on", f"{run.wall_s / 60:.1f}"


def _overview(made: Reproduction, recipe: Recipe, source: Source | None, summary: Summary, folder: Path) -> Section:
    states = {state.name: state for state in made.parts}
    rows = [[Code(part.name), part.shows, *status(folder / part.name, states[part.name])] for part in recipe.parts]
    cited = f"{source.citation}. <{source.url}>." if source else f"{recipe.source} (its figures are not installed)."
    return Section(
        f"{recipe.source}, reproduced with {made.model}",
        [
            cited,
            f"Here: {', '.join(setting_text(summary)[:3])}. {_OTHER}",
            table(["part", "what the paper shows", "here", "minutes"], rows, 3),
            *(listed(source.notes) if source else []),
        ],
    )


def _part(part: Part, state: PartState, where: Path | None, source: Source | None, folder: Path) -> Section:
    title = f"{part.name}: {part.shows}"
    published = [_published(one) for one in _ablations(part, source)]
    if where is None:
        said, _ = status(folder / part.name, state)
        return Section(title, [f"{said[:1].upper()}{said[1:]}. {_command(state)}", *published], nav=part.name)
    left_out = listed([f"Left out: `{name}`: {reason}." for name, reason in state.left_out.items()])
    warned = listed([_ANCHOR.sub(r"\1", text) for text in cautions(read_run(where), read_summary(where))])
    warnings = [Section("Warnings", warned, folded=True)] if warned else []
    notes = [f"{_command(state)} Its own report: `{link(where / 'report.html', folder)}`.", part.note]
    shown = _sweep(part, where, source, folder) if part.grid else _run(part, where, source, folder)
    return Section(title, [*filter(None, notes), *left_out, *shown, *warnings], nav=part.name)


def _command(state: PartState) -> str:
    return f"By `roobench {state.command}`."


def _run(part: Part, where: Path, source: Source | None, folder: Path) -> Iterator[Section | str | Table | Image]:
    summary = read_summary(where)
    yield shown_is(summary)
    yield from by_method(summary, [source] if source else [])
    plots = plots_of(where, summary.run_id)
    for name in part.plots:
        if (path := plots / f"{name}.png").is_file():
            yield Image(PLOTS[name].title, path, link(path, folder), PLOTS[name].caption)


def _sweep(part: Part, where: Path, source: Source | None, folder: Path) -> Iterator[Section | str | Table | Image]:
    sweep, (run, turns) = read_sweep(where), read_records(where)
    summary, points = measured(sweep, run, turns)
    found = _ablations(part, source)
    yield from listed([_fastest(sweep, points), *map(_fastest_published, found)])
    yield _beside(sweep_table(sweep, points, sampled=summary.sampling is not None), part, sweep, points, found)
    others = [dataclasses.replace(one, points=_unmatched(one, part, sweep, points)) for one in found]
    yield from (_published(one, "at other values") for one in others if one.points)
    for path in sorted((where / "plots").glob("sweep_*.png")):
        yield Image(path.stem.replace("_", " "), path, link(path, folder))


def _beside(ours: Table, part: Part, sweep: Sweep, points: Sequence[Point], found: Sequence[Ablation]) -> Table:
    """Our table with the published figures of the same values."""
    columns, rows = list(ours.columns), [list(row) for row in ours.rows]
    for one in found:
        for name in (name for name in _SHOWN if any(name in point for point in one.points)):
            columns.append(Column(f"published {_HEADINGS.get(name, name)}, {one.model}"))
            for row, point in zip(rows, points, strict=True):
                row.append(_text(name, (_match(one, part, sweep, point) or {}).get(name)))
    return Table(columns, rows)


def _unmatched(one: Ablation, part: Part, sweep: Sweep, points: Sequence[Point]) -> list[dict[str, Json]]:
    shown = [_match(one, part, sweep, point) for point in points]
    return [point for point in one.points if point not in shown]


def _match(one: Ablation, part: Part, sweep: Sweep, point: Point) -> dict[str, Json] | None:
    """The published point of the same values; None where there is none."""
    values = zip(sweep.axes, point.variant.values, strict=True)
    ours = {published_name(axis.name): part.called.get(value, value) for axis, value in values}
    names = _settings(one)
    if not set(names) <= ours.keys():
        return None
    return next((each for each in one.points if all(_same(ours[name], each.get(name)) for name in names)), None)


def _same(ours: str, published: Json) -> bool:
    try:
        return float(ours) == float(published)
    except ValueError:
        return bool(ours == published)


def _fastest(sweep: Sweep, points: Sequence[Point]) -> str:
    known = [point for point in points if point.value("speedup_decode") is not None]
    if not known:
        return "Here: nothing was measured."
    best = max(known, key=lambda point: point.value("speedup_decode") or 0)
    at = ", ".join(f"{axis.name} {value}" for axis, value in zip(sweep.axes, best.variant.values, strict=True))
    return f"Fastest here: {at}, {times(best.value('speedup_decode'))}, CR {number(best.value('compression_rate'))}."


def _ablations(part: Part, source: Source | None) -> list[Ablation]:
    return [one for one in source.ablations if one.what == part.ablation] if source and part.ablation else []


def _fastest_published(ablation: Ablation) -> str:
    best = max(ablation.points, key=lambda point: float(point.get("speedup") or 0))
    at = ", ".join(f"{name.replace('_', ' ')} {best[name]}" for name in _settings(ablation))
    rate = f", CR {number(best['compression_rate'])}" if "compression_rate" in best else ""
    return f"Fastest as published, {ablation.model}: {at}, {times(best['speedup'])}{rate}."


def _settings(ablation: Ablation) -> list[str]:
    """The names of what was varied."""
    names = dict.fromkeys(name for point in ablation.points for name in point)
    return [name for name in names if name not in (*_SHOWN, "extra_parameters")]


def _published(ablation: Ablation, where: str = "") -> Section:
    """The paper's values over what it varied."""
    names = list(dict.fromkeys(name for point in ablation.points for name in point))
    rows = [[_text(name, point.get(name)) for name in names] for point in ablation.points]
    off = ", read off a plot" if ablation.read_off_a_figure else ""
    header = [_HEADINGS.get(name, name.replace("_", " ")) for name in names]
    return Section(f"As published{f' {where}' if where else ''}, {ablation.model}{off}", [table(header, rows)])


def _text(name: str, value: Json) -> str:
    if value is None:
        return UNDEFINED
    return _SHOWN[name](value) if name in _SHOWN else f"{value:,}" if isinstance(value, int) else str(value)
