"""What a run leaves behind: steps, turns and the run itself, to and from JSON files.

A record holds question ids and answers' token ids, never the questions' text. Nothing here imports torch,
so that reports and comparisons can be made anywhere.

Files of a run, all under its folder:

- `run.json`      `Run`: configuration, provenance, methods with their knobs.
- `turns.jsonl`   one `Turn` a line, appended question by question.
- `batches.jsonl` with --batch: one `bench.figures.waves.Block` a line, appended block by block.
- `pieces.json`   token id -> its text, of all ids in the answers: a report needs no tokenizer.
- DERIVED         summary, tables, pages and plots: made of the above by `bench.report`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import jsonlines
from filelock import FileLock, Timeout
from pydantic import Field
from typing_extensions import TypedDict

from bench.errors import UserError
from bench.figures.checks import check_run, turn_check
from bench.figures.facts import DatasetFacts, EngineFacts, MemoryFacts, ModelFacts, PassCosts, Provenance
from bench.figures.machine import Machine, Worker
from bench.files import replacing
from bench.typed_json import (
    Count,
    FileName,
    Json,
    Key,
    MismatchError,
    Real,
    Seconds,
    Share,
    TokenId,
    decode,
    decode_lines,
    read,
)

SCHEMA = 2
QUANTIZED = ("q4",)  # a run's dtypes in which peers multiply float32 activations, and the target does not
# A run's dtypes in which a method's answers differ from vanilla's at rare ties only: states and sums are float32, and
# both run the same arithmetic.
FLOAT32_STATES = ("float32", *QUANTIZED)
RUN_FILE = "run.json"
TURNS_FILE = "turns.jsonl"
BATCHES_FILE = "batches.jsonl"  # of a run with --batch: see `bench.figures.waves`
TOKEN_TEXTS_FILE = "pieces.json"
SWEEP_FILE = "sweep.json"  # of a sweep, next to the records of its run
EXPORTED = "spec-bench"  # folder of `export`'s files
REFERENCE = Path("results/reference")  # our own runs that README.md shows
RUNS = Path("results/runs")  # where runs are kept by their id unless --out says otherwise
DERIVED = ("summary.json", "summary.csv", "report.md", "report.tex", "report.html", "plots")  # by bench.report


@dataclass(frozen=True, slots=True)
class Audit:
    """Is a method's answer vanilla's? Positions count from the answer's first token."""

    verdict: Annotated[str, Field(pattern="^(identical|numerical|different)$")]
    position: Count | None = None  # of the first divergence
    token: TokenId | None = None  # the method's there; None: its answer ended
    vanilla_token: TokenId | None = None
    gap: Real | None = None  # reference logit of vanilla's token minus the method's, over the common prefix
    tolerance: Real | None = None  # twice the measured logit error of the run's passes


@dataclass(slots=True)
class Turn:
    """One method's answer to one turn of one question in one round."""

    method: str
    question_id: Count
    task: str
    category: str
    turn: Count  # from 0
    round: Annotated[int, Field(ge=-1)]  # from 0; -1: a gate's warm-up, which no file keeps
    prompt_tokens: Count = 0
    token_ids: list[TokenId] = field(default_factory=list)  # the answer, EOS included where it was emitted
    prefill_s: Seconds = 0.0  # prompt in, first token out
    decode_s: Seconds = 0.0  # everything after that
    finish: Annotated[str, Field(pattern="^(eos|length)?$")] = ""
    per_step_drafted: list[Count] = field(default_factory=list)  # as proposed; empty for a peer
    per_step_accepted: list[Count] = field(default_factory=list)  # of the kept answer
    per_step_emitted: list[Count] = field(default_factory=list)  # of the kept answer
    per_step_depth: list[Count] = field(default_factory=list)  # drafts on a step's longest path; empty: not recorded
    per_step_calls: list[Count] = field(default_factory=list)  # runs of the draft model; empty: not recorded
    per_step_s: list[Seconds] = field(default_factory=list)  # drafting and verification; empty: not recorded
    per_step_part: list[Count] = field(default_factory=list)  # which member of a composition drafted; empty: no such
    per_step_scouts: list[Count] = field(default_factory=list)  # tokens verified besides the drafts; empty: none
    per_step_rejected: list[list[TokenId]] = field(default_factory=list)  # drafts that lost to a step's last token
    accepted_confidence: list[Share] = field(default_factory=list)  # of all accepted drafts, in order; empty: unknown
    rejected_confidence: list[Share] = field(default_factory=list)  # of all in `per_step_rejected`; empty: unknown
    draft_s: Seconds = 0.0  # sum over the steps, within decode_s
    verify_s: Seconds = 0.0  # likewise; what is left of decode_s is bookkeeping
    # Probe, untimed: at each position of vanilla's answer, how many of `probe_windows` drafts in a row are right there.
    windows: list[Count] | None = None
    first_tokens: Count = 1  # tokens that came with the prefill: a peer that drafts may get several from its first pass
    decode_passes: Count | None = None  # forward passes within decode_s, of a peer that counts them; None: not counted
    text: str = ""  # the answer without special tokens, stripped, as a second turn's prompt shows it

    @property
    def decode_tokens(self) -> int:
        """Tokens that `decode_s` was spent on."""
        return len(self.token_ids) - self.first_tokens

    # Against vanilla's answer, or that of the peer which this one has as its baseline. None for vanilla, for methods
    # that are not lossless, and for failed turns.
    audit: Audit | None = None
    error: str | None = None  # why the turn failed; every other figure is then void
    prompt_digest: Annotated[str, Field(pattern="^([0-9a-f]{16})?$")] = ""  # of the prompt's ids; empty: not recorded
    others_share: Share | None = None  # of the processors, used by other programs meanwhile; None: not recorded
    at: Real | None = None  # the value of the run's axis (a temperature or a prompt length); None: the run has none
    drafted: Count | None = None  # tokens, of a peer whose engine tells them; None: see `per_step_drafted`
    accepted: Count | None = None  # likewise
    worker: str = ""  # that answered, see `Run.workers`; "": the process of the run
    machine: str = ""  # the digest of the worker's machine


def prompt_digest(token_ids: Iterable[int]) -> str:
    """A prompt's digest as turns record it: 16 hexadecimal digits of the SHA-256 of its token ids."""
    return hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What a run records about one of its methods."""

    kind: Annotated[str, Field(pattern="^(vanilla|method|peer)$")]
    lossless: bool
    extra_parameters: Count  # weights that the method adds to the target
    config: dict[str, Json]  # every knob with its value, as asked for or as the weights say
    notes: dict[str, Json] = field(default_factory=dict)  # what the method reports about itself
    costs: PassCosts | None = None  # None: not known
    measured: dict[str, Json] = field(default_factory=dict)  # knobs left open, as they were measured or chosen
    family: str = ""  # how it drafts, in a word; "": not recorded

    @property
    def ran(self) -> dict[str, Any]:
        """Every knob as it ran."""
        return over(self.config, self.measured)


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What a run records about a method at a batch size, or on another kind of worker."""

    measured: dict[str, Json] = field(default_factory=dict)
    costs: PassCosts | None = None


def remembers_the_run(notes: Mapping[str, Any]) -> bool:
    """Return whether a method, by its notes, knew its answers to earlier questions, so that their order matters."""
    return "run" in str(notes.get("memory", "")).split(", ")


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Knobs: `above` in front of `below`, within the members of a composition as well."""
    members = (key for key in below.keys() & above.keys() if isinstance(below[key], dict))
    return below | above | {key: over(below[key], above[key]) for key in members if isinstance(above[key], dict)}


@dataclass(slots=True)
class Run:
    """Configuration and provenance of a run."""

    run_id: FileName
    command: str
    model: ModelFacts
    dataset: DatasetFacts
    machine: Machine
    dtype: str
    config: dict[str, Json]  # every setting of the run
    methods: dict[str, MethodInfo]  # by the name that tables show, vanilla first
    engine: EngineFacts
    provenance: Provenance
    complete: bool = True  # False: interrupted; the records are those finished until then
    wall_s: Seconds = 0.0
    memory: MemoryFacts = field(default_factory=lambda: MemoryFacts())
    # By batch size and method: knobs as measured or chosen for it, and costs in vanilla steps of the batch.
    batches: dict[str, dict[str, BatchInfo]] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)  # by name; empty: one process did it all
    # By kind of worker (`Machine.kind`) other than that of `machine`, and by method.
    kinds: dict[str, dict[str, BatchInfo]] = field(default_factory=dict)
    schema: int = SCHEMA


class _Schema(TypedDict):
    schema: int


Records = tuple[Run, list[Turn]]


def plots_of(run_dir: Path, run_id: str) -> Path:
    """The folder for a run's plots: next to those of other runs if the run is next to them, else within its own."""
    if run_dir.absolute() == (RUNS / run_id).absolute():
        return Path("plots") / run_id
    is_reference = run_dir.absolute().parent == REFERENCE.absolute()
    return Path("plots") / REFERENCE.name / run_dir.absolute().name if is_reference else run_dir / "plots"


@contextmanager
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when completely written.

    Raises:
        UserError: the folder cannot be written or the disk is full; an earlier file is then untouched.

    """
    try:
        # Made by `open`, so with the permissions that the user's umask leaves.
        with replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name with nothing behind it
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; free space there, or choose another folder") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder: two processes would mix or double its records. A killed process lets go by itself.

    Raises:
        UserError: another process holds it, or it cannot be written.

    """
    path = folder / ".roobench.lock"  # not a name of the user's: the file is removed in the end
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is at work in {folder}: wait for it, or choose another --out") from None
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; choose another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if nothing was written


def write_json(path: Path, value: Any) -> None:
    """Write `value` (dataclasses allowed) as indented JSON, atomically."""
    with atomic_writer(path) as file:
        json.dump(_plain(value), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def write_turns(path: Path, turns: Iterable[Any]) -> None:
    """Write one turn, or another record, a line, atomically."""
    with atomic_writer(path) as file:
        file.write(_lines(turns))


def append_turns(path: Path, turns: Iterable[Any], go_on: str) -> None:
    """Add one turn, or another record, a line; they are on the disk when this returns.

    Raises:
        UserError: the disk is full or the folder gone; the file is then unchanged. The message says how to `go_on`.

    """
    content = _lines(turns).encode()
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        reason = error.strerror or error
        raise UserError(
            f"cannot write {path}: {reason}; what was finished is kept: free space, then go on with {go_on}"
        ) from error


def _lines(turns: Iterable[Any]) -> str:
    text = io.StringIO()
    jsonlines.Writer(text, compact=True).write_all(dataclasses.asdict(turn) for turn in turns)
    return text.getvalue()


def read_run(folder: Path) -> Run:
    """The `run.json` of a run's folder.

    Raises:
        UserError: missing, written by another schema version, or malformed, with the field's name.

    """
    path = folder / RUN_FILE
    try:
        if (schema := read(_Schema, path, lenient=True)["schema"]) != SCHEMA:
            raise UserError(f"{path} has schema {schema}; this version reads {SCHEMA}: run the bench again")
        run = read(Run, path)
        check_run(run)
        return run
    except FileNotFoundError:
        raise UserError(f"{folder} is no run: it has no {RUN_FILE}; name a folder like results/runs/<run id>") from None
    except MismatchError as error:
        raise UserError(f"{path} is not a run's record: {error}; restore the file, or run the bench again") from error


def read_records(folder: Path) -> Records:
    """A run and its turns.

    Raises:
        UserError: as `read_run` and `read_turns`; or a turn that cannot be of this run, or is there twice.

    """
    run = read_run(folder)
    return run, read_turns(folder, run)


def read_turns(folder: Path, run: Run | None = None) -> list[Turn]:
    """The `turns.jsonl` of a run's folder, without a last line that a killed run left half written.

    Raises:
        UserError: missing or malformed, or not of `run`, with the line's number and the field's name.

    """
    path = folder / TURNS_FILE
    is_complete = run is not None and run.complete
    turns = decode_lines(Turn, whole_lines(path, is_complete), path, "a turn's record", check=turn_check(run))
    if is_complete and not turns:
        raise UserError(f"{path} has no turns, but {RUN_FILE} says that the run is complete; restore the file")
    return turns


def whole_lines(path: Path, is_complete: bool) -> bytes:
    """The content of a file of records; of a run that is not complete, without a last line that is half written.

    Raises:
        UserError: it cannot be read.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; restore the file") from error
    whole, _, torn = content.rpartition(b"\n")
    with contextlib.suppress(MismatchError):  # only the line's end may be missing
        if not is_complete:
            decode(dict[str, Any], torn)
        whole = content
    return whole


def read_token_texts(folder: Path) -> dict[str, str]:
    """The `pieces.json` of a run's folder; empty where there is none.

    Raises:
        UserError: malformed.

    """
    path = folder / TOKEN_TEXTS_FILE
    try:
        return read(dict[Key, str], path)
    except FileNotFoundError:
        return {}
    except MismatchError as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and tokens are shown by their ids") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
