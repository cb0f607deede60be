"""The contract of a method, the steps that most methods share, and the one loop that counts for everybody.

To add a method, write one file in this folder. If it only *proposes* tokens, subclass `SpeculativeMethod` and give
`propose`; verification, cache surgery, limits, EOS, counting and the losslessness tests are inherited. README.md has a
complete example.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.checkpoints import Checkpoint
from bench.engine.decoder import Decoder
from bench.engine.execute import now_s
from bench.engine.verify import accept_greedy
from bench.records import Step


@dataclass(frozen=True)
class NoKnobs:
    """The configuration of a method that has nothing to set."""


class Method(ABC):
    """Decodes one question at a time, a step at a time, on the shared engine.

    Nothing that a method learns while decoding outlives a question unless a knob says so: `prefill` starts afresh.
    """

    Config: type = NoKnobs  # a frozen dataclass of this method's knobs; raises ValueError on bad values
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # words for several knobs at once: `name:word`

    def __init__(self, target: Decoder, config: Any):
        self.target = target
        self.config = config

    @property
    def lossless(self) -> bool:
        """With this configuration greedy output must equal vanilla's."""
        return True

    @property
    def extra_parameters(self) -> int:
        """Weights that the method adds to the target."""
        return 0

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
    lossless: bool = True
    extra_parameters: int = 0

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

    def finish(self, eos: frozenset[int]) -> str:
        """Why it ended: "eos" or "length"."""
        return "eos" if self.token_ids and self.token_ids[-1] in eos else "length"


def decode(method: Method | Peer, prompt: Sequence[int], limit: int, eos: frozenset[int]) -> Answer:
    """The answer of `method` to `prompt`: at most `limit` tokens (>= 1), ending with the first one in `eos`.

    The only place where EOS and the limit are applied, for vanilla as for every method.
    """
    if isinstance(method, Peer):
        return method.generate(prompt, limit, eos)
    device = method.target.device
    start_s = now_s(device)
    tokens = [method.prefill(prompt)]
    prefilled_s = now_s(device)
    steps: list[Step] = []
    while len(tokens) < limit and tokens[-1] not in eos:
        step = method.step(limit - len(tokens))
        assert step.emitted, f"{type(method).__name__} made a step that emitted nothing"
        steps.append(cut_at_eos(step, eos))
        tokens += steps[-1].emitted
    end_s = now_s(device)
    assert len(tokens) <= limit, f"{type(method).__name__} emitted {len(tokens)} tokens with room for {limit}"
    return Answer(tokens, prefilled_s - start_s, end_s - prefilled_s, steps)


def cut_at_eos(step: Step, eos: frozenset[int]) -> Step:
    """The step without what follows its first EOS; `emitted` and `accepted` count only what was kept."""
    for i, token in enumerate(step.emitted[:-1]):
        if token in eos:
            # The bonus, always last, is gone; all that is kept was drafted.
            return Step(step.emitted[: i + 1], step.drafted, min(step.accepted, i + 1), step.draft_s)
    return step


@dataclass(frozen=True)
class Draft:
    """A chain of proposed tokens.

    A method that already ran the target's first layers over the newest token and the drafts hands their states over,
    and verification resumes there.
    """

    tokens: Sequence[int]  # [n], n may be 0
    states: Tensor | None = None  # [1, n + 1, d]: outputs of the layers below `resume_layer`, newest token first
    resume_layer: int = 0


class SpeculativeMethod(Method):
    """Propose, verify in one target pass, commit. A subclass gives `propose` and may listen to the other two hooks.

    `self.context` holds prompt and answer so far; its last token is the *newest*: emitted, but not yet read by the
    target. `self.length` counts the positions that the target's cache holds for good: all but the newest.
    """

    exit_layer: int = 0  # states after this many layers are handed to `begin`

    def __init__(self, target: Decoder, config: Any):
        super().__init__(target, config)
        self.cache = target.new_cache()
        self.context: list[int] = []
        self.length = 0

    @abstractmethod
    def propose(self, room: int) -> Draft:
        """At most `room` drafts to follow `self.context`. May be none."""

    def begin(self, exit_states: Tensor, final_states: Tensor) -> None:
        """A prompt was read. States [1, n, d] after `exit_layer` layers, and after the last one (before the norm)."""

    def commit(self, accepted: int, final_states: Tensor) -> None:
        """The first `accepted` drafts were kept, `context` is up to date. States [1, accepted + 1, d] as in `begin`."""

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> int:
        """Read the prompt through all layers; argmax of the last position."""
        exit_states = self.target.run_layers(self.target.embed(prompt), 0, self.cache, 0, self.exit_layer)
        final_states = self.target.run_layers(exit_states, 0, self.cache, self.exit_layer)
        first = int(self.target.logits(final_states[:, -1]).argmax(-1))
        self.context = [*prompt, first]
        self.length = len(prompt)
        self.begin(exit_states, final_states)
        return first

    @torch.inference_mode()
    def step(self, room: int) -> Step:
        """Draft, verify all drafts in one pass over the remaining layers, keep the accepted ones and the bonus."""
        start_s = time.perf_counter()
        draft = self.propose(room - 1)
        draft_s = time.perf_counter() - start_s
        assert len(draft.tokens) < room, f"{len(draft.tokens)} drafts proposed with room for {room - 1}"
        states = draft.states
        if states is None:
            states = self.target.embed([self.context[-1], *draft.tokens])
        final_states = self.target.run_layers(states, self.length, self.cache, draft.resume_layer)
        choices = self.target.logits(final_states[0]).argmax(-1).tolist()
        accepted = accept_greedy(draft.tokens, choices)
        emitted = choices[: accepted + 1]
        self.context += emitted
        self.length += accepted + 1
        self.commit(accepted, final_states[:, : accepted + 1])
        return Step(emitted, len(draft.tokens), accepted, draft_s)
