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
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.figures import metrics
from bench.figures.records import PIECES_FILE, Run, Turn, atomic_writer, read_pieces, read_records
from bench.questions import MT_BENCH_CATEGORIES

REPLACEMENT = "\ufffd"  # what a decoder writes for a token that is only part of a character


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    paths: list[Path]
    inexact: int  # answers whose text was joined from pieces that hold only parts of characters


def export(run_dir: Path, out_dir: Path, decode: Callable[[Sequence[int]], str] | None = None) -> Exported:
    """Write a run as Spec-Bench's answer files: one a method, in a folder `run_N` a round where there are several.

    Only questions that nobody failed are written, sorted by id. Spec-Bench's scripts do not pair questions, so a method
    that answered fewer than vanilla (a peer) gets a baseline of its own, `vanilla-for-<method>.jsonl`. The text comes
    from `decode` (token ids -> text) where given, else from the records.

    Raises:
        UserError: no run there, nothing in it is finished, its texts are not known, or `out_dir` cannot be written.

    """
    run, turns = read_records(run_dir)
    failed = {turn.question_id for turn in turns if turn.error is not None}
    kept = [turn for turn in turns if turn.question_id not in failed]
    vanilla = next((name for name, info in run.methods.items() if info.kind == "vanilla"), None)
    if vanilla is None or not any(turn.method == vanilla for turn in kept):
        raise UserError(f"{run_dir} holds no question that vanilla finished: there is nothing to export")
    texts = _Texts(run_dir, decode)
    rounds = sorted({turn.round for turn in kept})
    paths = []
    for number in rounds:
        folder = out_dir / f"run_{number + 1}" if len(rounds) > 1 else out_dir
        asked = {turn.question_id for turn in kept if turn.method == vanilla and turn.round == number}
        for name, slug in _slugs(run.methods, vanilla).items():
            pairs = [pair for pair in metrics.pairs(kept, name, vanilla) if pair[0].round == number]
            if not pairs:
                continue
            sides = {slug: [turn for turn, _ in pairs]}
            if {turn.question_id for turn, _ in pairs} != asked:
                sides[f"vanilla-for-{slug}"] = [partner for _, partner in pairs]
            for stem, side in sides.items():
                paths.append(folder / f"{stem}.jsonl")
                with atomic_writer(paths[-1]) as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(run, side, texts))
    return Exported(paths, texts.inexact)


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
    """The text of a run's answers: decoded, as recorded, or, in records from before that, joined from pieces."""

    def __init__(self, run_dir: Path, decode: Callable[[Sequence[int]], str] | None):
        self.inexact = 0
        self.run_dir, self.decode = run_dir, decode
        self.pieces = {} if decode else read_pieces(run_dir)

    def of(self, turn: Turn) -> str:
        """The answer without special tokens, stripped."""
        if self.decode is not None:
            return self.decode(turn.token_ids).strip()
        ids = turn.token_ids[:-1] if turn.finish == "eos" else turn.token_ids
        if turn.text or not ids:
            return turn.text
        try:
            text = "".join(self.pieces[str(token)] for token in ids)
        except KeyError as error:
            raise UserError(
                f"{self.run_dir} holds no texts (token {error} is not in {PIECES_FILE}): name its model with --model"
            ) from error
        self.inexact += REPLACEMENT in text
        return text.strip()


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of a JSON file that is not empty."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        value = json.loads(line)
                    except ValueError as error:
                        raise UserError(
                            f"{path}, line {number}: not JSON ({error}): mend or remove the line"
                        ) from error
                    yield number, value
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): give a file of JSON lines") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give a file of JSON lines") from error


@dataclass(frozen=True)
class ForeignAnswer:
    """One question's answer in a file of any harness, an entry a turn; only the first choice, as in `speed.py`.

    Not a `Turn`: the fields that such a file cannot fill (token ids, prefill apart, drafts) would read as measured 0.
    """

    question_id: int
    category: str
    model_id: str
    texts: tuple[str, ...]
    new_tokens: tuple[int, ...]
    wall_s: tuple[float, ...]  # prefill and decoding
    decoding_steps: tuple[int, ...]  # () where unknown; tokens, passes or passes - 1, as the harness pleased
    accept_lengths: tuple[int, ...]  # tokens of each pass, flat over the turns; () where unknown

    @property
    def task(self) -> str:
        """One of Spec-Bench's six, or the category of another file."""
        return "mt_bench" if self.category in MT_BENCH_CATEGORIES else self.category


def is_answer_file(path: Path) -> bool:
    """Whether the first line is an answer in Spec-Bench's format; the rest may still be malformed."""
    try:
        _, value = next(_lines(path))
        choice = value["choices"][0]
        return "question_id" in value and {"turns", "new_tokens", "wall_time"} <= choice.keys()
    except (UserError, StopIteration, KeyError, IndexError, TypeError, AttributeError):
        return False


def read_answers(path: Path) -> dict[int, ForeignAnswer]:
    """A file's answers by question id; of two to one question the later counts, as in Spec-Bench's `eval.py`.

    Raises:
        UserError: unreadable, empty, or a line is not an answer (with its number).

    """
    answers: dict[int, ForeignAnswer] = {}
    for number, value in _lines(path):
        try:
            answer = _foreign(value)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            fault = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path}, line {number}: not an answer in Spec-Bench's format ({fault}): mend or remove it"
            ) from error
        answers[answer.question_id] = answer
    if not answers:
        raise UserError(f"{path} holds no answers: give a file of one JSON object a question")
    return answers


def _foreign(value: Any) -> ForeignAnswer:
    choice = value["choices"][0]
    turns = choice["turns"]
    texts = (turns,) if isinstance(turns, str) else tuple(turns)  # a single turn stands bare in some harnesses' files
    new_tokens = _numbers(choice["new_tokens"], "new_tokens", whole=True)
    wall_s = _numbers(choice["wall_time"], "wall_time")
    steps = choice.get("decoding_steps", choice.get("idxs"))
    if not len(texts) == len(new_tokens) == len(wall_s) > 0:
        raise ValueError(f"{len(texts)} turns, {len(new_tokens)} new_tokens and {len(wall_s)} wall_time")
    if sum(wall_s) <= 0:
        raise ValueError(f"wall_time {list(wall_s)} adds up to nothing")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("turns must be texts")
    if not isinstance(value["question_id"], int) or not isinstance(value["category"], str):
        raise ValueError("question_id must be an integer and category a name")
    return ForeignAnswer(
        value["question_id"],
        value["category"],
        str(value.get("model_id")),
        texts,
        tuple(map(int, new_tokens)),
        wall_s,
        tuple(map(int, _numbers(steps or [], "decoding_steps", whole=True))),
        tuple(map(int, _numbers(_flat(choice.get("accept_lengths") or []), "accept_lengths", whole=True))),
    )


def _numbers(values: Any, name: str, *, whole: bool = False) -> tuple[float, ...]:
    """The numbers of a list, none of them negative."""
    for number in values:
        good = isinstance(number, int if whole else int | float) and not isinstance(number, bool)
        if not good or not 0 <= number < math.inf:
            raise ValueError(f"{name} holds {number!r}")
    return tuple(values)


def _flat(values: Iterable[Any]) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]
