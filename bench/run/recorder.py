"""What a run leaves in its folder: its record, its turns question by question, the text of their tokens."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

import torch

import methods
from bench.drafting.method import QUESTION, Method, Peer
from bench.figures.facts import EngineFacts, MemoryFacts, PassCosts, Session
from bench.figures.records import (
    BATCHES_FILE,
    RUN_FILE,
    TOKEN_TEXTS_FILE,
    TURNS_FILE,
    MethodInfo,
    Run,
    Turn,
    append_turns,
    read_token_texts,
    write_json,
    write_turns,
)
from bench.figures.waves import Block
from bench.models.chat import ChatFormat, template_digest, tokenizer_digest
from bench.models.loading import engine_facts
from bench.progress import Log
from bench.run import environment
from bench.run.contestants import Contestant
from bench.run.examiner import Examiner, Warnings
from bench.run.folder import set_aside
from bench.run.memory import cache_bytes_per_token, merged
from bench.run.plan import Plan
from bench.typed_json import decode_value


class Recorder:
    """The files of one run while it asks; afterwards, what it has left."""

    def __init__(self, plan: Plan, record: Run, chat: ChatFormat):
        self.plan, self.record, self.chat, self.folder = plan, record, chat, plan.folder
        self.turns: list[Turn] = []
        self.blocks: list[Block] = []
        self.token_texts: dict[str, str] = {}
        self._before = (record.wall_s, record.memory)  # this session's come on top

    def begin(self, log: Log) -> None:
        """Move an earlier run in the folder aside. The record is written now, so that a killed run can be reported."""
        if (moved := set_aside(self.folder)) is not None:
            log(f"the earlier run in {self.folder} was moved to {moved}")
        self.save()
        write_turns(self.folder / TURNS_FILE, [])

    def take_over(self, turns: Sequence[Turn], blocks: Sequence[Block]) -> None:
        """What earlier sessions of the run have finished, which is in the folder."""
        self.token_texts = read_token_texts(self.folder)
        self.save()
        self.turns += turns
        self.blocks += blocks
        # A kill may have come between a question's records and their spelling.
        self._spell([*turns, *(turn for block in blocks for turn in block.turns)])

    def keep(self, turns: Sequence[Turn]) -> None:
        """A question's records, and the text of every token in them: a report needs no tokenizer to show answers."""
        append_turns(self.folder / TURNS_FILE, turns, self.plan.go_on)
        self.turns += turns
        self._spell(turns)

    def keep_blocks(self, blocks: Sequence[Block]) -> None:
        """Everybody's records of a block of questions, decoded in a batch."""
        append_turns(self.folder / BATCHES_FILE, blocks, self.plan.go_on)
        self.blocks += blocks
        self._spell([turn for block in blocks for turn in block.turns])

    def note(self, wall_s: float, others_share: float, memory: MemoryFacts) -> None:
        """What this session has taken so far."""
        before_s, before = self._before
        session = self.record.provenance["sessions"][-1]
        session["wall_s"], session["others_share"] = wall_s, round(others_share, 4)
        self.record.wall_s, self.record.memory = before_s + wall_s, merged(before, memory)
        self.save()

    def save(self) -> None:
        """Write the run's record as it is."""
        write_json(self.folder / RUN_FILE, self.record)

    def _spell(self, turns: Sequence[Turn]) -> None:
        ids = {token for turn in turns for token in turn.token_ids}
        ids |= {token for turn in turns for step in turn.per_step_rejected for token in step}
        if new := {str(token) for token in ids} - self.token_texts.keys():
            self.token_texts |= {token: self.chat.token_text(int(token)) for token in sorted(new, key=int)}
            write_json(self.folder / TOKEN_TEXTS_FILE, self.token_texts)


def describe(plan: Plan, examiner: Examiner, costs: dict[str, PassCosts | None]) -> Run:
    """The record of a run as it begins: not complete. `costs`: of passes, by label. Later warnings join it."""
    loaded, asked, warnings = examiner.loaded, plan.questions, examiner.warnings.texts
    software = environment.describe_software()
    session: Session = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wall_s": 0.0,
        "commit": software["commit"],
        "dirty": software["dirty"],
        "load_1min": software["load_1min"],
        "warnings": list(warnings),
    }
    kinds = {c.label: "peer" if c.is_peer else "method" for c in examiner.contestants} | {methods.BASELINE: "vanilla"}
    return Run(
        run_id=plan.run_id,
        command=environment.command_line(),
        model={
            "name": loaded.checkpoint.name,
            "revision": loaded.checkpoint.revision,
            "sha256": loaded.checkpoint.sha256,
            "parameters": loaded.target.parameters,
            "chat_template": loaded.chat.template,
            "chat_template_sha256": template_digest(loaded.chat.tokenizer),
            "tokenizer_sha256": tokenizer_digest(loaded.chat.tokenizer),
        },
        dataset={
            "name": asked.name,
            "sha256": asked.sha256,
            "questions": len(asked.questions),
            "tasks": asked.tasks,
            **({"passages": plan.padding.digest} if plan.padding else {}),
        },
        machine=environment.describe_machine(loaded.target.device, torch.get_num_threads()),
        dtype=loaded.target.precision,
        config=dataclasses.asdict(examiner.config),
        methods={
            c.label: MethodInfo(
                kinds[c.label],
                c.method.lossless,
                c.method.extra_parameters,
                c.method.knobs(),
                c.method.notes | _notes(c, padded=bool(plan.padding)),
                costs[c.label],
                c.method.measured,
                c.method.family,
            )
            for c in examiner.contestants
        },
        engine=decode_value(EngineFacts, engine_facts(loaded.target)),
        provenance={
            "started": plan.started.isoformat(timespec="seconds"),
            **software,
            "warnings": warnings,
            "sessions": [session],
        },
        complete=False,
    )


def _notes(contestant: Contestant, *, padded: bool) -> dict[str, Any]:
    """What the record says of a contestant besides its method's own notes."""
    found: dict[str, Any] = dict(memory_of(contestant.method))
    if contestant.windows:
        found["probe_windows"] = contestant.windows
    if padded and (size := cache_bytes_per_token(contestant.method)):
        found["cache_bytes_per_token"] = size
    if isinstance(contestant.method, Peer) and contestant.method.engine:
        found["engine"] = contestant.method.engine
    if contestant.baseline:
        found["baseline"] = contestant.baseline
    return found


def memory_of(method: Method) -> dict[str, str]:
    """What the record says of a method that knows more than the question that it answers."""
    memory = getattr(method, "memory", QUESTION)
    return {} if memory == QUESTION else {"memory": memory}


def continued(begun: Run, now: Run, warnings: Warnings) -> Run:
    """The record of a run that goes on: as it was begun, with one more session."""
    begun.provenance.setdefault("sessions", []).extend(now.provenance["sessions"])
    told = [*begun.provenance.get("warnings", []), *now.provenance["warnings"]]
    begun.provenance["warnings"] = warnings.texts = list(dict.fromkeys(told))
    return begun
