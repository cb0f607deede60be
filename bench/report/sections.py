"""A run's report as sections, in their order: every figure with its meaning and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from bench.figures.breakdown import ratio
from bench.figures.notable import Divergence
from bench.figures.published import Source, read_published
from bench.figures.records import FLOAT32_STATES, QUANTIZED, MethodInfo, Run, Turn
from bench.figures.summary import Cell, Entry, Summary, base_of
from bench.report import batched, crew, diagnosis, engines, over_axis, tables
from bench.report.canvas import GROUPS
from bench.report.cautions import cautions
from bench.report.definitions import SPEC_BENCH, definitions
from bench.report.figures import PLOTS
from bench.report.formats import (
    NO_INTERVALS,
    UNDEFINED,
    axis_text,
    count,
    engine_text,
    interval_text,
    lossless_text,
    number,
    precision_text,
    sampling_text,
    shown_is,
    shown_name,
    times,
    times_between,
    where,
)
from bench.report.model import Card, Cards, Code, Image, Part, Section, Table, listed, table
from bench.report.origin import knobs, provenance, value_text
from bench.report.published_section import published_section
from bench.report.reader import answers

_LISTED = 20  # divergences and failures that the page lists
_NUMERALS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_FIRST_PLOT = PLOTS["speedup_by_task"].title  # shown with the headline

PREDICTED = (
    "For greedy decoding, predicted from ranks on held-out answers and forward-pass costs measured before the run."
)
TIMES = (
    "Parts of a step in units of a vanilla step of the same turns, over all tasks (their unweighted mean). CR / total "
    "is the speedup, exactly so by task. Predictions are computed from costs measured before the run (a draft and a "
    "forward pass over n tokens alone, the rest in the warm-up) and from the steps that the run took. Error: predicted "
    "over measured speedup, minus 1."
)
THREE_WAYS = (
    "The same turns, averaged in three ways. *Ratio of sums* and *geometric mean*: overall is the unweighted mean of "
    "the tasks. *Spec-Bench's mean of rates*: overall pools all questions, as its script does. That script also "
    "tokenises the baseline's text again to count it; here both sides are counted by their token ids. Two are robust. "
    "*By step medians*, every step takes the median time of its turn's steps of the same shape (drafts, depth, draft "
    "calls): a burst of another program does not move it. The *median of questions* (overall: of all questions) is not "
    "moved by a stalled turn."
)
AGAINST = (
    "On the questions that both answered (ratio of sums, overall the tasks' unweighted mean). The intervals of two "
    "methods over vanilla do not show whether one is faster than the other; these do."
)
NUMERICAL = (
    "In {dtype} a tie between two tokens can be resolved differently when a forward pass has another width. The answer "
    "is then as good as vanilla's, but differs from there on. Share of such turns among those audited:"
)
OTHER_ACTIVATIONS = (
    "Peers multiply float32 activations with the same weights, so their logits differ from vanilla's by the rounding "
    "of {activations} activations, and so do many answers. The methods run vanilla's own arithmetic, and "
    "their answers should be identical. Share of turns that first differ within that rounding, among those audited:"
)
_MAY_DIFFER = {"tree", "costs", "drafts"}  # knobs in which a tree and the chain that it is measured against differ


def sections(
    run: Run,
    summary: Summary,
    plots: Sequence[Image] = (),
    *,
    turns: Sequence[Turn] = (),
    token_texts: Mapping[str, str] | None = None,
    sources: list[Source] | None = None,
) -> list[Section]:
    """The report. The first section's heading is its title; those without content are left out.

    `token_texts` gives the text of token ids (empty: ids are shown); `sources` are the published figures to show
    (default: those of `results/published`).
    """
    setting = [
        precision_text(summary.dtype, summary.activations),
        *filter(None, [sampling_text(summary.sampling) or axis_text(summary)]),
    ]
    title = f"{summary.model} on {run.machine.name or run.machine.type}, {', '.join(setting)}"
    methods, others = tables.in_order(summary, "method"), summary.of_kind("method", "peer")
    names = {int(token): text for token, text in (token_texts or {}).items()}
    found = [
        Section(title, list(_top(summary, plots)), "Results"),
        Section("Warnings", listed(cautions(run, summary)), "Warnings"),
        Section("Overview", [*tables.overview(summary), shown_is(summary)] if len(summary.methods) > 2 else []),
        over_axis.section(summary),
        _three_ways(summary),
        _times(summary),
        batched.section(summary),
        diagnosis.section(summary),
        published_section(summary, read_published() if sources is None else sources),
        *(_method(run, summary, name) for name in methods),
        _against(summary),
        _peers(summary),
        engines.beside(summary),
        engines.engines(summary),
        crew.section(summary),
        *(
            Section(name, [tables.vanilla(e), *tables.folded(e)], folded=bool(others))
            for name, e in summary.of_kind("vanilla").items()
        ),
        _plots([plot for plot in plots if plot.title != _FIRST_PLOT]),
        _failures(summary),
        _divergences(summary, names),
        _numerical_rate(summary),
        answers(summary, turns, names),
        Section("What the figures mean", [definitions(summary)], "Definitions"),
        Section("Differences from Spec-Bench's script", [SPEC_BENCH] if methods else []),
        knobs(run, summary),
        provenance(run),
    ]
    return [section for section in found if section.parts]


def headline(name: str, entry: Entry, *, sampled: bool = False) -> str:
    """One sentence: how fast, over what range, and whether the output is vanilla's."""
    overall, label = entry.overall, entry.label or name
    values = [value for cell in entry.by_task.values() if (value := cell.speedup_decode.value) is not None]
    if overall.speedup_decode.value is None:
        return f"**{label}**: no question was finished by both this method and vanilla; there is nothing to compare."
    many = _NUMERALS[len(values)] if len(values) < len(_NUMERALS) else len(values)
    mean = "one task" if len(values) == 1 else f"mean of {many} tasks"
    if entry.kind == "peer":
        other = f"; {engine_text(entry)}" if engine_text(entry) else ""
        return f"vanilla decodes {times_between(overall.worth_decode)} as fast as **{label}** ({mean}{other})."
    span = f", {times(min(values))}-{times(max(values))} by task" if len(values) > 1 else ""
    speed = times_between(overall.speedup_decode)
    return f"**{label}** decodes {speed} as fast as vanilla ({mean}{span}), {_output(overall, sampled)}."


def _output(overall: Cell, sampled: bool) -> str:
    counts = overall.lossless
    if counts is None:
        return "output may differ from vanilla's: not lossless"
    audited = sum(counts.values())
    if not audited:
        return "output sampled, not compared token by token" if sampled else "output not checked"
    if counts["identical"] == audited:
        return f"output identical in {audited}/{audited} turns"
    return f"output of {audited} turns: {lossless_text(counts)}"


def _top(summary: Summary, plots: Sequence[Image]) -> Iterator[str | Cards | Table | Image]:
    """The sentences, the headline tables with what they show, the first plot."""
    shown = summary.of_kind("method", "peer")
    if shown:
        cards = tables.fastest(summary, "method", "peer")
        yield Cards([_card(name, entry, summary.sampling is not None) for name, entry in cards.items()])
        if len(cards) < len(shown):
            yield f"The fastest of each kind, of {len(shown)} methods and peers; all are in the tables."
        yield tables.headline(summary)
        yield tables.overall(summary)
        yield shown_is(summary)
        yield from _short_names(summary)
    else:
        yield "Only vanilla was run: there is nothing to compare."
    yield from (plot for plot in plots if plot.title == _FIRST_PLOT)


def _card(name: str, entry: Entry, sampled: bool) -> Card:
    facts = [
        ("end-to-end", times(entry.overall.speedup_total.value)),
        ("tokens per step (CR)", number(entry.overall.compression_rate)),
        ("extra parameters", count(entry.extra_parameters)),
    ]
    sentence = headline(name, entry, sampled=sampled)
    return Card(shown_name(name, entry), entry.kind, entry.overall.speedup_decode, sentence, facts)


def _short_names(summary: Summary) -> Iterator[Table]:
    """Which methods the short names stand for."""
    rows = [[entry.label, Code(name)] for name, entry in summary.methods.items() if entry.label != name]
    if rows:
        yield table(["name", "method with its knobs"], rows, 2, "Short names of methods")


def _about_intervals(summary: Summary) -> str:
    text = interval_text(summary) or NO_INTERVALS
    return f"{text[:1].upper()}{text[1:]}."


def _three_ways(summary: Summary) -> Section:
    shown = {shown_name(name, entry): entry for name, entry in tables.in_order(summary, "method").items()}
    parts = [Section(f"{name}: three ways", [tables.three_ways(name, entry)]) for name, entry in shown.items()]
    about = f"{THREE_WAYS} {_about_intervals(summary)}"
    return Section("Three ways to average", [about, *parts] if parts else [], folded=len(parts) > tables.MANY)


def _times(summary: Summary) -> Section:
    timed = {name: entry for name, entry in tables.in_order(summary, "vanilla", "method").items() if entry.timed}
    known = any(entry.kind == "method" for entry in timed.values())
    found = tables.time({shown_name(name, entry): entry for name, entry in timed.items()})
    return Section("Where the time goes", [TIMES, found] if known else [], "Time")


def _method(run: Run, summary: Summary, name: str) -> Section:
    """A method's tables, its notes and its predictions."""
    entry = summary.methods[name]
    verdict = partial(lossless_text, sampled=summary.sampling is not None)
    notes = [[key.replace("_", " "), value_text(value)] for key, value in entry.notes.items()]
    said = [table(["note", "value"], notes, 2, "Notes of the method", folded=True)] if notes else []
    parts: list[Part] = [tables.method(entry, verdict), shown_is(summary), tables.detail(entry), *tables.folded(entry)]
    parts += [tables.members(entry)] if entry.members else []
    return Section(shown_name(name, entry), [*parts, *said, *_predictions(run, summary, name)], folded=True)


def _against(summary: Summary) -> Section:
    found = tables.against(summary)
    return Section("Method against method", [f"{AGAINST} {_about_intervals(summary)}", found] if found else [])


def _peers(summary: Summary) -> Section:
    peers = {shown_name(name, entry): entry for name, entry in summary.of_kind("peer").items()}
    verdict = partial(lossless_text, sampled=summary.sampling is not None)
    parts = [Section(f"vanilla against {name}", [tables.peer(entry, verdict)]) for name, entry in peers.items()]
    about = f"Vanilla's speed in units of a library's own loop. {shown_is(summary)}"
    return Section("Is the baseline strong?", [about, *parts] if parts else [], "Baseline")


def _plots(plots: Sequence[Image]) -> Section:
    """In the groups of the registry of plots."""
    groups = {plot.title: plot.group for plot in PLOTS.values()}
    found: dict[str, list[Image]] = {group: [] for group in GROUPS}
    for plot in plots:
        found.setdefault(groups.get(plot.title, "Further figures"), []).append(plot)
    return Section("Plots", [Section(group, images) for group, images in found.items() if images], "Plots")


def _predictions(run: Run, summary: Summary, name: str) -> Iterator[Section]:
    """A method's predictions for its tree next to what was measured, and the gain over a chain if that ran too."""
    match summary.methods[name].notes:
        case {"predicted": {"tree": dict(tree), "chain": dict(chain)}}:
            other = _chain_beside(run, name, chain.get("drafts", 0))
        case _:
            return
    measured = _measured(summary.methods[name].overall)
    shown = {"compression_rate": ("CR", number), "speedup": ("decode speedup", times)}
    rows = [[what, show(tree.get(key)), show(measured[key])] for key, (what, show) in shown.items()]
    if other is not None:
        beside = _measured(summary.methods[other].overall)
        for key, (what, _) in shown.items():
            gains = ratio(tree.get(key), chain.get(key)), ratio(measured[key], beside[key])
            rows.append([f"{what}, tree over chain", *map(times, gains)])
    sentence = PREDICTED + (f" The chain is {summary.label(other)}." if other is not None else "")
    yield Section("Predicted and measured", [sentence, table(["overall", "predicted", "measured"], rows)])


def _measured(overall: Cell) -> dict[str, float | None]:
    """The measured figures by the names of the predictions."""
    return {"compression_rate": overall.compression_rate, "speedup": overall.speedup_decode.value}


def _chain_beside(run: Run, name: str, drafts: int) -> str | None:
    """Another method of the run that is `name` with a chain of `drafts` tokens in place of its tree."""
    chain = "/".join("-".join("0" * depth) for depth in range(1, drafts + 1))  # as records spell it: 0/0-0/0-0-0
    for other, info in run.methods.items():
        alike = base_of(other) == base_of(name) and _fixed(info) == _fixed(run.methods[name])
        if alike and other != name and info.ran.get("tree") == chain:
            return other
    return None


def _fixed(info: MethodInfo) -> dict[str, object]:
    return {knob: value for knob, value in info.config.items() if knob not in _MAY_DIFFER}


def _failures(summary: Summary) -> Section:
    rows = [[where(turn, summary), Code(turn.error)] for turn in summary.failed[:_LISTED]]
    parts: list[Part] = [*_first(len(summary.failed)), table(["where", "error"], rows, 2, "Turns that failed")]
    return Section("Failures", parts if rows else [], "Failures")


def _divergences(summary: Summary, names: Mapping[int, str]) -> Section:
    """The worst first: what is beyond rounding. Tokens are shown by their text where it is known."""

    def token(value: int | None) -> str:
        return UNDEFINED if value is None else Code(names[value]) if value in names else str(value)

    def shown(turn: Divergence) -> list[str]:
        figures = [UNDEFINED if value is None else f"{value:.3g}" for value in (turn.gap, turn.tolerance)]
        position = UNDEFINED if turn.position is None else str(turn.position)
        return [where(turn, summary), turn.verdict, position, token(turn.token), token(turn.vanilla_token), *figures]

    found = sorted(summary.divergences, key=lambda turn: turn.verdict != "different")
    header = ["where", "verdict", "position", "token", "vanilla's token", "logit gap", "tolerance"]
    rows = [shown(turn) for turn in found[:_LISTED]]
    parts: list[Part] = [
        "Positions count from 0.",
        *_first(len(found)),
        table(header, rows, 2, "First differing tokens"),
    ]
    return Section("Divergences", parts if rows else [], "Divergences")


def _first(many: int) -> list[str]:
    return [f"The first {_LISTED} of {many}."] if many > _LISTED else []


def _numerical_rate(summary: Summary) -> Section:
    """For dtypes in which ties are common, and for peers whose arithmetic is another than the target's."""
    foreign = summary.dtype in QUANTIZED and bool(summary.of_kind("peer"))
    rows = [
        [shown_name(name, entry), f"{entry.overall.numerical_rate:.1%}", lossless_text(entry.overall.lossless)]
        for name, entry in summary.of_kind("method", "peer").items()
        if entry.overall.numerical_rate is not None
    ]
    known = rows and (foreign or summary.dtype not in FLOAT32_STATES)
    about = OTHER_ACTIVATIONS if foreign else NUMERICAL
    said = about.format(dtype=summary.dtype, activations=summary.activations or "eight-bit")
    return Section(
        "Numerical rate", [said, table(["method", "numerical rate", "output"], rows, (0, 2))] if known else []
    )
