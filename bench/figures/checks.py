"""What types do not say about a run's records: fields that must fit each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from bench.config import RunConfig
from bench.errors import UserError, did_you_mean
from bench.figures.summary import OVERALL
from bench.typed_json import Count, MismatchError, decode_value

if TYPE_CHECKING:
    from bench.figures.records import Run, Turn

_PER_STEP = ("per_step_drafted", "per_step_accepted")
_PER_STEP_IF_KNOWN: tuple[str, ...] = ("per_step_depth", "per_step_calls", "per_step_s", "per_step_part")
_PER_STEP_IF_KNOWN += ("per_step_scouts", "per_step_rejected")
_TOLD_BY_PEERS = ("decode_passes", "drafted", "accepted")


class _Notes(TypedDict, total=False):
    """Notes of a method that figures are computed with."""

    parts: list[str]
    probe_windows: Count
    caution: str


def check_run(run: Run) -> None:
    """Raise MismatchError if settings, notes or kinds of methods are not what figures are computed with."""
    try:
        settings = {name: value for name, value in run.config.items() if name != "out"}  # a path of another machine
        decode_value(RunConfig, settings, lenient=True)
    except (MismatchError, UserError) as error:
        raise MismatchError(f"config: {error}") from error
    baselines = [label for label, info in run.methods.items() if info.kind == "vanilla"]
    if len(baselines) > 1:
        raise MismatchError(f"methods: {' and '.join(baselines)} are both of kind vanilla, which one method is")
    for label, info in run.methods.items():
        try:
            decode_value(_Notes, info.notes, lenient=True)
        except MismatchError as error:
            raise MismatchError(f"methods.{label}.notes.{error}") from error


def axis_values(config: Mapping[str, Any]) -> list[float | None]:
    """The values of the axis of a run's settings; [None] without one."""
    return list(config.get("temperatures") or sorted(config.get("prompt_lengths") or []) or [None])


def own_baseline(run: Run, name: str) -> str:
    """The other method of the run whose answers a peer's are held against; empty: vanilla's, as those of all others."""
    info = run.methods[name]
    other = str(info.notes.get("baseline", ""))
    return other if info.kind == "peer" and other in run.methods and other != name else ""


def turn_check(run: Run | None) -> Callable[[Turn], None]:
    """A check to call with each turn in the file's order; it raises MismatchError. No `run`: turns alone."""
    seen: set[tuple[str, int, int, int, float | None]] = set()

    def check(turn: Turn) -> None:
        _check_alone(turn)
        if run is None:
            return
        _check_in(turn, run)
        key = (turn.method, turn.question_id, turn.turn, turn.round, turn.at)
        if key in seen:
            raise MismatchError(
                f"{turn.method} answered question {turn.question_id}, turn {turn.turn}, in round {turn.round} before"
            )
        seen.add(key)

    return check


def _check_alone(turn: Turn) -> None:
    if turn.round < 0:
        raise MismatchError(f"round: must be at least 0, not {turn.round}")
    if turn.task == OVERALL:
        raise MismatchError(f"task: {OVERALL!r} is the name of the tasks' mean")
    steps = len(turn.per_step_emitted)
    for name in (*_PER_STEP, *_PER_STEP_IF_KNOWN):
        found = len(getattr(turn, name))
        if found != steps and (found or name in _PER_STEP):
            raise MismatchError(f"{name}: has {found} steps, but per_step_emitted has {steps}")
    if turn.error is None and len(turn.token_ids) < max(turn.first_tokens, 1):
        raise MismatchError(f"token_ids: has {len(turn.token_ids)} tokens, but {turn.first_tokens} from the prefill")
    if turn.decode_passes and turn.decode_passes > turn.decode_tokens:
        raise MismatchError(f"decode_passes: {turn.decode_passes} for {turn.decode_tokens} tokens after the prefill")
    if max(turn.per_step_emitted, default=0) > len(turn.token_ids):
        raise MismatchError(f"per_step_emitted: a step has more tokens than the answer's {len(turn.token_ids)}")


def _check_in(turn: Turn, run: Run) -> None:
    info = run.methods.get(turn.method)
    if info is None:
        raise MismatchError(f"method: {turn.method!r} is not in run.json{did_you_mean(turn.method, run.methods)}")
    rounds = run.config.get("rounds")
    if rounds is not None and turn.round >= rounds and "interleaved" not in run.provenance:  # a gate asks on and on
        raise MismatchError(f"round: {turn.round} is beyond the run's {rounds} rounds, which count from 0")
    if turn.at not in (values := axis_values(run.config)):
        raise MismatchError(f"at: {turn.at} is none of the run's values, {values}")
    if turn.worker and turn.worker not in run.workers:
        raise MismatchError(f"worker: {turn.worker!r} is not in run.json{did_you_mean(turn.worker, run.workers)}")
    if info.kind != "peer":
        _check_counted(turn, info.kind)
    parts = info.notes.get("parts")
    if parts and max(turn.per_step_part, default=0) >= len(parts):
        raise MismatchError(
            f"per_step_part: {max(turn.per_step_part)} is beyond the {len(parts)} members of the method"
        )


def _check_counted(turn: Turn, kind: str) -> None:
    """The steps of vanilla and of methods are counted one by one: none of their figures is what they tell."""
    of = f"{turn.method} is of kind {kind}"
    for name in _TOLD_BY_PEERS:
        if (told := getattr(turn, name)) is not None:
            raise MismatchError(f"{name}: is {told}, but only peers tell it, and {of}")
    if turn.first_tokens != 1:
        raise MismatchError(f"first_tokens: is {turn.first_tokens}, but only peers have other than 1, and {of}")
