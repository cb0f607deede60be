"""Runs methods over questions: rounds, pairing, warm-up, the clock and the records.

For every turn of every question, vanilla and all methods decode the same prompt back to back on the same device, in an
order that is reversed from one question and round to the next, and tasks take turns, so that a drifting machine hits
all alike. The history of a second turn is vanilla's own first answer, for everybody.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import methods
from bench import questions
from bench.config import RunConfig
from bench.drafting.loop import at_once, decoding, probe
from bench.drafting.method import Answer, Peer
from bench.engine.decoder import Decoder, DecoderConfig
from bench.engine.huge_pages import huge_mib, use_huge_pages
from bench.engine.kernels import native
from bench.errors import UserError
from bench.figures.facts import EngineFacts, PassCosts, Session
from bench.figures.records import (
    DERIVED,
    EXPORTED,
    PIECES_FILE,
    RUN_FILE,
    RUNS,
    SWEEP_FILE,
    TURNS_FILE,
    MethodInfo,
    Run,
    Turn,
    alone_in,
    append_turns,
    check_writable,
    plots_of,
    read_pieces,
    write_json,
    write_turns,
)
from bench.models import checkpoints
from bench.questions import ChatFormat, Question, QuestionSet
from bench.run import environment, resume
from bench.run.audit import Auditor
from bench.run.contestants import WARM_UP, Contestant, memory_errors, pass_costs, prober, sampler_of, variants
from bench.run.memory import PeakMeter, merged

Log = Callable[[str], None]

_TEMPLATE_TOKENS = 64  # room for what a chat template adds to a turn
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_and_dtype(config: RunConfig, log: Log) -> tuple[torch.device, torch.dtype]:
    """What a run computes on and in; sets its threads, and has the kernels built where they are of use."""
    device = environment.choose_device(config.device)
    if warning := environment.unused_gpu_warning(device):
        log(f"WARNING: {warning}")
    if config.threads:
        torch.set_num_threads(config.threads)
    dtype = DTYPES.get(config.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if device.type == "cpu" and dtype in native.DTYPES:
        if not native.is_built():
            log("building the engine's kernels for this processor: once, a few seconds")
        if reason := native.why_not():
            log(f"NOTE: the engine's own kernels are missing, and passes take about twice as long: {reason}")
    return device, dtype


def load_target(config: RunConfig, checkpoint: checkpoints.Checkpoint, max_len: int | None, log: Log) -> Decoder:
    """The target on the run's device, in its dtype; `max_len` positions (None: the model's context).

    Raises:
        UserError: unsupported model, or out of memory.

    """
    device, dtype = device_and_dtype(config, log)
    with memory_errors(f"model {checkpoint.name} in {dtype}"):
        return Decoder.from_weights(
            checkpoints.load_config(checkpoint),
            checkpoints.iter_weights(checkpoint),
            name=checkpoint.name,
            dtype=dtype,
            device=device,
            max_len=max_len,
            quantize=config.quantize,
        )


def engine_facts(target: Decoder) -> EngineFacts:
    """How the engine runs passes here."""
    facts: EngineFacts = {
        "weights": target.layout,
        "cache_positions": target.max_len,
        "huge_pages_mib": huge_mib(),
    }
    if target.graphs is not None:
        facts["cuda_graphs"] = target.graphs.reason or "captured"
    if len(set(target.homes)) > 1:  # untimed territory
        facts["layers_on"] = {str(home): target.homes.count(home) for home in dict.fromkeys(target.homes)}
    return facts


class Bench:
    """One run, from its settings to its records."""

    other_records: tuple[str, ...] = (SWEEP_FILE,)  # of other kinds of run, whose folders are not for this one

    def __init__(
        self,
        config: RunConfig,
        log: Log = print,
        resumed: tuple[Path, Run] | None = None,
        adapt: Callable[[methods.Variant], methods.Variant] | None = None,
    ):
        """`resumed`: folder and record of a run to go on with; `config` is then that run's. `adapt`: sets knobs."""
        self.config, self.log = config, log
        self.resumed = resumed and resumed[1]
        # What can be wrong with the command is found before anything slow begins.
        self.questions = questions.load(config.questions).select(config.tasks, config.limit, config.seed)
        self.peer_ids = self._peer_questions()
        self.variants = variants(config)
        if (begun := self.resumed) is not None:
            adapt = functools.partial(resume.as_begun, run=begun)
        if adapt is not None:
            self.variants = [
                variant if variant.label == methods.BASELINE else adapt(variant) for variant in self.variants
            ]
        device = environment.choose_device(config.device)
        self.started = datetime.datetime.now(datetime.UTC)
        named_after = next((label for label in config.method if label != methods.BASELINE), methods.BASELINE)
        self.run_id = f"{self.started:%Y%m%d-%H%M%S}-{_slug(named_after)}-{_slug(self.questions.name)}"
        self.run_dir = Path(config.out) if config.out else RUNS / self.run_id
        self.plots_dir = self.run_dir / "plots" if config.out else Path("plots") / self.run_id
        if resumed is not None:
            self.run_dir, self.run_id = resumed[0], resumed[1].run_id
            self.plots_dir = plots_of(self.run_dir, self.run_id)
        check_writable(self.run_dir)
        if resumed is None and (other := next((n for n in self.other_records if (self.run_dir / n).exists()), None)):
            raise UserError(f"{self.run_dir} holds a sweep ({other}): choose another folder with --out")

        self.machine = environment.describe_machine(device, config.threads or torch.get_num_threads())
        self.checkpoint = checkpoints.resolve(config.model, config.revision, log=log)
        if self.resumed is not None:
            resume.check_unchanged(self.resumed, self._known_early())
        self.chat = ChatFormat(checkpoints.load_tokenizer(self.checkpoint))
        self.eos = questions.eos_ids(self.chat.tokenizer, generation_config(self.checkpoint))
        self.warnings = list(filter(None, [environment.busy_warning()]))
        for warning in self.warnings:
            self.log(f"WARNING: {warning}")
        self.log(f"loading {self.checkpoint.name}")
        context = _context_needed(self.questions, self.chat, config.max_new_tokens)
        own_context = DecoderConfig.from_hf(checkpoints.load_config(self.checkpoint)).context
        self.context = min(context, own_context)
        self.target = load_target(config, self.checkpoint, self.context, log)
        self.contestants = [self._contestant(variant) for variant in self.variants]
        self.sampler = sampler_of(config)
        self.auditor = Auditor(self.target, self._float32_reference)
        self.memory = PeakMeter(self.target.device)
        self.turns: list[Turn] = []
        self.pieces = {} if resumed is None else read_pieces(self.run_dir)

    def _contestant(self, variant: methods.Variant) -> Contestant:
        with memory_errors(f"method {variant.label}"):
            if issubclass(variant.method, Peer):
                return Contestant(variant.label, variant.method(self.target, variant.config, self.checkpoint))
            runner = variant.method(self.target, variant.config)
            if self.target.device.type == "cpu":
                use_huge_pages()  # not for peers, which come later: they run as they do elsewhere
            forced, windows = prober(runner, self.config.probe_windows)
            return Contestant(variant.label, runner, forced, windows)

    def _float32_reference(self) -> Decoder:
        """For the audit of a lower precision: beside the target if it fits there, else on the CPU."""
        config = dataclasses.replace(self.config, dtype="float32", device=str(self.target.device))
        try:
            return load_target(config, self.checkpoint, self.target.max_len, self.log)
        except UserError as error:
            if self.target.device.type == "cpu":
                raise
            self.log(f"the audit's float32 reference goes to the CPU: {error}")
            config = dataclasses.replace(config, device="cpu")
            return load_target(config, self.checkpoint, self.target.max_len, self.log)

    def prepare(self) -> Run:
        """Warm up; the run as it begins."""
        self._warm_up()
        record = self._record()
        if (graphs := self.target.graphs) is not None:
            graphs.close()
            if graphs.reason:
                self._warn(f"passes run kernel by kernel, as none could be captured: {graphs.reason}")
        return record

    def run(self) -> Run:
        """Warm up, ask everything, and leave the records in `run_dir`; interrupted, what was done.

        Raises:
            UserError: another process is at work in that folder, or it cannot be written.

        """
        with alone_in(self.run_dir):
            return self._run()

    def _run(self) -> Run:
        record = self.prepare()
        if self.resumed is None:
            _set_aside_earlier_run(self.run_dir)
        else:
            resume.check_unchanged(self.resumed, resume.facts(record))
            record = self._continued(self.resumed, record)
        session = record.provenance["sessions"][-1]
        before_s, memory = record.wall_s, record.memory
        write_json(self.run_dir / RUN_FILE, record)  # now, so that the records of a killed run can be reported
        if self.resumed is None:
            write_turns(self.run_dir / TURNS_FILE, [])
        todo = self._plan()
        total_s = sum(self._expected_s(question) for _, _, question in todo)
        self._announce(todo, total_s)
        begin_s, others = time.perf_counter(), environment.OthersMeter()
        with _progress(total_s) as bar:
            try:
                for number, place, question in todo:
                    bar.set_postfix_str(f"{question.task} {question.question_id}")
                    self._ask(question, number, backwards=(place + number) % 2 == 1)
                    bar.update(self._expected_s(question))
                    session["wall_s"] = time.perf_counter() - begin_s
                    session["others_share"] = round(others.share(), 4)
                    record.wall_s = before_s + session["wall_s"]
                    record.memory = merged(memory, self.memory.facts())
                    write_json(self.run_dir / RUN_FILE, record)
                record.complete = True
            except KeyboardInterrupt:
                self.log(f"interrupted: what is finished is kept; go on with {self.go_on}")
        write_json(self.run_dir / RUN_FILE, record)
        return record

    def _plan(self) -> list[tuple[int, int, Question]]:
        """Round, place and question of all that is to be asked; what a resumed run has finished is taken over."""
        asked = self.questions.in_turns()
        if self.resumed is not None:
            labels = {q.question_id: [c.label for c in self._taking_part(q)] for q in self.questions.questions}
            self.turns = resume.finished_turns(
                self.run_dir, self.questions.questions, lambda question: labels[question.question_id]
            )
            self._spell(self.turns)  # a kill may have come between a question's records and their spelling
        done = {(turn.round, turn.question_id) for turn in self.turns}
        return [
            (number, place, question)
            for number in range(self.config.rounds)
            for place, question in asked
            if (number, question.question_id) not in done
        ]

    def _announce(self, todo: Sequence[tuple[int, int, Question]], total_s: float) -> None:
        asked = f"{len(self.questions.questions)} questions of {len(self.questions.tasks)} tasks"
        left = f", {len(todo)} left" if self.resumed is not None else ""
        self.log(f"{asked}, {self.config.rounds} round(s){left}: about {_minutes(total_s)}")

    def _taking_part(self, question: Question) -> list[Contestant]:
        """Peers are slow: they may be asked less."""
        return [c for c in self.contestants if not c.is_peer or question.question_id in self.peer_ids]

    @property
    def go_on(self) -> str:
        """How to go on with the run if it is interrupted."""
        return f"--resume {self.run_dir}"

    def _keep(self, turns: list[Turn]) -> None:
        """A question's records, and the text of every token in them: a report needs no tokenizer to show answers."""
        append_turns(self.run_dir / TURNS_FILE, turns, self.go_on)
        self.turns += turns
        self._spell(turns)

    def _spell(self, turns: Sequence[Turn]) -> None:
        ids = {token for turn in turns for token in turn.token_ids}
        ids |= {token for turn in turns for step in turn.per_step_rejected for token in step}
        if new := {str(token) for token in ids} - self.pieces.keys():
            self.pieces |= {token: self.chat.piece(int(token)) for token in sorted(new, key=int)}
            write_json(self.run_dir / PIECES_FILE, self.pieces)

    def _ask(self, question: Question, number: int, *, backwards: bool) -> None:
        """All turns of a question, by everybody. The records are kept only when the question is through."""
        taking_part = self._taking_part(question)
        history: list[tuple[str, str]] = []
        records: list[Turn] = []
        for index, user in enumerate(question.turns):
            prompt = self.chat.prompt(history, user)
            turns = {
                contestant.label: self.answer(contestant, question, index, number, prompt)
                for contestant in (reversed(taking_part) if backwards else taking_part)
            }
            vanilla = turns[methods.BASELINE]
            if vanilla.error is None and self.sampler is None:  # samples differ from one method to the next
                self.audit(turns, prompt)
                if number == 0:  # greedy drafts are the same in every round
                    self._probe(turns, prompt)
            records += [turns[contestant.label] for contestant in taking_part]
            if vanilla.error is not None:
                break  # the next turn would need this answer
            history.append((user, vanilla.text))
        self._keep(records)

    def answer(self, contestant: Contestant, question: Question, index: int, number: int, prompt: list[int]) -> Turn:
        """One contestant's answer to a prompt, or why it failed."""
        return at_once(self.answering(contestant, question, index, number, prompt))

    def answering(
        self,
        contestant: Contestant,
        question: Question,
        index: int,
        number: int,
        prompt: list[int],
        pause_after: int = 0,
    ) -> Generator[object, None, Turn]:
        """`answer` in pieces, see `bench.drafting.method.decoding`."""
        turn = Turn(
            method=contestant.label,
            question_id=question.question_id,
            task=question.task,
            category=question.category,
            turn=index,
            round=number,
            prompt_tokens=len(prompt),
        )
        limit = min(self.config.max_new_tokens, self.context - len(prompt))
        if limit < 1:
            turn.error = f"the prompt's {len(prompt)} tokens leave no room in the context of {self.context}"
            return turn
        if self.sampler is not None:
            self.sampler.seed(f"{self.config.seed}/{question.question_id}/{index}/{number}")
        try:
            with self.memory.of(contestant.label):
                answer = yield from decoding(contestant.runner, prompt, limit, self.eos, self.sampler, pause_after)
        except Exception as error:  # any failure of a method is a result: recorded, and the run goes on
            turn.error = f"{type(error).__name__}: {error}"
            return turn
        _fill(turn, answer, self.eos)
        turn.text = self.chat.answer_text(turn.token_ids)
        return turn

    def audit(self, turns: dict[str, Turn], prompt: list[int]) -> None:
        """Give every answer that must be vanilla's its verdict."""
        vanilla = turns[methods.BASELINE]
        for contestant in self.contestants:
            turn = turns.get(contestant.label)
            if turn is None or turn is vanilla or turn.error is not None or not contestant.runner.lossless:
                continue
            try:
                with memory_errors("the audit's reference"):
                    turn.audit = self.auditor.compare(prompt, turn.token_ids, vanilla.token_ids)
            except UserError as error:  # what was measured is worth more than this one verdict
                self._warn(f"some answers of {turn.method} are not audited: {error}")

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:  # once for a cause, however many turns it meets
            self.warnings.append(warning)
            self.log(f"WARNING: {warning}")

    def _probe(self, turns: dict[str, Turn], prompt: list[int]) -> None:
        """Forced drafts along vanilla's answer, where the run asks for them."""
        answer = turns[methods.BASELINE].token_ids
        for contestant in self.contestants:
            if contestant.prober is not None and turns[contestant.label].error is None:
                try:
                    turns[contestant.label].windows = probe(contestant.prober, prompt, answer, contestant.windows)
                except Exception as error:  # as in `answer`: the run goes on, and says so
                    self._warn(f"the window probe of {contestant.label} failed: {type(error).__name__}: {error}")

    def _warm_up(self) -> None:
        """Everybody decodes a prompt of no task; gives the estimate's rates, too."""
        self.log(f"warming up {', '.join(c.label for c in self.contestants)}")
        prompt = self.chat.prompt([], WARM_UP)
        for contestant in self.contestants:
            contestant.warm_up(prompt, self.context, self.sampler)

    def _expected_s(self, question: Question) -> float:
        lengths = _prompt_lengths(question, self.chat, self.config.max_new_tokens)
        return sum(
            contestant.expected_s(length, self.config.max_new_tokens) * (1 + 2 * (contestant.prober is not None))
            for contestant in self._taking_part(question)
            for length in lengths
            if length < self.context
        )

    def _peer_questions(self) -> set[int]:
        limit = self.config.peer_limit or None
        return {q.question_id for q in self.questions.select(limit=limit, seed=self.config.seed).questions}

    def _record(self) -> Run:
        """The run as it begins: not complete."""
        checkpoint, target = self.checkpoint, self.target
        software = environment.describe_software()
        session: Session = {
            "started": _now(),
            "wall_s": 0.0,
            "commit": software["commit"],
            "dirty": software["dirty"],
            "load_1min": software["load_1min"],
            "warnings": list(self.warnings),
        }
        kinds = {c.label: "peer" if c.is_peer else "method" for c in self.contestants} | {methods.BASELINE: "vanilla"}
        return Run(
            run_id=self.run_id,
            command=environment.command_line(),
            model={
                "name": checkpoint.name,
                "revision": checkpoint.revision,
                "sha256": checkpoint.sha256,
                "parameters": target.parameters,
                "chat_template": self.chat.template,
            },
            dataset={
                "name": self.questions.name,
                "sha256": self.questions.sha256,
                "questions": len(self.questions.questions),
                "tasks": self.questions.tasks,
            },
            machine=self.machine,
            dtype=target.precision,
            config=dataclasses.asdict(self.config),
            methods={
                c.label: MethodInfo(
                    kinds[c.label],
                    c.runner.lossless,
                    c.runner.extra_parameters,
                    c.runner.knobs(),
                    c.runner.notes | ({"probe_windows": c.windows} if c.windows else {}),
                    self._costs(c),
                )
                for c in self.contestants
            },
            engine=engine_facts(target),
            provenance={
                "started": self.started.isoformat(timespec="seconds"),
                **software,
                "warnings": self.warnings,
                "sessions": [session],
            },
            complete=False,
        )

    def _costs(self, contestant: Contestant) -> PassCosts | None:
        """As recorded, or measured now."""
        if self.resumed is not None and contestant.label in self.resumed.methods:
            return self.resumed.methods[contestant.label].costs
        if self.sampler is not None:
            return None  # nothing that is timed here samples
        with memory_errors(f"the costs of {contestant.label}"):
            return pass_costs(contestant, self.contestants[0])

    def _known_early(self) -> dict[str, Any]:
        """What must not have changed since a run was begun, as far as it is known before the model is read."""
        software = environment.describe_software()["packages"]
        return {
            "model": self.checkpoint.sha256,
            "questions": self.questions.sha256,
            "number of questions": len(self.questions.questions),
            "device": self.machine.name,
            "machine": self.machine.digest,
            "torch": software["torch"],
            "transformers": software["transformers"],
        }

    def _continued(self, begun: Run, now: Run) -> Run:
        """The record of a run that goes on: as it was begun, with one more session."""
        begun.provenance.setdefault("sessions", []).extend(now.provenance["sessions"])
        warnings = [*begun.provenance.get("warnings", []), *now.provenance["warnings"]]
        begun.provenance["warnings"] = self.warnings = list(dict.fromkeys(warnings))
        return begun


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _fill(turn: Turn, answer: Answer, eos: frozenset[int]) -> None:
    turn.token_ids = list(answer.token_ids)
    turn.prefill_s, turn.decode_s, turn.first_tokens = answer.prefill_s, answer.decode_s, answer.first_tokens
    turn.finish = answer.finish(eos)
    turn.per_step_drafted = [step.drafted for step in answer.steps]
    turn.per_step_accepted = [step.accepted for step in answer.steps]
    turn.per_step_emitted = [len(step.emitted) for step in answer.steps]
    turn.per_step_depth = [step.depth for step in answer.steps]
    turn.per_step_calls = [step.calls for step in answer.steps]
    turn.per_step_rejected = [step.rejected for step in answer.steps]
    turn.accepted_confidence = _rounded(x for step in answer.steps for x in step.accepted_confidence)
    turn.rejected_confidence = _rounded(x for step in answer.steps for x in step.rejected_confidence)
    turn.draft_s = sum(step.draft_s for step in answer.steps)
    turn.verify_s = sum(step.verify_s for step in answer.steps)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _prompt_lengths(question: Question, chat: ChatFormat, max_new_tokens: int) -> list[int]:
    """Tokens of each turn's prompt, earlier answers taken as long as they may become."""
    lengths, before = [], 0
    for user in question.turns:
        lengths.append(before + len(chat.prompt([], user)))
        before = lengths[-1] + max_new_tokens
    return lengths


def _context_needed(asked: QuestionSet, chat: ChatFormat, max_new_tokens: int) -> int:
    """Positions that the longest conversation may take, the warm-up's included."""
    longest = max(_prompt_lengths(question, chat, max_new_tokens)[-1] for question in asked.questions)
    longest = max(longest, len(chat.prompt([], WARM_UP)))
    return longest + max_new_tokens + _TEMPLATE_TOKENS


def generation_config(checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    """The checkpoint's generation_config.json, empty where it has none."""
    path = checkpoint.folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is malformed: {error}") from error
    return value if isinstance(value, dict) else {}


def _set_aside_earlier_run(folder: Path) -> None:
    """Move an earlier run that lies in `folder` into a folder of its own there, so that it is not lost."""
    try:
        if (folder / RUN_FILE).is_file():
            run_id = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("run_id", "earlier")
            earlier = folder / Path(run_id).name  # an id is a name, never a path
            earlier.mkdir()
            for name in (RUN_FILE, TURNS_FILE, PIECES_FILE, *DERIVED, EXPORTED):
                if (folder / name).exists():
                    (folder / name).rename(earlier / name)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot use {folder} for results: {error}; choose another folder with --out") from error


@contextmanager
def _progress(total_s: float) -> Iterator[Any]:
    """A bar in units of estimated seconds, so that long prompts weigh what they cost and the ETA holds."""
    shape = "{desc}{percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left  {postfix}"
    rarely = {} if sys.stderr.isatty() else {"mininterval": 15.0, "ncols": 90}
    with tqdm(total=total_s, bar_format=shape, desc="decoding ", dynamic_ncols=not rarely, **rarely) as bar:
        yield bar


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)[:60]
