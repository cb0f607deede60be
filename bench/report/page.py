"""`report.md`: a run for a reader, every figure with what it means and what speaks against it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from bench.metrics import OVERALL, Cell
from bench.records import MethodInfo, Run
from bench.report import tables

FEW_QUESTIONS = 20  # a task with fewer gives indicative figures
MUCH_REPETITION = 0.3
_LISTED = 20  # divergences and failures that the page spells out
_NUMERALS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

DEFINITIONS = """\
- **Speedup** is a method's tokens/s over vanilla's, on the same prompts in the same rounds of the same run. A
  task's value is a ratio of sums; *overall* is the unweighted mean of the tasks' ratios.
- **Decode** leaves out the prefill and the first token, which belongs to it; **end-to-end** has both.
- **CR** (compression rate) = (generated tokens - turns) / steps: tokens per verification pass. Vanilla's is 1.
- **CTAR(w)**: share of steps that added more than w tokens. A step that drafted fewer counts as a miss.
- **Conditional acceptance** at w: share that accepted >= w among steps that drafted >= w and accepted >= w - 1.
- **Draft share** = accepted draft tokens / generated tokens.
- **Time drafting**: share of the decode time; the rest is verification and bookkeeping.
- **Repetition**: share of repeated 8-grams within the answers. Loops are easy to draft.
- **Identical**: turns whose token ids equal vanilla's. *Numerical*: the first differing token was, within the
  dtype's measured error, a tie. *Different*: neither, so the method is not lossless.
- Turns are counted once a round. Questions that failed anywhere are left out on both sides."""

SAMPLED_DEFINITION = """
- **Sampled**: answers were drawn at random, so no two methods' are compared token by token. Lossless then means: the
  same distribution as vanilla's. That is shown by the project's distribution tests and not by this run."""
PREDICTED = (
    "Predictions are for greedy decoding, from ranks on held-out answers and pass costs measured before the run."
)
_MAY_DIFFER = {"tree", "costs", "drafts"}  # knobs in which a tree and the chain that it is measured against differ


def report_page(run: Run, summary: dict[str, Any], plots: Sequence[tuple[str, str]]) -> str:
    """The page as Markdown; `plots` are (title, relative link)."""
    sampled = summary["sampling"] is not None
    setting = [summary["dtype"], *([tables.sampling_text(summary["sampling"])] if sampled else [])]
    title = f"# {summary['model']} on {_device_name(run)}, {', '.join(setting)}"
    parts = [title, _headlines(summary), _warnings(run, summary)]
    parts += [f"![{caption}]({link})" for caption, link in plots]
    if len(summary["methods"]) > 2:
        parts += ["## Overview", tables.overview_markdown(summary)]
    for name, entry in tables.of_kind(summary, "method").items():
        parts += [f"## {tables.shown_name(name, entry)}", tables.method_markdown(entry, sampled=sampled)]
        parts += [tables.detail_markdown(entry), _predictions(run, summary, name)]
    peers = tables.of_kind(summary, "peer")
    if peers:
        parts.append("## Is the baseline strong?\n\nWhat vanilla is worth in units of a library's own loop.")
    for name, entry in peers.items():
        name = tables.shown_name(name, entry)
        parts += [f"### vanilla against {name}", tables.peer_markdown(entry, sampled=sampled)]
    for name, entry in tables.of_kind(summary, "vanilla").items():
        parts += [f"## {name}", tables.vanilla_markdown(entry)]
    parts += [_failure_list(summary), _divergence_list(summary)]
    parts += ["## What the figures mean", DEFINITIONS + (SAMPLED_DEFINITION if sampled else "")]
    parts += ["## Knobs", _knobs(run)]
    parts += ["## Provenance", _provenance(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(name: str, entry: dict[str, Any], *, sampled: bool = False) -> str:
    """One sentence: how fast, over what range, and whether the output is vanilla's."""
    overall = entry["tasks"][OVERALL]
    by_task = [cell for task, cell in entry["tasks"].items() if task != OVERALL]
    if overall["speedup_decode"]["value"] is None:
        return f"**{name}**: no turn was finished beside vanilla's; nothing can be said."
    if entry["kind"] == "peer":
        value = tables.times(tables.worth(overall, "speedup_decode"))
        return f"vanilla is {value} **{name}** (decode, {_mean_of(by_task)})."
    values = [cell["speedup_decode"]["value"] for cell in by_task]
    values = [value for value in values if value is not None]
    span = f", {tables.times(min(values))}-{tables.times(max(values))} by task" if len(values) > 1 else ""
    speed = tables.times(overall["speedup_decode"]["value"])
    return f"**{name}** decodes {speed} as fast as vanilla ({_mean_of(by_task)}{span}), {_output(overall, sampled)}."


def _headlines(summary: dict[str, Any]) -> str:
    methods = {**tables.of_kind(summary, "method"), **tables.of_kind(summary, "peer")}
    if not methods:
        return "Only vanilla was run: there is nothing to compare."
    sampled = summary["sampling"] is not None
    return "\n".join(f"- {headline(name, entry, sampled=sampled)}" for name, entry in methods.items())


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
    return f"output of {audited} turns: {tables.lossless_text(counts)}"


def _warnings(run: Run, summary: dict[str, Any]) -> str:
    """Everything that a reader must know before believing a figure; nothing where there is nothing."""
    found = [
        *(f"- **{_sentence(warning)}**" for warning in run.provenance.get("warnings", [])),
        *_interrupted(summary),
        *_failures(summary),
        *_divergences(summary),
        *_few_questions(summary),
        *_repetition(summary),
    ]
    return "## Warnings\n\n" + "\n".join(found) if found else ""


def _interrupted(summary: dict[str, Any]) -> Iterable[str]:
    if not summary["complete"]:
        yield "- **The run was interrupted**: the figures are of the questions that were finished until then."


def _failures(summary: dict[str, Any]) -> Iterable[str]:
    if summary["failed"]:
        yield (
            f"- **Failed questions: {len(summary['excluded_questions'])}**, left out of every method and of "
            "vanilla; the errors stand under [Failures](#failures)."
        )


def _divergences(summary: dict[str, Any]) -> Iterable[str]:
    found = summary["divergences"]
    different = [turn["method"] for turn in found if turn["verdict"] == "different"]
    if different:
        names = ", ".join(dict.fromkeys(different))
        yield f"- **Not lossless**: {len(different)} answers of {names} differ from vanilla's beyond rounding."
    if found:
        yield (
            f"- **Answers that are not vanilla's, token for token: {len(found)}**, listed under "
            "[Divergences](#divergences)."
        )


def _few_questions(summary: dict[str, Any]) -> Iterable[str]:
    """Peers may be asked less on purpose; their own table shows it."""
    asked: dict[str, int] = {}
    for entry in summary["methods"].values():
        for task, cell in entry["tasks"].items():
            if entry["kind"] != "peer" and task != OVERALL:
                asked[task] = min(asked.get(task, cell["questions"]), cell["questions"])
    few = [f"{tables.task_name(task)} {count}" for task, count in asked.items() if count < FEW_QUESTIONS]
    if few:
        yield (
            f"- **Few questions** ({', '.join(few)}): below {FEW_QUESTIONS} a task, intervals are wide and "
            "the figures indicative."
        )


def _repetition(summary: dict[str, Any]) -> Iterable[str]:
    high = [
        f"{name} {tables.number(cell['repetition'])} in {tables.task_name(task)}"
        for name, entry in summary["methods"].items()
        for task, cell in entry["tasks"].items()
        if task != OVERALL and (cell["repetition"] or 0) > MUCH_REPETITION
    ]
    if high:
        yield (
            f"- **Repetition above {MUCH_REPETITION}** flatters every drafter, because loops are easy to "
            f"predict: {'; '.join(high)}."
        )


def _predictions(run: Run, summary: dict[str, Any], name: str) -> str:
    """What the method predicted of its tree beside what came of it, and the gain over the chain where that ran too."""
    match summary["methods"][name]["notes"]:
        case {"predicted": {"tree": dict(tree), "chain": dict(chain)}}:
            measured, other = _measured(summary, name), _chain_beside(run, name, chain.get("drafts", 0))
        case _:
            return ""
    rows = [
        ["CR", tables.number(tree.get("compression_rate")), tables.number(measured["compression_rate"])],
        ["decode speedup", tables.times(tree.get("speedup")), tables.times(measured["speedup"])],
    ]
    sentence = PREDICTED
    if other is not None:
        beside = _measured(summary, other)
        for what, key in (("CR", "compression_rate"), ("decode speedup", "speedup")):
            gains = _gain(tree.get(key), chain.get(key)), _gain(measured[key], beside[key])
            rows.append([f"{what}, tree over chain", *map(tables.times, gains)])
        sentence += f" The chain is {other}."
    table = tables.markdown_table(["overall", "predicted", "measured"], rows)
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
    rows = [[_where(turn), f"`{_one_line(turn['error'])}`"] for turn in failed[:_LISTED]]
    table = tables.markdown_table(["where", "error"], rows, [True, True])
    return f"## Failures\n\n{_first(failed)}{table}" if failed else ""


def _divergence_list(summary: dict[str, Any]) -> str:
    """The worst first: what is beyond rounding."""
    found = sorted(summary["divergences"], key=lambda turn: turn["verdict"] != "different")
    rows = [
        [
            _where(turn),
            turn["verdict"],
            *(_known(turn[key], "d") for key in ("position", "token", "vanilla_token")),
            *(_known(turn[key], ".3g") for key in ("gap", "tolerance")),
        ]
        for turn in found[:_LISTED]
    ]
    header = ["where", "verdict", "position", "token", "vanilla's token", "logit gap", "tolerance"]
    table = tables.markdown_table(header, rows, [True, True] + [False] * 5)
    return f"## Divergences\n\n{_first(found)}{table}" if found else ""


def _knobs(run: Run) -> str:
    rows = [
        [
            name,
            info.kind,
            "yes" if info.lossless else tables.NOT_LOSSLESS,
            f"{info.extra_parameters:,}",
            ", ".join(f"`{knob}={_text(value)}`" for knob, value in info.config.items()) or tables.UNDEFINED,
        ]
        for name, info in run.methods.items()
    ]
    header = ["method", "kind", "lossless", "extra parameters", "knobs"]
    return tables.markdown_table(header, rows, [True, True, True, False, True])


def _provenance(run: Run) -> str:
    provenance = dict(run.provenance)
    commit = provenance.pop("commit", None)
    dirty = " with uncommitted changes" if provenance.pop("dirty", False) else ""
    rows = [
        ["run", run.run_id],
        ["command", f"`{run.command}`"],
        ["model", f"{run.model.get('name')}, sha256 {_short(run.model.get('sha256'))}"],
        [
            "questions",
            f"{run.dataset.get('name')} ({run.dataset.get('questions')}), sha256 {_short(run.dataset.get('sha256'))}",
        ],
        ["dtype", run.dtype],
        ["device", _text(run.device)],
        ["engine", _text(run.engine)],
        ["commit", f"{commit}{dirty}" if commit else "unknown"],
        *([key.replace("_", " "), _text(value)] for key, value in provenance.items()),
        ["wall time", f"{run.wall_s:,.0f} s"],
    ]
    return tables.markdown_table(["what", "value"], rows, [True, True])


def _where(turn: dict[str, Any]) -> str:
    where = f"question {turn['question_id']} ({tables.task_name(turn['task'])})"
    return f"{turn['method']}, {where}, turn {turn['turn']}, round {turn['round']}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _first(found: Sequence[Any]) -> str:
    return f"The first {_LISTED} of {len(found)}.\n\n" if len(found) > _LISTED else ""


def _known(value: float | None, form: str) -> str:
    return tables.UNDEFINED if value is None else format(value, form)


def _one_line(error: str) -> str:
    return " ".join(error.replace("`", "'").split())


def _device_name(run: Run) -> str:
    return str(run.device.get("name") or run.device.get("type"))


def _short(sha256: str | None) -> str:
    return f"`{sha256[:12]}`" if sha256 else "unknown"


def _text(value: Any) -> str:
    """A recorded value as a reader wants it: no quotes around words, dictionaries spelled out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
