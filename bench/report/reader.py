"""Answers token by token, each token with its origin. For the HTML report; no torch, no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.figures.breakdown import decode_tok_per_s
from bench.figures.metrics import compression_rate, ordered_tasks
from bench.figures.records import Turn
from bench.figures.summary import Summary
from bench.report.formats import number, task_name, times
from bench.report.model import Answer, Answers, Panel, Section

SHOWN_TOKENS = 600  # of one answer; the rest is counted, not shown
SHOWN_DIVERGENCES = 20
SHADES = 5  # strengths in which confidences are shaded
NEWLINE = "↵"

# Where a token came from. The templates' classes carry these names.
FIRST, ACCEPTED, BONUS, UNKNOWN = "first", "accepted", "bonus", "unknown"

Key = tuple[int, int, int]  # question, turn, round


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    token_id: int
    origin: str  # FIRST: of the prefill; ACCEPTED draft; BONUS: the target's own; UNKNOWN: no step accounts for it
    confidence: float | None = None  # the draft model's, of an accepted draft
    losers: tuple[tuple[int, float | None], ...] = ()  # drafts that a bonus beat, each with its confidence


def by_step(turn: Turn) -> list[list[Token]]:
    """The answer's tokens in the groups in which they appeared: the prefill's first, then one group a step.

    Within a step the accepted drafts come first; the rest, at most one token, is the target's own. It is missing
    where EOS or the limit cut it. Tokens that no step accounts for (a peer's) make a last group.
    """
    ids = turn.token_ids
    groups = [[Token(token, FIRST) for token in ids[:1]]]
    accepted, rejected = iter(turn.accepted_confidence), iter(turn.rejected_confidence)
    losers = turn.per_step_rejected or [[] for _ in turn.per_step_emitted]
    place = 1
    steps = zip(turn.per_step_emitted, turn.per_step_accepted, losers, strict=True)
    for emitted, kept, lost in steps:
        beaten = tuple((token, next(rejected, None)) for token in lost)
        step = ids[place : place + emitted]
        drafts = [Token(token, ACCEPTED, next(accepted, None)) for token in step[:kept]]
        groups.append(drafts + [Token(token, BONUS, losers=beaten) for token in step[kept:]])
        place += emitted
    groups.append([Token(token, UNKNOWN) for token in ids[place:]])
    return [group for group in groups if group]


def answers(summary: Summary, turns: Sequence[Turn], names: Mapping[int, str]) -> Section:
    """One answer a task, the first question's first turn, then every turn that diverges from vanilla's.

    `names` gives the text of token ids.
    """
    by_key: dict[Key, dict[str, Turn]] = {}
    for turn in turns:
        if turn.error is None and turn.question_id not in summary.excluded_questions:
            by_key.setdefault((turn.question_id, turn.turn, turn.round), {})[turn.method] = turn
    (vanilla,) = summary.of_kind("vanilla")
    found = [
        Answer(_title(key, by_key[key][vanilla]), panels)
        for key in _chosen(summary, by_key, vanilla)
        if (panels := list(_panels(by_key[key], vanilla, summary, names)))
    ]
    return Section("Answers, token by token", [Answers(found, bool(names))] if found else [], "Answers")


def token_text(token_id: int, names: Mapping[int, str]) -> str:
    """A token's text; one whose text is not known shows its id."""
    return names.get(token_id, f"⟨{token_id}⟩")


def _chosen(summary: Summary, by_key: Mapping[Key, Mapping[str, Turn]], vanilla: str) -> list[Key]:
    first: dict[str, Key] = {}
    for key, sides in by_key.items():
        if vanilla in sides and key[1] == 0:
            first.setdefault(sides[vanilla].task, key)
    ours = [turn for turn in summary.divergences if summary.methods[turn.method].kind == "method"]
    diverging = dict.fromkeys(((turn.question_id, turn.turn, turn.round), turn.at) for turn in ours)
    at = {key: sides[vanilla].at for key, sides in by_key.items() if vanilla in sides}  # of several values, one is here
    known = [key for key, value in diverging if key in at and at[key] == value][:SHOWN_DIVERGENCES]
    return list(dict.fromkeys([*(first[task] for task in ordered_tasks(first)), *known]))


def _title(key: Key, turn: Turn) -> str:
    again = f", round {key[2] + 1}" if key[2] else ""
    return f"{task_name(turn.task)}: question {key[0]}, turn {key[1] + 1}{again}"


def _panels(sides: Mapping[str, Turn], vanilla: str, summary: Summary, names: Mapping[int, str]) -> Iterator[Panel]:
    """The methods' answers, and vanilla's own where one of them differs."""
    base = sides[vanilla]
    found = [sides[name] for name in summary.of_kind("method") if name in sides]
    for turn in found:
        audit = turn.audit
        verdict = "not compared token by token" if audit is None else f"{audit.verdict} to vanilla's"
        if audit is not None and audit.verdict != "identical":
            verdict = f"differs from vanilla's from token {(audit.position or 0) + 1} on ({audit.verdict})"
        yield _panel(summary.label(turn.method), turn, verdict, _stats(turn, base), names)
    if any(turn.token_ids != base.token_ids for turn in found):
        rate = number(decode_tok_per_s([base]), 1)
        yield _panel(summary.label(vanilla), base, "the baseline's own answer", [("tokens/s", rate)], names)


def _stats(turn: Turn, base: Turn) -> list[tuple[str, str]]:
    ours, theirs = decode_tok_per_s([turn]), decode_tok_per_s([base])
    return [
        ("tokens", f"{len(turn.token_ids):,}"),
        ("steps", f"{len(turn.per_step_emitted):,}"),
        ("CR", number(compression_rate([turn]))),
        ("tokens/s", number(ours, 1)),
        ("vanilla, tokens/s", number(theirs, 1)),
        ("speedup", times(ours / theirs if ours and theirs else None)),
    ]


def _panel(label: str, turn: Turn, verdict: str, stats: list[tuple[str, str]], names: Mapping[int, str]) -> Panel:
    audit = turn.audit
    diverges = audit.position if audit is not None and audit.verdict != "identical" else None
    limit = max(SHOWN_TOKENS, (diverges or 0) + 50)
    spans: list[Markup] = []
    shown = 0
    focusable = False
    for group in by_step(turn):
        group = group[: limit - shown]
        inner = Markup()
        for token in group:
            note = ""
            if shown == diverges:
                assert audit is not None
                note = "vanilla's answer ends here" if audit.vanilla_token is None else "vanilla's token here: "
                note += "" if audit.vanilla_token is None else _quoted(audit.vanilla_token, names)
            inner += _span(token, names, note, first_stop=not focusable)
            focusable = focusable or bool(token.losers or note)
            shown += 1
        spans.append(Markup('<span class="step">{}</span>').format(inner) if group else Markup())
    return Panel(label, verdict, stats, Markup().join(spans), len(turn.token_ids) - shown)


def _span(token: Token, names: Mapping[int, str], note: str, *, first_stop: bool) -> Markup:
    """One token. Of those with a tooltip only the first is a tab stop; the page's script handles arrow keys."""
    classes = ["t", token.origin]
    if token.confidence is not None:
        classes.append(f"c{min(int(token.confidence * SHADES), SHADES - 1) + 1}")
    classes += ["beat"] if token.losers else []
    classes += ["diverges"] if note else []
    story = "; ".join(part for part in (_story(token, names), note) if part)
    stop = Markup(' tabindex="{}"').format(0 if first_stop else -1) if token.losers or note else ""
    title = Markup(' title="{}"').format(story) if story else ""
    known = "" if token.token_id in names else " id"
    text = Markup('<i class="nl">{}</i>\n').format(NEWLINE).join(token_text(token.token_id, names).split("\n"))
    return Markup('<span class="{}"{}{}>{}</span>').format(" ".join(classes) + known, title, stop, text)


def _story(token: Token, names: Mapping[int, str]) -> str:
    if token.losers:
        beaten = ", ".join(_quoted(loser, names) + _sure(sure) for loser, sure in token.losers)
        return f"the target's own token; rejected draft{'s' if len(token.losers) > 1 else ''}: {beaten}"
    if token.confidence is not None:
        return f"accepted draft{_sure(token.confidence)}"
    return ""


def _quoted(token_id: int, names: Mapping[int, str]) -> str:
    return f"“{token_text(token_id, names)}”".replace("\n", NEWLINE)


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f" (confidence {number(confidence)})"
