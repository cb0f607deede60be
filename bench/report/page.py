"""`report.md`: a run for a reader, every figure with what it means and what speaks against it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bench.figures.metrics import OVERALL, Cell
from bench.figures.published import published_markdown, read_published
from bench.figures.records import FLOAT32_STATES, MethodInfo, Run
from bench.report import formats, tables
from bench.report.cautions import cautions, sessions
from bench.report.definitions import SPEC_BENCH, definitions
from bench.report.figures import PLOTS
from bench.report.formats import NO_INTERVALS, where

_LISTED = 20  # divergences and failures that the page spells out
_NUMERALS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_FIRST_PLOT = PLOTS["speedup_by_task"]  # stands with the headline

PREDICTED = (
    "Predictions are for greedy decoding, from ranks on held-out answers and pass costs measured before the run."
)
TIMES = (
    "Parts of a step in units of a vanilla step of the same turns, over all tasks (their unweighted mean). CR / "
    "total is the speedup, but for the mean over tasks. Predictions come from microbenchmarks and the warm-up, made "
    "before the run (what a draft and a pass over so many tokens cost alone, and the rest), put together for the steps "
    "that the run took; the error is predicted over measured speedup, less 1."
)
THREE_WAYS = (
    "The same turns, averaged in three ways. *Ratio of sums* and *geometric mean*: overall is the unweighted mean "
    "of the tasks. *Spec-Bench's mean of rates*: overall pools all questions, as its script does; that script "
    "also tokenises the baseline's text again to count it, while here both sides are counted by their token ids."
)
_MAY_DIFFER = {"tree", "costs", "drafts"}  # knobs in which a tree and the chain that it is measured against differ

Section = tuple[str, str]  # a heading without its marks, and the Markdown under it (headings from level 3 on)


def report_page(run: Run, summary: dict[str, Any], plots: Sequence[tuple[str, str]]) -> str:
    """The page as Markdown; `plots` are (title, relative link)."""
    (title, first), *others = sections(run, summary, plots)
    return "\n\n".join([f"# {title}", first, *(f"## {heading}\n\n{text}" for heading, text in others)]) + "\n"


def sections(run: Run, summary: dict[str, Any], plots: Sequence[tuple[str, str]]) -> list[Section]:
    """The page in its order; the first section's heading is the page's title. Sections without content are left out."""
    sampled = summary["sampling"] is not None
    setting = [summary["dtype"], *([formats.sampling_text(summary["sampling"])] if sampled else [])]
    title = f"{summary['model']} on {_device_name(run)}, {', '.join(setting)}"
    found = [(title, _top(summary, plots)), ("Warnings", "\n".join(f"- {text}" for text in cautions(run, summary)))]
    if len(summary["methods"]) > 2:
        found.append(("Overview", f"{tables.overview_markdown(summary)}\n\n{formats.shown_is(summary)}"))
    found += [
        ("Three ways to average", _three_ways(summary)),
        ("Where the time goes", _times(summary)),
        ("Published figures of the same method", published_markdown(summary, read_published())),
        *(_method(run, summary, name) for name in formats.of_kind(summary, "method")),
        ("Method against method", _against(summary)),
        ("Is the baseline strong?", _peers(summary)),
        *((name, tables.vanilla_markdown(entry)) for name, entry in formats.of_kind(summary, "vanilla").items()),
        ("Plots", _images([plot for plot in plots if plot[0] != _FIRST_PLOT])),
        ("Failures", _failure_list(summary)),
        ("Divergences", _divergence_list(summary)),
        ("Numerical rate", _numerical_rate(summary)),
        ("What the figures mean", definitions(summary)),
        ("Beside Spec-Bench's script", SPEC_BENCH if formats.of_kind(summary, "method") else ""),
        ("Knobs", _knobs(run)),
        ("Provenance", _provenance(run)),
    ]
    return [(heading, text) for heading, text in found if text]


def headline(name: str, entry: dict[str, Any], *, sampled: bool = False) -> str:
    """One sentence: how fast, over what range, and whether the output is vanilla's."""
    overall = entry["tasks"][OVERALL]
    by_task = [cell for task, cell in entry["tasks"].items() if task != OVERALL]
    if overall["speedup_decode"]["value"] is None:
        return f"**{name}**: no turn was finished beside vanilla's; nothing can be said."
    if entry["kind"] == "peer":
        value = formats.times_between(overall.get("worth_decode"))
        return f"vanilla is {value} **{name}** (decode, {_mean_of(by_task)})."
    values = [cell["speedup_decode"]["value"] for cell in by_task]
    values = [value for value in values if value is not None]
    span = f", {formats.times(min(values))}-{formats.times(max(values))} by task" if len(values) > 1 else ""
    speed = formats.times_between(overall["speedup_decode"])
    return f"**{name}** decodes {speed} as fast as vanilla ({_mean_of(by_task)}{span}), {_output(overall, sampled)}."


def _top(summary: dict[str, Any], plots: Sequence[tuple[str, str]]) -> str:
    """The sentences, the headline tables with what they show, the first plot."""
    methods = {**formats.of_kind(summary, "method"), **formats.of_kind(summary, "peer")}
    image = _images([plot for plot in plots if plot[0] == _FIRST_PLOT])
    if not methods:
        return "\n\n".join(["Only vanilla was run: there is nothing to compare.", *([image] if image else [])])
    sampled = summary["sampling"] is not None
    sentences = "\n".join(f"- {headline(name, entry, sampled=sampled)}" for name, entry in methods.items())
    parts = [sentences, tables.as_markdown(tables.headline_rows(summary))]
    parts += [tables.as_markdown(tables.overall_rows(summary)), formats.shown_is(summary), image]
    return "\n\n".join(part for part in parts if part)


def _images(plots: Sequence[tuple[str, str]]) -> str:
    return "\n\n".join(f"![{caption}]({link})" for caption, link in plots)


def _three_ways(summary: dict[str, Any]) -> str:
    parts = []
    for name, entry in formats.of_kind(summary, "method").items():
        table = tables.estimator_rows(entry)
        if table is not None:
            parts.append(f"### {formats.shown_name(name, entry)}: three ways\n\n{tables.as_markdown(table)}")
    interval = formats.interval_text(summary) or NO_INTERVALS
    return "\n\n".join([f"{THREE_WAYS} {interval[:1].upper()}{interval[1:]}.", *parts]) if parts else ""


def _against(summary: dict[str, Any]) -> str:
    table = tables.against_rows(summary)
    if table is None:
        return ""
    interval = formats.interval_text(summary) or NO_INTERVALS
    return (
        "On the questions that both answered (ratio of sums, overall the tasks' unweighted mean). Two methods' own "
        f"intervals over vanilla do not tell whether one is faster than the other; these do. {interval[:1].upper()}"
        f"{interval[1:]}.\n\n{formats.markdown_table(*table)}"
    )


def _times(summary: dict[str, Any]) -> str:
    table = tables.time_rows(summary)
    if table is None or not any(formats.timed(entry) for entry in formats.of_kind(summary, "method").values()):
        return ""
    return f"{TIMES}\n\n{formats.markdown_table(*table)}"


def _method(run: Run, summary: dict[str, Any], name: str) -> Section:
    """A method's tables, and what it predicted of itself."""
    entry = summary["methods"][name]
    table = tables.method_markdown(entry, sampled=summary["sampling"] is not None)
    parts = [table, formats.shown_is(summary), tables.detail_markdown(entry), _predictions(run, summary, name)]
    return formats.shown_name(name, entry), "\n\n".join(part for part in parts if part)


def _peers(summary: dict[str, Any]) -> str:
    peers = formats.of_kind(summary, "peer")
    parts = [f"What vanilla is worth in units of a library's own loop. {formats.shown_is(summary)}"]
    for name, entry in peers.items():
        table = tables.peer_markdown(entry, sampled=summary["sampling"] is not None)
        parts.append(f"### vanilla against {formats.shown_name(name, entry)}\n\n{table}")
    return "\n\n".join(parts) if peers else ""


def _mean_of(cells: Sequence[Cell]) -> str:
    defined = sum(cell["speedup_decode"]["value"] is not None for cell in cells)
    if defined == 1:
        return "one task"
    return f"mean of {_NUMERALS[defined] if defined < len(_NUMERALS) else defined} tasks"


def _output(overall: Cell, sampled: bool) -> str:
    counts = overall["lossless"]
    if counts is None:
        return "output may differ from vanilla's: not lossless"
    audited = sum(counts.values())
    if not audited:
        return "output sampled, not compared token by token" if sampled else "output not checked"
    if counts["identical"] == audited:
        return f"output identical in {audited}/{audited} turns"
    return f"output of {audited} turns: {formats.lossless_text(counts)}"


def _predictions(run: Run, summary: dict[str, Any], name: str) -> str:
    """What the method predicted of its tree beside what came of it, and the gain over the chain where that ran too."""
    match summary["methods"][name]["notes"]:
        case {"predicted": {"tree": dict(tree), "chain": dict(chain)}}:
            measured, other = _measured(summary, name), _chain_beside(run, name, chain.get("drafts", 0))
        case _:
            return ""
    rows = [
        ["CR", formats.number(tree.get("compression_rate")), formats.number(measured["compression_rate"])],
        ["decode speedup", formats.times(tree.get("speedup")), formats.times(measured["speedup"])],
    ]
    sentence = PREDICTED
    if other is not None:
        beside = _measured(summary, other)
        for what, key in (("CR", "compression_rate"), ("decode speedup", "speedup")):
            gains = _gain(tree.get(key), chain.get(key)), _gain(measured[key], beside[key])
            rows.append([f"{what}, tree over chain", *map(formats.times, gains)])
        sentence += f" The chain is {other}."
    table = formats.markdown_table(["overall", "predicted", "measured"], rows)
    return f"### Predicted and measured\n\n{sentence}\n\n{table}"


def _measured(summary: dict[str, Any], name: str) -> dict[str, float | None]:
    """By the names of the predictions."""
    overall = summary["methods"][name]["tasks"][OVERALL]
    return {"compression_rate": overall["compression_rate"], "speedup": overall["speedup_decode"]["value"]}


def _chain_beside(run: Run, name: str, drafts: int) -> str | None:
    """Another method of the run that is `name` with nothing but a chain of so many drafts in place of its tree."""
    chain = "/".join("-".join("0" * depth) for depth in range(1, drafts + 1))  # as records spell it: 0/0-0/0-0-0
    for other, info in run.methods.items():
        alike = other.partition(":")[0] == name.partition(":")[0] and _fixed(info) == _fixed(run.methods[name])
        if alike and other != name and info.config.get("tree") == chain:
            return other
    return None


def _fixed(info: MethodInfo) -> dict[str, Any]:
    return {knob: value for knob, value in info.config.items() if knob not in _MAY_DIFFER}


def _gain(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _failure_list(summary: dict[str, Any]) -> str:
    failed = summary["failed"]
    rows = [[where(turn), f"`{_one_line(turn['error'])}`"] for turn in failed[:_LISTED]]
    table = formats.markdown_table(["where", "error"], rows, [True, True])
    return f"{_first(failed)}{table}" if failed else ""


def _divergence_list(summary: dict[str, Any]) -> str:
    """The worst first: what is beyond rounding."""
    found = sorted(summary["divergences"], key=lambda turn: turn["verdict"] != "different")
    rows = [
        [
            where(turn),
            turn["verdict"],
            *(_known(turn[key], "d") for key in ("position", "token", "vanilla_token")),
            *(_known(turn[key], ".3g") for key in ("gap", "tolerance")),
        ]
        for turn in found[:_LISTED]
    ]
    header = ["where", "verdict", "position", "token", "vanilla's token", "logit gap", "tolerance"]
    table = formats.markdown_table(header, rows, [True, True] + [False] * 5)
    return f"{_first(found)}{table}" if found else ""


def _numerical_rate(summary: dict[str, Any]) -> str:
    """In a coarse dtype ties are common: how often one fell the other way, by task."""
    if summary["dtype"] in FLOAT32_STATES:
        return ""
    entries = {**formats.of_kind(summary, "method"), **formats.of_kind(summary, "peer")}
    entries = {name: e for name, e in entries.items() if formats.overall(e).get("numerical_rate") is not None}
    if not entries:
        return ""
    rows = []
    for name, entry in entries.items():
        counts = formats.overall(entry)["lossless"]
        rate = formats.overall(entry)["numerical_rate"]
        rows.append([formats.shown_name(name, entry), f"{rate:.1%}", formats.lossless_text(counts)])
    table = formats.markdown_table(["method", "numerical rate", "output"], rows, [True, False, True])
    sentence = (
        f"In {summary['dtype']} a tie between two tokens may fall either way when a pass has another width. The "
        "answer is then as good as vanilla's, but another one from there on. Share of such turns among those audited:"
    )
    return f"{sentence}\n\n{table}"


def _knobs(run: Run) -> str:
    rows = [
        [
            name,
            info.kind,
            "yes" if info.lossless else formats.NOT_LOSSLESS,
            f"{info.extra_parameters:,}",
            formats.gibibytes(run.memory.get("methods", {}).get(name)),
            ", ".join(f"`{knob}={_text(value)}`" for knob, value in info.config.items()) or formats.UNDEFINED,
        ]
        for name, info in run.methods.items()
    ]
    header = ["method", "kind", "lossless", "extra parameters", "peak memory", "knobs"]
    table = formats.markdown_table(header, rows, [True, True, True, False, False, True])
    return f"{formats.PEAK_MEMORY}\n\n{table}"


def _provenance(run: Run) -> str:
    provenance: dict[str, Any] = dict(run.provenance)
    several = provenance.pop("sessions", None) or []
    provenance.pop("warnings", None)  # stand at the top of the page
    commit = provenance.pop("commit", None)
    dirty = provenance.pop("dirty", False)
    rows = [
        ["run", run.run_id],
        ["command", f"`{run.command}`"],
        ["model", f"{run.model.get('name')}, sha256 {_short(run.model.get('sha256'))}"],
        [
            "questions",
            f"{run.dataset.get('name')} ({run.dataset.get('questions')}), sha256 {_short(run.dataset.get('sha256'))}",
        ],
        ["dtype", run.dtype],
        ["device", _text(run.machine.facts())],
        ["engine", _text(run.engine)],
        ["commit", _commit(commit, dirty)],
        *([key.replace("_", " "), _text(value)] for key, value in provenance.items()),
        ["wall time", f"{run.wall_s:,.0f} s"],
        ["peak memory", formats.gibibytes(run.memory.get("peak_bytes"))],
    ]
    table = formats.markdown_table(["what", "value"], rows, [True, True])
    return f"{table}\n\n{_sessions(run)}" if several else table


def _sessions(run: Run) -> str:
    """A run that was resumed has several; each may have met a busier machine and another commit."""
    rows = [
        [
            str(place),
            str(session.get("started") or formats.UNDEFINED),
            "-" if session.get("wall_s") is None else f"{session['wall_s']:,.0f} s",
            _percent(session.get("others_share")),
            _commit(session.get("commit"), bool(session.get("dirty"))),
            "; ".join(session.get("warnings") or []) or formats.UNDEFINED,
        ]
        for place, session in enumerate(sessions(run), 1)
    ]
    header = ["session", "started", "wall time", "used by others", "commit", "warnings"]
    return "### Sessions\n\n" + formats.markdown_table(header, rows, [True, True, False, False, True, True])


def _commit(commit: str | None, dirty: bool) -> str:
    return f"{commit}{' with uncommitted changes' if dirty else ''}" if commit else "unknown"


def _percent(share: float | None) -> str:
    return formats.UNDEFINED if share is None else f"{share:.1%}"


def _first(found: Sequence[Any]) -> str:
    return f"The first {_LISTED} of {len(found)}.\n\n" if len(found) > _LISTED else ""


def _known(value: float | None, form: str) -> str:
    return formats.UNDEFINED if value is None else format(value, form)


def _one_line(error: str) -> str:
    return " ".join(error.replace("`", "'").split())


def _device_name(run: Run) -> str:
    return run.machine.name or run.machine.type


def _short(sha256: str | None) -> str:
    return f"`{sha256[:12]}`" if sha256 else "unknown"


def _text(value: Any) -> str:
    """A recorded value as a reader wants it: no quotes around words, dictionaries spelled out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
