"""The contract of a method, the steps that most methods share, and the one loop that counts for everybody.

To add a method, write one file in this folder. If it only *proposes* tokens, subclass `SpeculativeMethod` and give
`propose`; verification, cache surgery, limits, EOS, counting and the losslessness tests are inherited. README.md has a
complete example.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bench.drafting import costs
from bench.drafting.costs import Costs
from bench.drafting.published import Published
from bench.drafting.sampling import Sampler
from bench.drafting.step import Step
from bench.drafting.tree import ROOT, Tree, chain_of, tree_of
from bench.drafting.verify import accept_greedy, accept_sampled, accept_typical
from bench.engine.decoder import Decoder
from bench.engine.timing import between_s, mark, now_s
from bench.models.checkpoints import Checkpoint

T = TypeVar("T")


@dataclass(frozen=True)
class NoKnobs:
    """The configuration of a method that has nothing to set."""


class Method(ABC):
    """Decodes one question at a time, a step at a time, on the shared engine.

    Nothing that a method learns while decoding outlives a question unless a knob says so: `prefill` starts afresh.
    """

    Config: type = NoKnobs  # a frozen dataclass of this method's knobs; raises ValueError on bad values
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # words for several knobs at once: `name:word`
    sampler: Sampler | None = None  # set by the runner; None: greedy decoding

    def __init__(self, target: Decoder, config: Any):
        self.target = target
        self.config = config

    @property
    def lossless(self) -> bool:
        """With this configuration greedy output must equal vanilla's, and samples must be distributed as vanilla's."""
        return True

    @property
    def extra_parameters(self) -> int:
        """Weights that the method adds to the target."""
        return 0

    @property
    def notes(self) -> dict[str, Any]:
        """What `run.json` should say of the method besides its knobs, such as what it predicts of itself."""
        return {}

    @abstractmethod
    def prefill(self, prompt: Sequence[int]) -> int:
        """Forget the last question, read the prompt, and give the answer's first token."""

    @abstractmethod
    def step(self, room: int) -> Step:
        """One target verification pass. `room` >= 1: tokens that the answer may still take; never emit more."""


class Peer(ABC):
    """Another library's whole decode, counted like everybody's: it brings its own loop instead of a step."""

    Config: type = NoKnobs
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    sampler: Sampler | None = None
    lossless: bool = True
    extra_parameters: int = 0

    @property
    def notes(self) -> dict[str, Any]:
        """What `run.json` should say of the peer besides its knobs."""
        return {}

    def __init__(self, target: Decoder, config: Any, checkpoint: Checkpoint):
        self.target = target  # for its dtype and device
        self.config = config
        self.checkpoint = checkpoint

    @abstractmethod
    def generate(self, prompt: Sequence[int], limit: int, eos: frozenset[int]) -> Answer:
        """Decode at most `limit` tokens, timed by the peer itself as `decode` does."""


@dataclass
class Answer:
    """A decoded answer with its times (seconds on the host's clock, the device synchronised at both ends)."""

    token_ids: list[int]
    prefill_s: float
    decode_s: float
    steps: list[Step] = field(default_factory=list)  # as kept: the tail after EOS is cut off
    first_tokens: int = 1  # that came with the prefill

    def finish(self, eos: frozenset[int]) -> str:
        """Why it ended: "eos" or "length"."""
        return "eos" if self.token_ids and self.token_ids[-1] in eos else "length"


def decode(method: Method | Peer, prompt: Sequence[int], limit: int, eos: frozenset[int]) -> Answer:
    """The answer of `method` to `prompt`: at most `limit` tokens (>= 1), ending with the first one in `eos`.

    The only place where EOS and the limit are applied, for vanilla as for every method; peers, which bring their own
    loop, are held to the same.
    """
    return at_once(decoding(method, prompt, limit, eos))


def at_once(pieces: Generator[None, None, T]) -> T:
    """What a generator that never pauses returns."""
    try:
        next(pieces)
    except StopIteration as ended:
        value: T = ended.value
        return value
    raise AssertionError("it paused, although not asked to")


def decoding(
    method: Method | Peer, prompt: Sequence[int], limit: int, eos: frozenset[int], pause_after: int = 0
) -> Generator[None, None, Answer]:
    """`decode` in pieces: it pauses after the prefill and then after every `pause_after` steps (0: never).

    What happens in a pause is not timed. A peer cannot be made to pause.
    """
    if isinstance(method, Peer):
        answer = method.generate(prompt, limit, eos)
        assert 1 <= len(answer.token_ids) <= limit, f"{type(method).__name__} gave {len(answer.token_ids)} tokens"
        assert not eos & set(answer.token_ids[:-1]), f"{type(method).__name__} went on after the end"
        return answer
    device = method.target.device
    start_s = now_s(device)
    tokens = [method.prefill(prompt)]
    prefill_s = now_s(device) - start_s
    if pause_after:
        yield
    decode_s, start_s = 0.0, now_s(device)
    steps: list[Step] = []
    while len(tokens) < limit and tokens[-1] not in eos:
        step = method.step(limit - len(tokens))
        assert step.emitted, f"{type(method).__name__} made a step that emitted nothing"
        steps.append(cut_at_eos(step, eos))
        tokens += steps[-1].emitted
        if pause_after and len(steps) % pause_after == 0:
            decode_s += now_s(device) - start_s
            yield
            start_s = now_s(device)
    decode_s += now_s(device) - start_s
    for step in steps:
        if step.marks:
            drafting, verifying, verified = step.marks
            step.draft_s, step.verify_s = between_s(drafting, verifying), between_s(verifying, verified)
    assert len(tokens) <= limit, f"{type(method).__name__} emitted {len(tokens)} tokens with room for {limit}"
    return Answer(tokens, prefill_s, decode_s, steps)


def cut_at_eos(step: Step, eos: frozenset[int]) -> Step:
    """The step without what follows its first EOS; `emitted` and `accepted` count only what was kept."""
    for i, token in enumerate(step.emitted[:-1]):
        if token in eos:
            # The bonus, always last, is gone; all that is kept was drafted.
            accepted = min(step.accepted, i + 1)
            return replace(
                step,
                emitted=step.emitted[: i + 1],
                accepted=accepted,
                accepted_confidence=step.accepted_confidence[:accepted],
                rejected=[],
                rejected_confidence=[],
            )
    return step


@dataclass(frozen=True)
class Draft:
    """A tree of proposed tokens; without `parents`, a chain.

    A method that already ran the target's first layers over the newest token and the drafts hands their states over,
    and verification resumes there.
    """

    tokens: Sequence[int]  # [n], n may be 0
    # [n]: which draft each one follows, by number, -1: the newest token; parents come before their children. Siblings
    # are tried in their order. None: each follows the one before.
    parents: Sequence[int] | None = None
    # When sampling: of each draft, the distribution [V] that it was drawn from (siblings: one and the same, without
    # replacement). None: the drafts are deterministic, as most are.
    drawn: Sequence[Tensor] | None = None
    states: Tensor | None = None  # [1, n + 1, d]: outputs of the layers below `resume_layer`, newest token first
    resume_layer: int = 0
    confidences: Sequence[float] | None = None  # of each draft, the draft model's probability; for the records only
    calls: int | None = None  # runs of the draft model that it took; None: one, for any drafts

    @functools.cached_property
    def tree(self) -> Tree:
        """Which draft follows which."""
        return chain_of(len(self.tokens)) if self.parents is None else tree_of(self.parents)


class SpeculativeMethod(Method):
    """Propose, verify in one target pass, commit. A subclass gives `propose` and may listen to the other two hooks.

    `self.context` holds prompt and answer so far; its last token is the *newest*: emitted, but not yet read by the
    target. `self.length` counts the positions that the target's cache holds for good: all but the newest.
    """

    exit_layer: int = 0  # states after this many layers are handed to `begin`
    published: ClassVar[Published | None] = None  # what its published form costs, for the lab
    typical: tuple[float, float] | None = None  # epsilon and delta of typical acceptance, which is not lossless

    def __init__(self, target: Decoder, config: Any):
        super().__init__(target, config)
        self.cache = target.new_cache()
        self.context: list[int] = []
        self.length = 0

    @property
    def lossless(self) -> bool:
        """Whatever is proposed, unless typical acceptance is asked for."""
        return self.typical is None

    @abstractmethod
    def propose(self, room: int) -> Draft:
        """Drafts to follow `self.context`, at most `room` of them in a row. May be none."""

    def begin(self, exit_states: Tensor, final_states: Tensor) -> None:
        """A prompt was read. States [1, n, d] after `exit_layer` layers, and after the last one (post-norm)."""

    def commit(self, accepted: Sequence[int], final_states: Tensor) -> None:
        """The drafts `accepted`, by number, were kept; `context` is up to date.

        Post-norm final states [1, len(accepted) + 1, d] of the token that was the newest and of the accepted drafts.
        """

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> int:
        """Read the prompt through all layers; the token that its last position yields."""
        exit_states = self.target.run_layers(self.target.embed(prompt), 0, self.cache, 0, self.exit_layer)
        final_states = self.target.final_norm(self.target.run_layers(exit_states, 0, self.cache, self.exit_layer))
        _, first = self._verify(Draft([]), self.target.project(final_states[0, -1:]))
        self.context = [*prompt, first]
        self.length = len(prompt)
        self.begin(exit_states, final_states)
        return first

    @torch.inference_mode()
    def step(self, room: int) -> Step:
        """Draft, verify all drafts in one pass over the remaining layers, keep the accepted ones and the bonus."""
        device = self.target.device
        drafting = mark(device)
        draft = self.propose(room - 1)
        verifying = mark(device)
        tree = draft.tree
        assert tree.depth < room, f"{tree.depth} drafts in a row proposed with room for {room - 1}"
        states = draft.states
        if states is None:
            states = self.target.embed([self.context[-1], *draft.tokens])
        states = self.target.run_layers(states, self.length, self.cache, draft.resume_layer, tree=tree)
        final_states = self.target.final_norm(states)
        accepted, bonus = self._verify(draft, self.target.project(final_states[0]))
        verified = mark(device)
        self.cache.keep_path(self.length, accepted)
        emitted = [*(draft.tokens[i] for i in accepted), bonus]
        self.context += emitted
        self.length += len(emitted)
        self.commit(accepted, final_states[:, [0, *(i + 1 for i in accepted)]])
        return _recorded(draft, accepted, emitted, (drafting, verifying, verified))

    @torch.inference_mode()
    def follow(self, token: int, room: int) -> list[int]:
        """Draft, then go on with `token` whatever the target says (for probes); the drafts of the first path."""
        draft = self.propose(room)
        states = draft.states
        states = self.target.embed([self.context[-1]]) if states is None else states[:, :1]
        states = self.target.run_layers(states, self.length, self.cache, draft.resume_layer)
        self.cache.keep_path(self.length, [])
        self.context.append(token)
        self.length += 1
        self.commit([], self.target.final_norm(states))
        path: list[int] = []
        node = ROOT
        while children := draft.tree.children.get(node, ()):
            node = children[0]
            path.append(draft.tokens[node])
        return path

    def probing(self, windows: int) -> tuple[Any, int]:
        """The configuration that drafts in a row whatever the chances, and how many of `windows` it can so.

        What `--probe-windows` asks; a method that says 0 is not probed.
        """
        return self.config, 0

    def draft_calls(self) -> Sequence[Callable[[], object]]:
        """Runs of the draft model, to be timed by themselves before a run (see `Costs.draft`); none: not known."""
        return []

    def draft_cost(self, measured: Costs) -> float:
        """A run of the draft model as it is used, by the measured costs."""
        return measured.draft[0]

    @property
    def widest(self) -> int:
        """Positions of its widest verification, as far as it is known."""
        return 1

    @functools.cached_property
    def costs(self) -> Costs:
        """What its passes cost on this device, measured when first asked for."""
        return costs.measure(self.target, self.exit_layer, self.draft_calls(), self.widest)

    def _verify(self, draft: Draft, logits: Tensor) -> tuple[list[int], int]:
        """The accepted drafts and the bonus, from the target's logits [n + 1, V]."""
        if self.sampler is None:
            choices = logits.argmax(-1).tolist()
            accepted = accept_greedy(draft.tokens, draft.tree, choices)
            return accepted, choices[accepted[-1] + 1 if accepted else 0]
        target = self.sampler.probabilities(logits)
        if self.typical is None:
            return accept_sampled(draft.tokens, draft.tree, target, draft.drawn, self.sampler)
        accepted = accept_typical(draft.tokens, draft.tree, target, *self.typical)
        return accepted, self.sampler.draw(target[accepted[-1] + 1 if accepted else 0])


def _recorded(draft: Draft, accepted: list[int], emitted: list[int], marks: tuple[Any, ...]) -> Step:
    """The step as records tell it."""
    children = draft.tree.children.get(accepted[-1] if accepted else ROOT, ())
    rejected = [node for node in children if draft.tokens[node] != emitted[-1]]
    said = draft.confidences
    return Step(
        emitted,
        drafted=len(draft.tokens),
        accepted=len(accepted),
        depth=draft.tree.depth,
        calls=int(bool(draft.tokens)) if draft.calls is None else draft.calls,
        rejected=[draft.tokens[node] for node in rejected],
        accepted_confidence=[] if said is None else [said[node] for node in accepted],
        rejected_confidence=[] if said is None else [said[node] for node in rejected],
        marks=marks,
    )


def probe(method: SpeculativeMethod, prompt: Sequence[int], answer: Sequence[int], windows: int) -> list[int]:
    """At each position of `answer` but its first token: how many of at most `windows` drafts in a row are right.

    Teacher-forced: every draft starts from the answer's own tokens. Of a tree, the first path counts.
    """
    method.prefill(prompt)
    method.context[-1] = answer[0]
    right = []
    for position in range(1, len(answer)):
        wanted = answer[position : position + windows]
        drafts = method.follow(answer[position], windows)
        hits = [draft == token for draft, token in zip(drafts, wanted, strict=False)]
        right.append(hits.index(False) if False in hits else len(hits))
    return right
