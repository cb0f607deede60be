"""Runs methods over questions: rounds, pairing, warm-up, the clock and the records.

For every turn of every question, vanilla and all methods decode the same prompt back to back on the same device, in an
order that is reversed from one question and round to the next, so that a drifting machine hits all alike. The history
of a second turn is vanilla's own first answer, for everybody.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import methods
from bench import checkpoints, environment, questions
from bench.audit import Auditor
from bench.config import RunConfig
from bench.engine.decoder import Decoder, DecoderConfig
from bench.engine.sampling import Sampler
from bench.errors import UserError
from bench.questions import ChatFormat, Question, QuestionSet
from bench.records import RUN_FILE, TURNS_FILE, MethodInfo, Run, Turn, check_writable, write_json, write_turns
from methods.base import Answer, Method, Peer, decode

Log = Callable[[str], None]

ALL = "all"  # in place of a method's name
_WARM_UP = "Explain in a few sentences why the days are longer in summer than in winter, and give one example."
_WARM_UP_TOKENS = 24
_WARM_UP_MOST = 6  # repetitions at most until the time per token is stable
_STABLE = 0.1  # relative change of the time per token between repetitions that counts as stable
_TEMPLATE_TOKENS = 64  # room for what a chat template adds to a turn
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Contestant:
    """A method or peer, ready to decode."""

    label: str
    runner: Method | Peer
    prefill_tok_per_s: float = 0.0  # from the warm-up, for the estimate only
    decode_tok_per_s: float = 0.0

    @property
    def is_peer(self) -> bool:
        """Whether it brings its own loop."""
        return isinstance(self.runner, Peer)

    def expected_s(self, prompt_tokens: int, new_tokens: int) -> float:
        """Estimated seconds of one answer."""
        return prompt_tokens / self.prefill_tok_per_s + new_tokens / self.decode_tok_per_s


def load_target(config: RunConfig, checkpoint: checkpoints.Checkpoint, max_len: int | None, log: Log) -> Decoder:
    """The target on the run's device, in its dtype; `max_len` positions (None: the model's context).

    Raises:
        UserError: unsupported model, or out of memory.

    """
    device = environment.choose_device(config.device)
    if warning := environment.unused_gpu_warning(device):
        log(f"WARNING: {warning}")
    if config.threads:
        torch.set_num_threads(config.threads)
    dtype = DTYPES.get(config.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    with memory_errors(f"model {checkpoint.name} in {dtype}"):
        return Decoder.from_weights(
            checkpoints.load_config(checkpoint),
            checkpoints.iter_weights(checkpoint),
            name=checkpoint.name,
            dtype=dtype,
            device=device,
            max_len=max_len,
            pad=True,
        )


class Bench:
    """One run, from its settings to its records."""

    def __init__(self, config: RunConfig, log: Log = print):
        self.config, self.log = config, log
        # What can be wrong with the command is found before anything slow begins.
        self.questions = questions.load(config.questions).select(config.tasks, config.limit, config.seed)
        self.variants = _variants(config)
        environment.choose_device(config.device)
        self.started = datetime.datetime.now(datetime.UTC)
        named_after = next((label for label in config.method if label != methods.BASELINE), methods.BASELINE)
        self.run_id = f"{self.started:%Y%m%d-%H%M%S}-{_slug(named_after)}-{_slug(self.questions.name)}"
        self.run_dir = Path(config.out) if config.out else Path("results/runs") / self.run_id
        self.plots_dir = self.run_dir / "plots" if config.out else Path("plots") / self.run_id
        check_writable(self.run_dir)

        self.checkpoint = checkpoints.resolve(config.model, config.revision, log=log)
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
        self.sampler: Sampler | None = None
        if config.temperature:
            self.sampler = Sampler(config.temperature, config.top_p, config.top_k)
            for contestant in self.contestants:
                contestant.runner.sampler = self.sampler
        self.auditor = Auditor(self.target, self._float32_reference)
        self.turns: list[Turn] = []

    def _contestant(self, variant: methods.Variant) -> Contestant:
        with memory_errors(f"method {variant.label}"):
            if issubclass(variant.method, Peer):
                return Contestant(variant.label, variant.method(self.target, variant.config, self.checkpoint))
            return Contestant(variant.label, variant.method(self.target, variant.config))

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

    def run(self) -> Run:
        """Warm up, ask everything, and leave `run.json` and `turns.jsonl` in `run_dir`; interrupted, what was done."""
        self._warm_up()
        record = self._record()
        _set_aside_earlier_run(self.run_dir)
        write_json(self.run_dir / RUN_FILE, record)  # now, so that the records of a killed run can be reported
        asked_in_order = list(enumerate(self.questions.questions))
        plan = [(number, place, question) for number in range(self.config.rounds) for place, question in asked_in_order]
        peer_ids = self._peer_questions()
        total_s = sum(self._expected_s(question, peer_ids) for *_, question in plan)
        asked = f"{len(self.questions.questions)} questions of {len(self.questions.tasks)} tasks"
        self.log(f"{asked}, {self.config.rounds} round(s): about {_minutes(total_s)}")
        begin_s = time.perf_counter()
        with _progress(total_s) as bar:
            try:
                for number, place, question in plan:
                    bar.set_postfix_str(f"{question.task} {question.question_id}")
                    self._ask(question, number, backwards=(place + number) % 2 == 1, peer_ids=peer_ids)
                    bar.update(self._expected_s(question, peer_ids))
                    # Rewritten as a whole, so that what lies there is never half a record.
                    write_turns(self.run_dir / TURNS_FILE, self.turns)
                record.complete = True
            except KeyboardInterrupt:
                self.log("interrupted: writing down what is finished")
        record.wall_s = time.perf_counter() - begin_s
        write_turns(self.run_dir / TURNS_FILE, self.turns)
        write_json(self.run_dir / RUN_FILE, record)
        return record

    def _ask(self, question: Question, number: int, *, backwards: bool, peer_ids: set[int]) -> None:
        """All turns of a question, by everybody. The records are kept only when the question is through."""
        taking_part = [c for c in self.contestants if not c.is_peer or question.question_id in peer_ids]
        history: list[tuple[str, str]] = []
        records: list[Turn] = []
        for index, user in enumerate(question.turns):
            prompt = self.chat.prompt(history, user)
            limit = min(self.config.max_new_tokens, self.context - len(prompt))
            turns = {
                contestant.label: self._answer(contestant, question, index, number, prompt, limit)
                for contestant in (reversed(taking_part) if backwards else taking_part)
            }
            vanilla = turns[methods.BASELINE]
            if vanilla.error is None and self.sampler is None:  # samples differ from one method to the next
                self._audit(turns, prompt)
            records += [turns[contestant.label] for contestant in taking_part]
            if vanilla.error is not None:
                break  # the next turn would need this answer
            history.append((user, self.chat.answer_text(vanilla.token_ids)))
        self.turns += records

    def _answer(
        self, contestant: Contestant, question: Question, index: int, number: int, prompt: list[int], limit: int
    ) -> Turn:
        turn = Turn(
            method=contestant.label,
            question_id=question.question_id,
            task=question.task,
            category=question.category,
            turn=index,
            round=number,
            prompt_tokens=len(prompt),
        )
        if limit < 1:
            turn.error = f"the prompt's {len(prompt)} tokens leave no room in the context of {self.context}"
            return turn
        if self.sampler is not None:
            self.sampler.seed(f"{self.config.seed}/{question.question_id}/{index}/{number}")
        try:
            answer = decode(contestant.runner, prompt, limit, self.eos)
        except Exception as error:  # any failure of a method is a result: recorded, and the run goes on
            turn.error = f"{type(error).__name__}: {error}"
            return turn
        _fill(turn, answer, self.eos)
        return turn

    def _audit(self, turns: dict[str, Turn], prompt: list[int]) -> None:
        vanilla = turns[methods.BASELINE]
        for contestant in self.contestants:
            turn = turns.get(contestant.label)
            if turn is None or turn is vanilla or turn.error is not None or not contestant.runner.lossless:
                continue
            try:
                with memory_errors("the audit's reference"):
                    turn.audit = self.auditor.compare(prompt, turn.token_ids, vanilla.token_ids)
            except UserError as error:  # what was measured is worth more than this one verdict
                warning = f"{turn.method}, question {turn.question_id}, is not audited: {error}"
                self.warnings.append(warning)
                self.log(f"WARNING: {warning}")

    def _warm_up(self) -> None:
        """Decode a prompt of no task until the time per token is stable; never counted. Gives the estimate's rates."""
        prompt = self.chat.prompt([], _WARM_UP)
        limit = min(_WARM_UP_TOKENS, self.context - len(prompt))
        if limit < 2:
            raise UserError(f"a context of {self.context} tokens is too short to warm up in: take another model")
        self.log(f"warming up {', '.join(c.label for c in self.contestants)}")
        for contestant in self.contestants:
            last_s = 0.0  # of no repetition: the first is never stable
            for _ in range(_WARM_UP_MOST):
                with memory_errors(f"method {contestant.label}"):
                    answer = decode(contestant.runner, prompt, limit, frozenset())
                per_token_s = answer.decode_s / (limit - 1)
                stable = abs(per_token_s - last_s) <= _STABLE * last_s
                last_s = per_token_s
                if stable:
                    break
            contestant.prefill_tok_per_s = len(prompt) / answer.prefill_s
            contestant.decode_tok_per_s = 1 / last_s

    def _expected_s(self, question: Question, peer_ids: set[int]) -> float:
        lengths = _prompt_lengths(question, self.chat, self.config.max_new_tokens)
        return sum(
            contestant.expected_s(length, self.config.max_new_tokens)
            for contestant in self.contestants
            if not contestant.is_peer or question.question_id in peer_ids
            for length in lengths
            if length < self.context
        )

    def _peer_questions(self) -> set[int]:
        limit = self.config.peer_limit or None
        return {q.question_id for q in self.questions.select(limit=limit, seed=self.config.seed).questions}

    def _record(self) -> Run:
        """The run as it begins: not complete."""
        checkpoint, target = self.checkpoint, self.target
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
            device=environment.describe_device(target.device),
            dtype=str(target.dtype).removeprefix("torch."),
            config=dataclasses.asdict(self.config),
            methods={
                c.label: MethodInfo(
                    kinds[c.label],
                    c.runner.lossless,
                    c.runner.extra_parameters,
                    dataclasses.asdict(c.runner.config),
                    c.runner.notes,
                )
                for c in self.contestants
            },
            engine={
                "weights": "packed" if target.packed else "plain",
                "pass_widths": {str(n): width for n, width in target.widths.items()},
                "cache_positions": target.max_len,
            },
            provenance={
                "started": self.started.isoformat(timespec="seconds"),
                **environment.describe_software(),
                "warnings": self.warnings,
            },
            complete=False,
        )


def _variants(config: RunConfig) -> list[methods.Variant]:
    """Vanilla, the methods and the peers, each once."""
    peers = [name for name in config.peer if name != "none"]
    labels = dict.fromkeys([methods.BASELINE, *_expanded(config.method), *peers])
    variants = [methods.parse(label) for label in labels]
    for variant in variants:
        if variant.label in config.peer and not issubclass(variant.method, Peer):
            raise UserError(f"{variant.label!r} is a method, not a peer: ask for it with --method")
        if variant.label in config.method and issubclass(variant.method, Peer):
            raise UserError(f"{variant.label!r} is a peer, not a method: ask for it with --peer")
    return sorted(variants, key=lambda v: (issubclass(v.method, Peer), v.label != methods.BASELINE))


def _expanded(asked: Sequence[str]) -> Iterator[str]:
    """The methods asked for; `all` stands for every built-in one."""
    for label in asked:
        if label == ALL:
            yield from (name for name in methods.built_in() if issubclass(methods.load(name), Method))
        else:
            yield label


def _fill(turn: Turn, answer: Answer, eos: frozenset[int]) -> None:
    turn.token_ids = list(answer.token_ids)
    turn.prefill_s, turn.decode_s = answer.prefill_s, answer.decode_s
    turn.finish = answer.finish(eos)
    turn.per_step_drafted = [step.drafted for step in answer.steps]
    turn.per_step_accepted = [step.accepted for step in answer.steps]
    turn.per_step_emitted = [len(step.emitted) for step in answer.steps]
    turn.draft_s = sum(step.draft_s for step in answer.steps)


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
    longest = max(longest, len(chat.prompt([], _WARM_UP)))
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
            earlier = folder / json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("run_id", "earlier")
            earlier.mkdir()
            for name in (RUN_FILE, TURNS_FILE, "summary.json", "summary.csv", "report.md", "plots"):
                if (folder / name).exists():
                    (folder / name).rename(earlier / name)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot use {folder} for results: {error}; choose another folder with --out") from error


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Out of memory becomes a sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        remedy = (
            "take a smaller model, --dtype bfloat16, --peer none (a peer loads the model again), or another --device"
        )
        raise UserError(f"not enough memory for {what} ({str(error).splitlines()[0]}): {remedy}") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise UserError(f"not enough memory for {what}: take a smaller model or --dtype bfloat16") from error


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
