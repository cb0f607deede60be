"""What a run leaves in its folder: its record, its turns question by question, the text of their tokens."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import methods
from bench.errors import UserError
from bench.figures.records import (
    DERIVED,
    EXPORTED,
    PIECES_FILE,
    RUN_FILE,
    TURNS_FILE,
    MethodInfo,
    Run,
    Turn,
    append_turns,
    read_pieces,
    write_json,
    write_turns,
)
from bench.models.chat import ChatFormat
from bench.models.loading import engine_facts
from bench.run import environment
from bench.run.command import Command, Place
from bench.run.contestants import Contestant
from bench.run.examiner import Examiner, Warnings
from bench.run.memory import merged


class Recorder:
    """The files of one run while it asks; afterwards, what it has left."""

    def __init__(self, place: Place, record: Run, chat: ChatFormat, go_on: str):
        """`go_on`: how the user goes on with the run if it is interrupted, for messages."""
        self.place, self.record, self.chat, self.go_on = place, record, chat, go_on
        self.turns: list[Turn] = []
        self.pieces: dict[str, str] = {}
        self._before = (record.wall_s, record.memory)  # this session's come on top

    def begin(self) -> None:
        """Set an earlier run in the folder aside; the record is written now, so that a killed run can be reported."""
        _set_aside_earlier_run(self.place.folder)
        self.save()
        write_turns(self.place.folder / TURNS_FILE, [])

    def take_over(self, turns: Sequence[Turn]) -> None:
        """What earlier sessions of the run have finished, which is in the folder."""
        self.pieces = read_pieces(self.place.folder)
        self.save()
        self.turns += turns
        self._spell(turns)  # a kill may have come between a question's records and their spelling

    def keep(self, turns: Sequence[Turn]) -> None:
        """A question's records, and the text of every token in them: a report needs no tokenizer to show answers."""
        append_turns(self.place.folder / TURNS_FILE, turns, self.go_on)
        self.turns += turns
        self._spell(turns)

    def note(self, wall_s: float, others_share: float, memory: dict[str, Any]) -> None:
        """What this session has taken so far."""
        before_s, before = self._before
        session = self.record.provenance["sessions"][-1]
        session["wall_s"], session["others_share"] = wall_s, round(others_share, 4)
        self.record.wall_s, self.record.memory = before_s + wall_s, merged(before, memory)
        self.save()

    def save(self) -> None:
        """Write the run's record as it is."""
        write_json(self.place.folder / RUN_FILE, self.record)

    def _spell(self, turns: Sequence[Turn]) -> None:
        ids = {token for turn in turns for token in turn.token_ids}
        ids |= {token for turn in turns for step in turn.per_step_rejected for token in step}
        if new := {str(token) for token in ids} - self.pieces.keys():
            self.pieces |= {token: self.chat.piece(int(token)) for token in sorted(new, key=int)}
            write_json(self.place.folder / PIECES_FILE, self.pieces)


def describe(command: Command, examiner: Examiner, infos: dict[str, MethodInfo]) -> Run:
    """The record of a run as it begins: not complete. Warnings that come later join it."""
    loaded, asked = examiner.loaded, command.plan.questions
    checkpoint, target = loaded.checkpoint, loaded.target
    software = environment.describe_software()
    session = {key: software[key] for key in ("commit", "dirty", "load_1min")}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session |= {"started": now, "wall_s": 0.0, "warnings": list(examiner.warnings.texts)}
    return Run(
        run_id=command.place.run_id,
        command=environment.command_line(),
        model={
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "sha256": checkpoint.sha256,
            "parameters": target.parameters,
            "chat_template": loaded.chat.template,
        },
        dataset={
            "name": asked.name,
            "sha256": asked.sha256,
            "questions": len(asked.questions),
            "tasks": asked.tasks,
        },
        device=environment.describe_device(target.device),
        dtype=target.precision,
        config=dataclasses.asdict(examiner.config),
        methods=infos,
        engine=engine_facts(target),
        provenance={
            "started": command.started.isoformat(timespec="seconds"),
            **software,
            "warnings": examiner.warnings.texts,
            "sessions": [session],
        },
        complete=False,
    )


def describe_method(contestant: Contestant, costs: dict[str, Any] | None) -> MethodInfo:
    """What a run's record says of a contestant; `costs`: of its passes, see `contestants.pass_costs`."""
    kind = "vanilla" if contestant.label == methods.BASELINE else "peer" if contestant.is_peer else "method"
    runner = contestant.runner
    notes = runner.notes | ({"probe_windows": contestant.windows} if contestant.windows else {})
    config = dataclasses.asdict(runner.config)
    return MethodInfo(kind, runner.lossless, runner.extra_parameters, config, notes, costs)


def continued(begun: Run, now: Run, warnings: Warnings) -> Run:
    """The record of a run that goes on: as it was begun, with one more session."""
    begun.provenance.setdefault("sessions", []).extend(now.provenance["sessions"])
    told = [*begun.provenance.get("warnings", []), *now.provenance["warnings"]]
    begun.provenance["warnings"] = warnings.texts = list(dict.fromkeys(told))
    return begun


def _set_aside_earlier_run(folder: Path) -> None:
    """Move an earlier run that is in `folder` into a folder of its own there, so that it is not lost."""
    try:
        if (folder / RUN_FILE).is_file():
            earlier = folder / json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("run_id", "earlier")
            earlier.mkdir()
            for name in (RUN_FILE, TURNS_FILE, PIECES_FILE, *DERIVED, EXPORTED):
                if (folder / name).exists():
                    (folder / name).rename(earlier / name)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot use {folder} for results: {error}; choose another folder with --out") from error
