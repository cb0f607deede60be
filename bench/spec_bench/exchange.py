"""Answer files in Spec-Bench's format: a run written as such, and those of any harness read and compared. No torch.

A line is `{question_id, category, answer_id, model_id, choices: [{index, turns, decoding_steps, new_tokens, wall_time,
accept_lengths}], tstamp}`, as `evaluation/eval.py` of Spec-Bench (Xia et al., arXiv 2401.07851) writes it and its
`speed.py` and `equal.py` read it. Lists have an entry a turn, `accept_lengths` one a step, flat over the turns.

What we write:

- `turns`: the answers' text without special tokens, stripped, as Spec-Bench has it.
- `new_tokens`: all tokens of the answer, EOS included, as Spec-Bench's baseline counts them.
- `wall_time`: seconds of prefill and decoding together; the extra key `prefill_s` has the prefill's part.
- `accept_lengths`: tokens that each verification pass emitted; `decoding_steps`: how many passes. The prefill is no
  step, so a turn's lengths add up to `new_tokens` - 1, and their mean over a file is CR. (Spec-Bench's loops count the
  prefill's token with the first pass, its baseline counts the prefill as a step of one token, and `decoding_steps` is
  there the number of tokens, of passes, or one less: it means nothing across methods.) A peer has no steps: [] in both.
- `tstamp`: when the run began; `token_ids` and `run_id` are extra keys as well.
"""

from __future__ import annotations

import datetime
import json
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from bench.errors import UserError
from bench.figures import metrics
from bench.figures.axis import at_first
from bench.figures.records import TOKEN_TEXTS_FILE, Run, Turn, atomic_writer, read_records, read_token_texts
from bench.files import read_bounded
from bench.questions import task_of
from bench.typed_json import Count, FileName, Json, MismatchError, Seconds, decode_lines
from bench.typed_json import decode as decode_json

REPLACEMENT = "\ufffd"  # what a decoder writes for a token that is only part of a character


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    paths: list[Path]
    inexact: int  # answers whose text was joined from token texts that hold only parts of characters


def export(run_dir: Path, out_dir: Path, decode: Callable[[Sequence[int]], str] | None = None) -> Exported:
    """Write a run as Spec-Bench's answer files: one a method, in a folder `run_N` a round where there are several.

    Only questions that nobody failed are written, sorted by id. Spec-Bench's scripts do not pair questions, so a method
    that answered fewer than vanilla (a peer) gets a baseline of its own, `vanilla-for-<method>.jsonl`. The text comes
    from `decode` (token ids -> text) where given, else from the records.

    Raises:
        UserError: no run there, nothing in it is finished, its texts are not known, or `out_dir` cannot be written.

    """
    run, turns = read_records(run_dir)
    turns = at_first(run, turns)
    failed = {turn.question_id for turn in turns if turn.error is not None}
    kept = [turn for turn in turns if turn.question_id not in failed]
    vanilla = next((name for name, info in run.methods.items() if info.kind == "vanilla"), None)
    if vanilla is None or not any(turn.method == vanilla for turn in kept):
        raise UserError(f"{run_dir} holds no question that vanilla finished: there is nothing to export")
    texts = _Texts(run_dir, decode)
    rounds = sorted({turn.round for turn in kept})
    files: dict[Path, list[Turn]] = {}
    for number in rounds:
        folder = out_dir / f"run_{number + 1}" if len(rounds) > 1 else out_dir
        asked = {turn.question_id for turn in kept if turn.method == vanilla and turn.round == number}
        for name, slug in _slugs(run.methods, vanilla).items():
            pairs = [pair for pair in metrics.pairs(kept, name, vanilla) if pair[0].round == number]
            if not pairs:
                continue
            files[folder / f"{slug}.jsonl"] = [turn for turn, _ in pairs]
            if {turn.question_id for turn, _ in pairs} != asked:
                files[folder / f"vanilla-for-{slug}.jsonl"] = [partner for _, partner in pairs]
    for path in files:
        _check_replaceable(path, run)
    for path, side in files.items():
        with atomic_writer(path) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(run, side, texts))
    return Exported(list(files), texts.inexact)


class _Export(TypedDict):
    """What identifies an answer file of ours."""

    run_id: FileName


def _check_replaceable(path: Path, run: Run) -> None:
    """Refuse to replace a file that is not an export of this very run."""
    try:
        with path.open("rb") as file:
            found = decode_json(_Export, file.readline(), lenient=True)["run_id"]
    except FileNotFoundError:
        return
    except (OSError, MismatchError):
        found = ""
    if found != run.run_id:
        raise UserError(f"{path} is not an export of run {run.run_id}, and is kept: choose another folder with --out")


def _slugs(names: Iterable[str], vanilla: str) -> dict[str, str]:
    """Each method's file name without its ending, all different."""
    slugs = {vanilla: "vanilla"}
    for name in names:
        if name not in slugs:
            slug = stem = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "method"
            number = 1
            while slug in slugs.values():
                number += 1
                slug = f"{stem}-{number}"
            slugs[name] = slug
    return slugs


def _rows(run: Run, turns: Iterable[Turn], texts: _Texts) -> list[dict[str, Any]]:
    """One method's answers in one round, a question a row."""
    by_question: dict[int, list[Turn]] = {}
    for turn in turns:
        by_question.setdefault(turn.question_id, []).append(turn)
    return [_row(run, sorted(by_question[i], key=lambda turn: turn.turn), texts) for i in sorted(by_question)]


def _row(run: Run, turns: Sequence[Turn], texts: _Texts) -> dict[str, Any]:
    first = turns[0]
    stepping = run.methods[first.method].kind != "peer"
    name = f"{run.run_id}/{first.method}/{first.question_id}/{first.round}"
    started = run.provenance.get("started")
    choice = {
        "index": 0,
        "turns": [texts.of(turn) for turn in turns],
        "decoding_steps": [len(turn.per_step_emitted) for turn in turns] if stepping else [],
        "new_tokens": [len(turn.token_ids) for turn in turns],
        "wall_time": [turn.prefill_s + turn.decode_s for turn in turns],
        "accept_lengths": [length for turn in turns for length in turn.per_step_emitted],
        "prefill_s": [turn.prefill_s for turn in turns],
        "token_ids": [turn.token_ids for turn in turns],
    }
    return {
        "question_id": first.question_id,
        "category": first.category,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, name).hex,  # the same whenever the run is exported
        "model_id": f"{run.model.get('name')}-{first.method}",
        "choices": [choice],
        "tstamp": datetime.datetime.fromisoformat(started).timestamp() if started else None,
        "run_id": run.run_id,
    }


class _Texts:
    """The text of a run's answers: decoded, as recorded, or, in records from before that, joined from token texts."""

    def __init__(self, run_dir: Path, decode: Callable[[Sequence[int]], str] | None):
        self.inexact = 0
        self.run_dir, self.decode = run_dir, decode
        self.token_texts = {} if decode else read_token_texts(run_dir)

    def of(self, turn: Turn) -> str:
        """The answer without special tokens, stripped."""
        if self.decode is not None:
            return self.decode(turn.token_ids).strip()
        ids = turn.token_ids[:-1] if turn.finish == "eos" else turn.token_ids
        if turn.text or not ids:
            return turn.text
        try:
            text = "".join(self.token_texts[str(token)] for token in ids)
        except KeyError as error:
            raise UserError(
                f"{self.run_dir} holds no texts (token {error} is not in {TOKEN_TEXTS_FILE}): name its model with "
                "--model"
            ) from error
        self.inexact += REPLACEMENT in text
        return text.strip()


@dataclass(frozen=True)
class ForeignAnswer:
    """One question's answer in a file of any harness, an entry a turn; only the first choice, as in `speed.py`.

    Not a `Turn`: the fields that such a file cannot fill (token ids, prefill apart, drafts) would read as measured 0.
    """

    question_id: int
    category: str  # empty where the file has none
    model_id: str
    texts: tuple[str, ...]
    new_tokens: tuple[int, ...]
    wall_s: tuple[float, ...]  # prefill and decoding
    accept_lengths: tuple[int, ...]  # tokens of each pass, flat over the turns; () where unknown
    passes: tuple[int, ...]  # of each turn, from `idxs`; () where unknown

    @property
    def task(self) -> str:
        """One of Spec-Bench's six, or the category of another file."""
        return task_of(self.category, len(self.texts))


def mean_accepted(answers: Sequence[ForeignAnswer]) -> tuple[float | None, int]:
    """Mean tokens of a pass, pooled over all answers, and the number of passes; None and 0 where unknown."""
    known = [answer for answer in answers if answer.accept_lengths or answer.passes]
    passes = sum(len(answer.accept_lengths) or sum(answer.passes) for answer in known)
    tokens = sum(sum(answer.accept_lengths or answer.new_tokens) for answer in known)
    return (tokens / passes if passes else None), passes


def read_answers(path: Path) -> dict[int, ForeignAnswer]:
    """A file's answers by question id; of two to one question the later counts, as in Spec-Bench's `eval.py`.

    Raises:
        UserError: unreadable, empty, or a line is not an answer (with its number).

    """
    try:
        content = read_bounded(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give a file of JSON lines") from error
    what = "an answer in Spec-Bench's format"
    lines = decode_lines(_Line, content, path, what, check=_check, lenient=True)
    if not lines:
        raise UserError(f"{path} holds no answers: give a file of one JSON object a question")
    return {line["question_id"]: _foreign(line) for line in lines}


def _as_list(value: Any) -> Any:
    """Some harnesses write a single turn without its list."""
    return [value] if isinstance(value, str) else value


def _flat(value: Any) -> Any:
    """Some harnesses nest the passes of a turn, or write null for none."""
    items = (value or []) if isinstance(value, list | None) else [value]
    return [item for one in items for item in (one if isinstance(one, list) else [one])]


_PassTokens = Annotated[int, Field(ge=0, le=4096)]


class _Choice(TypedDict, total=False):
    """An answer's first choice. Other fields are ignored."""

    turns: Required[Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]]
    new_tokens: Required[list[Count]]
    wall_time: Required[list[Seconds]]
    accept_lengths: Annotated[list[_PassTokens], BeforeValidator(_flat)]
    idxs: Annotated[list[Count], BeforeValidator(_flat)]  # of older harnesses: the index of each turn's last pass


class _Line(TypedDict, total=False):
    """One question's answer. Other fields are ignored."""

    question_id: Required[Count]
    category: str
    model_id: Json
    choices: Required[Annotated[list[_Choice], Field(min_length=1)]]


def _check(line: _Line) -> None:
    choice = line["choices"][0]
    lengths = [len(choice["turns"]), len(choice["new_tokens"]), len(choice["wall_time"])]
    if len(set(lengths)) > 1:
        raise MismatchError("choices[0]: has {} turns, {} new_tokens and {} wall_time".format(*lengths))
    if sum(choice["wall_time"]) <= 1e-9:
        raise MismatchError(f"choices[0].wall_time: {choice['wall_time']} adds up to nothing")
    if len(idxs := choice.get("idxs", [])) not in (0, lengths[0]):
        raise MismatchError(f"choices[0].idxs: has {len(idxs)} entries for {lengths[0]} turns")


def _foreign(line: _Line) -> ForeignAnswer:
    choice = line["choices"][0]
    return ForeignAnswer(
        line["question_id"],
        line.get("category", ""),
        str(line.get("model_id")),
        tuple(choice["turns"]),
        tuple(choice["new_tokens"]),
        tuple(choice["wall_time"]),
        tuple(choice.get("accept_lengths", [])),
        tuple(index + 1 for index in choice.get("idxs", [])),
    )
