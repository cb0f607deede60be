"""Can a recorded run be what it says? The checks of runs that others contribute. Pure but for reading files; no torch.

A record can be damaged, edited, or measured with a broken clock. What is checked here is what must hold on any machine:

- origin: the run is whole, of a known commit, and its model and questions are known by their digests;
- asked: every method has a turn, answered or failed, of everything that the run says it asked;
- output: what a lossless method said is vanilla's answer, token for token, or the record says that it is not;
- clock: the parts of a time add up to no more than the whole, and the tokens that steps counted are the answer's;
- costs: a step of the target takes at least as long as reading its weights, and a speedup is no more than its tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UserError
from bench.figures.checks import axis_values
from bench.figures.facts import commits, is_dirty
from bench.figures.findings import Findings, key_of, pairs_at, where
from bench.figures.metrics import vanilla_name
from bench.figures.plausible_costs import check_costs
from bench.figures.plausible_output import check_blocks, check_output
from bench.figures.records import MethodInfo, Run, Turn, read_records
from bench.figures.waves import Block, read_blocks
from bench.questions import MINI
from bench.typed_json import MismatchError, read

KNOWN = MINI.with_name("known.json")
_CLOCK = 0.01  # relative; clocks are read at several places
_ROUNDING_S = 1e-6  # of each recorded step


@dataclass(frozen=True)
class Source:
    """A model or a file of questions whose digest is known."""

    name: str
    source: str  # where anybody can get it
    tokenizer_sha256: str = ""
    chat_template_sha256: str = ""


@dataclass(frozen=True)
class Known:
    """Models and questions by their sha256, as runs record it."""

    models: dict[str, Source]
    questions: dict[str, Source]


def read_known() -> Known:
    """The digests that come with the project.

    Raises:
        UserError: the file is missing or malformed.

    """
    try:
        return read(Known, KNOWN)
    except (OSError, MismatchError) as error:
        raise UserError(f"{KNOWN} cannot be read ({error}): restore it") from error


def check_folder(folder: Path, known: Known | None = None) -> list[str]:
    """What is wrong with the run in `folder`: a sentence each; none if it is plausible."""
    try:
        run, turns = read_records(folder)
        blocks = read_blocks(folder, run)
        return check(run, turns, blocks, known or read_known())
    except UserError as error:
        return [str(error)]


def check(run: Run, turns: Sequence[Turn], blocks: Sequence[Block], known: Known) -> list[str]:
    """What is wrong with a run that was read.

    Raises:
        UserError: it has no vanilla.

    """
    found = Findings()
    answered = [turn for turn in turns if turn.error is None]
    _origin(run, known, found)
    _asked(run, turns, found)
    check_output(run, answered, found)
    check_blocks(run, answered, blocks, found)
    _clock(run, answered, blocks, found)
    check_costs(run, answered, blocks, found)
    return found.sentences()


def _origin(run: Run, known: Known, found: Findings) -> None:
    """Is the run whole, and does everybody know what was measured?"""
    if not run.complete:
        found.add("", "complete", "the run was interrupted: finish it with --resume")
    if not run.provenance.get("commit") and not run.provenance.get("packages", {}).get("roobench"):
        found.add("", "commit", "the run names neither a commit nor a version of Roobench: measure again with this one")
    if is_dirty(run.provenance):
        found.add("", "dirty", "the run was made with uncommitted changes: commit them and measure again")
    if len(several := commits(run.provenance)) > 1:
        named = ", ".join(commit[:7] for commit in several)
        found.add("", "commits", f"the run was resumed at another commit ({named}): measure all of it at one")
    _digest("model", run.model.get("name"), run.model.get("sha256"), known.models, found)
    _digest("questions", run.dataset.get("name"), run.dataset.get("sha256"), known.questions, found)
    if source := known.models.get(run.model.get("sha256") or ""):
        _text(source, "tokenizer", run.model.get("tokenizer_sha256"), source.tokenizer_sha256, found)
        _text(source, "chat template", run.model.get("chat_template_sha256"), source.chat_template_sha256, found)


def _text(source: Source, what: str, recorded: str | None, expected: str, found: Findings) -> None:
    """Prompts are a model's own only with its tokenizer and chat template; older records and sources lack them."""
    if recorded and expected and recorded != expected:
        found.add("", what, f"the {what} has the sha256 {recorded[:12]}, but {source.name}'s has {expected[:12]}")


def _digest(what: str, name: str | None, digest: str | None, known: dict[str, Source], found: Findings) -> None:
    if not digest:
        found.add("", what, f"the run records no sha256 of its {what}: measure again with this version")
    elif digest not in known:
        shown = f"{name} has the sha256 {digest[:12]}"
        found.add("", what, f"{what}: {shown}, which is not known: add it to {KNOWN.name} with where to get it")


def _asked(run: Run, turns: Sequence[Turn], found: Findings) -> None:
    """Was everybody asked what the run says, with the same prompts? A turn that failed was asked, too."""
    vanilla = vanilla_name(run)
    if run.complete:
        _counted(run, turns, vanilla, found)
        for name in (name for name, info in run.methods.items() if info.kind == "method"):
            there = {key_of(turn) for turn in turns if turn.method == name}
            for turn in turns:
                if turn.method == vanilla and key_of(turn) not in there:
                    place = where(replace(turn, method=name))
                    found.add(name, "missing", f"{place}: it is not there, but {vanilla} was asked it")
    for name in run.methods:
        for turn, base in pairs_at(run, turns, name, vanilla):
            if turn.prompt_digest and base.prompt_digest and turn.prompt_digest != base.prompt_digest:
                found.add(name, "prompt", f"{where(turn)}: its prompt is not the one that {vanilla} answered")


def _counted(run: Run, turns: Sequence[Turn], vanilla: str, found: Findings) -> None:
    """Was vanilla asked as many questions as the run says, in every round and at every value of its axis?"""
    said = run.dataset.get("questions")
    if said is None:
        found.add("", "asked", "the run does not record how many questions it asked: measure again with this version")
        return
    if "interleaved" in run.provenance:  # a gate ends as soon as it has decided, within a round
        return
    keys = {(turn.at, turn.round, turn.question_id) for turn in turns if turn.method == vanilla}
    rounds = run.config.get("rounds") or 1 + max((number for _, number, _ in keys), default=0)
    for at, number in itertools.product(axis_values(run.config), range(rounds)):
        many = sum(key[:2] == (at, number) for key in keys)
        if many != said:
            place = f"round {number + 1}" + ("" if at is None else f" at {at:g}")
            sentence = f"{vanilla} was asked {many} questions in {place}, but the run says that it asked {said}"
            found.add("", "asked", sentence)


def _clock(run: Run, turns: Sequence[Turn], blocks: Sequence[Block], found: Findings) -> None:
    """Times against their parts, tokens against those of the steps."""
    limit = run.config.get("max_new_tokens")
    for turn in turns:
        for kind, said in [*_counters(turn, run.methods[turn.method], limit), *_times(turn)]:
            found.add(turn.method, kind, f"{where(turn)}: {said}")
    for block in blocks:
        place = block.where
        for turn in block.turns:
            for kind, said in _counters(turn, run.methods[turn.method], limit):
                found.add(turn.method, f"batch {kind}", f"{place}, {where(turn)}: {said}")
        rows = zip(block.wall_s, block.draft_s, block.verify_s, strict=True)
        if any(_exceeds(draft + verify, wall, 1) for wall, draft, verify in rows):
            found.add(block.method, "wave", f"{place}: a wave takes less time than its drafting and verification")
    _wall(run, turns, blocks, found)


def _wall(run: Run, turns: Sequence[Turn], blocks: Sequence[Block], found: Findings) -> None:
    """The answers of each worker, one after the other, take no longer than the run."""
    spent_s: dict[str, list[float]] = {"": [s for block in blocks for s in block.wall_s]}
    for turn in turns:
        spent_s.setdefault(turn.worker, []).append(turn.prefill_s + turn.decode_s)
    for worker, own_s in spent_s.items():
        if run.wall_s and _exceeds(total_s := math.fsum(own_s), run.wall_s, 0):
            of = f" of worker {worker}" if worker else ""
            found.add("", "wall", f"answers{of} took {total_s:,.1f} s, but the whole run {run.wall_s:,.1f} s")


def _counters(turn: Turn, info: MethodInfo, limit: int | None) -> Iterator[tuple[str, str]]:
    """What is wrong with the counters of a turn: which rule, and how."""
    if limit is not None and len(turn.token_ids) > limit:
        yield "limit", f"it has {len(turn.token_ids)} tokens, but the limit was {limit}"
    if info.kind == "peer":
        return
    emitted = sum(turn.per_step_emitted)
    if emitted != turn.decode_tokens:
        yield "tokens", f"its steps add {emitted} tokens, but its answer has {turn.decode_tokens} after the prefill"
    columns = zip(turn.per_step_drafted, turn.per_step_accepted, turn.per_step_emitted, strict=True)
    for place, (drafted, accepted, added) in enumerate(columns, 1):
        if accepted > drafted:
            yield "accepted", f"step {place} accepts {accepted} of {drafted} drafts"
        elif not 0 <= added - accepted <= 1:
            yield "added", f"step {place} accepts {accepted} drafts and adds {added} tokens"
        elif info.kind == "vanilla" and (drafted, added) != (0, 1):
            yield "vanilla", f"step {place} of plain decoding drafts {drafted} and adds {added} tokens"


def _times(turn: Turn) -> Iterator[tuple[str, str]]:
    """What is wrong with the times of a turn."""
    many = len(turn.per_step_s)
    if turn.decode_tokens and not turn.decode_s:
        yield "no time", f"it decodes {turn.decode_tokens} tokens in no time"
    if turn.token_ids and not turn.prefill_s:
        yield "no prefill", "its prefill takes no time"
    if _exceeds(total := math.fsum(turn.per_step_s), turn.decode_s, many):
        yield "steps", f"its steps take {total:.4f} s, but all of its decoding {turn.decode_s:.4f} s"
    if _exceeds(total := turn.draft_s + turn.verify_s, turn.decode_s, many):
        yield "parts", f"drafting and verification take {total:.4f} s, but all of its decoding {turn.decode_s:.4f} s"


def _exceeds(parts_s: float, whole_s: float, many: int) -> bool:
    return parts_s > whole_s * (1 + _CLOCK) + many * _ROUNDING_S + _ROUNDING_S


def runs_below(folders: Iterable[Path]) -> list[Path]:
    """The folders of runs among `folders` and below them, each once, in order of their names.

    Raises:
        UserError: one of them has no run.

    """
    found: dict[Path, Path] = {}
    for folder in folders:
        below = sorted(path.parent for path in folder.rglob("run.json")) if folder.is_dir() else []
        if not below:
            raise UserError(f"{folder} has no run: give folders like results/runs/RUN_ID, or a folder above them")
        found |= {one.resolve(): one for one in below}
    return list(found.values())
