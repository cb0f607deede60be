"""A run that was asked for: which questions, how often, in which order, of whom, and where its records go.

All of it is known, and mistakes in it are reported, before torch is imported.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import methods
from bench import questions
from bench.config import RunConfig
from bench.errors import UserError, program
from bench.figures.records import RUNS, SWEEP_FILE, Run, plots_of
from bench.files import check_writable, user_path
from bench.models import checkpoints
from bench.questions import Question, QuestionSet
from bench.run import resume
from bench.run.folder import earlier_run
from bench.run.padding import Padding, paragraphs_of

if TYPE_CHECKING:
    from bench.models.chat import ChatFormat
    from bench.models.loading import Model
    from bench.run.contestants import Contestant

Adapt = Callable[[methods.Variant], methods.Variant]
WARM_UP = "Explain in a few sentences why the days are longer in summer than in winter, and give one example."
_TEMPLATE_TOKENS = 64  # what a chat template may add to a turn


class Asked(NamedTuple):
    """A question in one round; `backwards`: who answers first in other questions is last.

    `at`: the value of the run's axis, see `RunConfig.axis`.
    """

    round: int
    question: Question
    backwards: bool
    at: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a run asks, and where it keeps the answers."""

    config: RunConfig
    questions: QuestionSet
    peer_ids: frozenset[int]  # of the questions that peers answer, too: they are slow
    variants: list[methods.Variant]  # vanilla first, peers last
    started: datetime.datetime
    run_id: str
    folder: Path
    resumed: Run | None  # the record of the run that goes on
    of_sweep: bool
    warnings: tuple[str, ...] = ()
    values: tuple[float | None, ...] = (None,)  # of the run's axis, the shortest prompts first
    padding: Padding | None = None  # of questions to prompt lengths

    @property
    def plots(self) -> Path:
        """The folder for plots."""
        return plots_of(self.folder, self.run_id)

    @property
    def go_on(self) -> str:
        """How the user goes on with the run if it is interrupted."""
        folder = shlex.quote(str(self.folder))
        return f"the same command and --out {folder}" if self.of_sweep else f"{program()} --resume {folder}"

    def todo(self, done: Collection[tuple[int, int, float | None]]) -> list[Asked]:
        """All that is asked, in order, but for what is `done`, by round, question id and value of the axis.

        A question is asked at all values before the next one, so that a slow minute hits all of them alike.
        """
        return [
            Asked(number, question, backwards, at)
            for number in range(self.config.rounds)
            for place, question in self.questions.in_turns()
            for backwards in [(place + number) % 2 == 1]
            for at in (reversed(self.values) if backwards else self.values)
            if (number, question.question_id, at) not in done
        ]

    def asked_by_id(self, question_id: int, at: float | None) -> Question | None:
        """The same by its id; None if it is not asked."""
        found = next((q for q in self.questions.questions if q.question_id == question_id), None)
        return found and self.as_asked(found, at)

    def as_asked(self, question: Question, at: float | None) -> Question:
        """The question as it is asked at a value of the axis: padded, if these are prompt lengths."""
        return question if self.padding is None or at is None else self.padding.pad(question, int(at))

    def taking_part(self, question: Question, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Who answers the question."""
        return [c for c in contestants if not c.is_peer or question.question_id in self.peer_ids]

    def labels(self, record: Run, question: Question) -> list[str]:
        """The methods of the run's record that answer the question."""
        asked = question.question_id in self.peer_ids
        return [label for label, info in record.methods.items() if asked or info.kind != "peer"]

    def prompt_lengths(self, question: Question, chat: ChatFormat, at: float | None = None) -> list[int]:
        """Tokens of each turn's prompt at a value of the axis, earlier answers taken as long as they may become."""
        lengths, before = [], 0
        for index, user in enumerate(question.turns):
            own = len(chat.prompt([], user, "" if index else question.system))
            lengths.append(before + (own if index or self.padding is None or at is None else int(at)))
            before = lengths[-1] + self.config.max_new_tokens
        return lengths

    def context_needed(self, chat: ChatFormat) -> int:
        """Positions that the longest conversation may take, the warm-up's included."""
        longest = max(self.prompt_lengths(q, chat, self.values[-1])[-1] for q in self.questions.questions)
        longest = max(longest, len(chat.prompt([], WARM_UP)))
        return longest + self.config.max_new_tokens + _TEMPLATE_TOKENS

    def expected_failures(self, model: Model) -> Iterator[str]:
        """Warnings about answers that will be cut short or cannot be asked for."""
        asked = self.questions.questions
        if later := sum(len(question.turns) > 1 for question in asked):
            try:
                model.chat.prompt([("Hello", "Hello")], "Hello")
            except UserError as error:
                yield f"second turns fail, in {later} of {len(asked)} questions: {error}"
        most = model.config.context - self.config.max_new_tokens
        most_at = self.values[-1]
        long = [q.question_id for q in asked if self.prompt_lengths(q, model.chat, most_at)[-1] > most]
        if long:
            which = f"question {long[0]}" + (f" and {len(long) - 1} more" if len(long) > 1 else "")
            yield (
                f"{which} may need more than {model.config.limit}, beyond which {model.checkpoint.name} is not run: "
                "answers that reach it end there, and longer prompts fail"
            )


class Checked(NamedTuple):
    """What a run asks of whom."""

    questions: QuestionSet
    variants: list[methods.Variant]
    left_out: list[str]  # of `all`, and why


def check(config: RunConfig, shape: str | None = None) -> Checked:
    """The questions and methods of a run; `shape`: of random weights in the place of the model.

    Raises:
        UserError: unknown questions, tasks, methods, knobs or model, or a file that is not there.

    """
    asked = questions.load(config.questions).select(config.tasks, config.limit, config.seed)
    turns, most = sum(len(question.turns) for question in asked.questions), max(config.batch, default=1)
    if most > turns:
        raise UserError(
            f"--batch {most}: {turns} turns of questions never fill it: ask more questions "
            "(--limit, --tasks), or give a smaller batch"
        )
    paragraphs_of(config)
    return Checked(asked, *variants(config, shape))


def variants(config: RunConfig, shape: str | None = None) -> tuple[list[methods.Variant], list[str]]:
    """Vanilla, the methods and the peers of a run, each once; and why methods of `all` are left out.

    Raises:
        UserError: unknown method or knob, a method that is named as a peer, or one without its files for the model.

    """
    labels = dict.fromkeys([methods.BASELINE, *methods.expanded(config.method), *config.peers])
    found = [methods.parse(label) for label in labels]
    for variant in found:
        if variant.label in config.peers and not variant.is_peer:
            raise UserError(f"{variant.label!r} is a method, not a peer: ask for it with --method")
    found = _beside_baselines(found)
    model, able, left_out = shape or checkpoints.name_of(config.model, config.revision), [], []
    for variant in found:
        try:
            variant.check_files(model)
            able.append(variant)
        except UserError as error:
            if variant.label in (*config.method, *config.peers):  # asked for by its name
                raise
            left_out.append(f"{variant.label} is left out of --method {methods.ALL}: {error}")
    return sorted(able, key=lambda variant: (variant.is_peer, variant.label != methods.BASELINE)), left_out


def _beside_baselines(found: list[methods.Variant]) -> list[methods.Variant]:
    """The variants, each peer with the label of its baseline: one that its knobs name, or one that it goes with.

    Raises:
        UserError: no peer of the run has the name or URL, or two have the same name.

    """
    called: dict[str, str] = {}
    peers = {variant.label: variant for variant in found if variant.is_peer}
    for label, variant in peers.items():
        name = getattr(variant.config, "name", "")
        if name != label and name in peers:
            raise UserError(f"name={name} is what another peer of this run is asked for by: give it a name of its own")
        for word in filter(None, dict.fromkeys((label, name, getattr(variant.config, "url", "").rstrip("/")))):
            if called.setdefault(word, label) != label and word == name:
                raise UserError(f"two peers are called {word!r}: give each name= once")
    return [replace(variant, baseline=_baseline_of(variant, peers, called)) for variant in found]


def _baseline_of(variant: methods.Variant, peers: dict[str, methods.Variant], called: dict[str, str]) -> str:
    """The label of the peer that its knobs name; else of the same peer's plain form, whatever others are called."""
    if not variant.is_peer:
        return ""
    if not (named := getattr(variant.config, "baseline", "")):
        plain = peers.get(getattr(variant.config, "plain", ""))
        return plain.label if plain is not None and plain.names == variant.names else ""
    label = called.get(named.rstrip("/"), "")
    if label in ("", variant.label):
        others = ", ".join(word for word, other in called.items() if other != variant.label)
        raise UserError(
            f"baseline={named} is no other peer of this run: name one that takes part ({others or 'there is none'})"
        )
    return label


def make_plan(
    config: RunConfig, resumed: tuple[Path, Run] | None = None, *, adapt: Adapt | None = None, of_sweep: bool = False
) -> Plan:
    """Plan a run.

    `resumed`: folder and record of a run to go on with; `config` is then that run's. `adapt` sets knobs of all but
    vanilla.

    Raises:
        UserError: as `check`; or a folder that this run cannot have.

    """
    asked, chosen, left_out = check(config)
    if resumed is not None:
        adapt = functools.partial(resume.as_begun, run=resumed[1])
    if adapt is not None:
        chosen = [variant if variant.label == methods.BASELINE else adapt(variant) for variant in chosen]
    started = datetime.datetime.now(datetime.UTC)
    named_after = next((label for label in config.method if label != methods.BASELINE), methods.BASELINE)
    run_id = f"{started:%Y%m%d-%H%M%S}-{slug(named_after)}-{slug(asked.name)}"
    folder = user_path(config.out) if config.out is not None else RUNS / run_id
    begun = None
    if resumed is not None:
        folder, begun = resumed
        run_id = begun.run_id
    check_writable(folder)
    if begun is None:
        earlier_run(folder)
    if begun is None and not of_sweep and (folder / SWEEP_FILE).exists():
        raise UserError(f"{folder} holds a sweep ({SWEEP_FILE}): choose another folder with --out")
    peers, values = peers_asked(asked, config), config.axis
    return Plan(config, asked, peers, chosen, started, run_id, folder, begun, of_sweep, tuple(left_out), values)


def of_worker(config: RunConfig, begun: Run | None, *, of_sweep: bool) -> Plan:
    """The plan of a worker, which writes no records; `begun` has the knobs with which others ask, and in a sweep those
    variants that have not failed.

    Raises:
        UserError: as `check`; or a method that does not take these knobs.

    """
    if of_sweep and begun is not None:
        config = replace(config, method=tuple(label for label in config.method if label in begun.methods))
    asked, chosen, left_out = check(config)
    if begun is not None:
        chosen = [one if one.label == methods.BASELINE else resume.as_begun(one, begun) for one in chosen]
    peers, now = peers_asked(asked, config), datetime.datetime.now(datetime.UTC)
    return Plan(config, asked, peers, chosen, now, "worker", Path(), None, of_sweep, tuple(left_out), config.axis)


def fitted(plan: Plan, model: Model) -> Plan:
    """The plan of a run over prompt lengths for a model: what it cannot do is left out, with a warning.

    Raises:
        UserError: nothing is left, or the file of passages cannot be read.

    """
    config, chat = plan.config, model.chat
    room = model.context - config.max_new_tokens
    lengths = [int(value) for value in plan.values if value is not None and value <= room]
    long = ", ".join(f"{value:,.0f}" for value in plan.values if value is not None and value > room)
    limit = f"with answers of {config.max_new_tokens} they exceed {model.config.limit} of {model.checkpoint.name}"
    if not lengths:
        raise UserError(f"--prompt-lengths {long} cannot be asked: {limit}; give shorter ones, or another model")
    padding = Padding(chat, config.seed, paragraphs_of(config))
    kept = tuple(q for q in plan.questions.questions if padding.own_tokens(q) <= lengths[0])
    if not kept:
        shortest = min(map(padding.own_tokens, plan.questions.questions))
        raise UserError(
            f"--prompt-lengths {lengths[0]:,} is shorter than all questions, which have {shortest:,} tokens or more: "
            "give longer ones"
        )
    warnings = [f"prompt lengths {long} are left out: {limit}"] if long else []
    if left_out := len(plan.questions.questions) - len(kept):
        warnings.append(
            f"{left_out} of {len(plan.questions.questions)} questions are longer than the shortest prompt length, "
            f"{lengths[0]:,}, and are left out: at every length the same ones are asked"
        )
    asked = replace(plan.questions, questions=kept)
    return replace(
        plan,
        questions=asked,
        peer_ids=peers_asked(asked, config),
        values=tuple(lengths),
        padding=padding,
        warnings=(*plan.warnings, *warnings),
    )


def peers_asked(asked: QuestionSet, config: RunConfig) -> frozenset[int]:
    """The ids of the questions that peers answer too."""
    return frozenset(q.question_id for q in asked.select(limit=config.peer_limit or None, seed=config.seed).questions)


@contextlib.contextmanager
def in_own_folder(plan: Plan) -> Iterator[Plan]:
    """Make the folder of a new run that nobody named, with a number behind its id where another run took the second.

    It is removed in the end if nothing was written, and so are the folders around it in which nothing is.
    """
    if plan.resumed is not None or plan.config.out is not None:
        yield plan
        return
    own = plan
    for number in itertools.count(2):
        try:
            own.folder.mkdir(parents=True)
            break
        except FileExistsError:
            run_id = f"{plan.run_id}-{number}"
            own = replace(plan, run_id=run_id, folder=RUNS / run_id)
    try:
        yield own
    finally:
        with contextlib.suppress(OSError):
            for empty in (own.folder, *own.folder.parents[:-1]):
                empty.rmdir()


def slug(text: str) -> str:
    """`text` as part of a folder's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)[:60]
