"""The contract: what a method of decoding is.

To add a method, write one file in `methods/`. One that only looks at the text subclasses `TextMethod` and gives
`propose_text`; verification, caches, limits, EOS, counting and the losslessness tests are shared. README.md has
complete examples.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bench.drafting.knobs import Costs, NoKnobs
from bench.drafting.published import Published
from bench.drafting.sequence import Draft, Outcome, Sequence, States, Step
from bench.typed_json import decode_value

if TYPE_CHECKING:  # torch is imported where it is used: a method is known by its knobs before
    from bench.drafting.sampling import Sampler
    from bench.drafting.verify import Verify
    from bench.engine.decoder import Decoder
    from bench.models.checkpoints import Checkpoint

__all__ = ["Answer", "Draft", "Method", "NoKnobs", "Outcome", "Peer", "Sequence", "SpeculativeMethod", "States"]
__all__ += ["Step", "TextMethod"]


class Method(ABC):  # noqa: B024 - its two kinds say what there is to do
    """What is plugged in, and found by its name."""

    Config: type = NoKnobs  # a frozen dataclass of this method's knobs; raises ValueError on bad values
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # words for several knobs at once: `name:word`

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

    def knobs(self) -> dict[str, Any]:
        """The knobs as asked for, completed by what the weights say, for `run.json`."""
        return asdict(self.config)

    @property
    def measured(self) -> dict[str, Any]:
        """Values of knobs that were left open and measured or chosen at the start: given back, they repeat a run."""
        return {}

    @classmethod
    def repeated(cls, config: Any, recorded: dict[str, Any], *, lenient: bool = False) -> Any:
        """`config` with recorded values of some knobs. `lenient`: those that it does not have are left out.

        Raises:
            ValueError: a value that its knob does not take.

        """
        return decode_value(cls.Config, asdict(config) | recorded, lenient=lenient)


class SpeculativeMethod(Method):
    """What proposes: weights and a rule. It holds no text: that is in the sequences, with the method's own notes.

    A sequence is opened once its prompt was read. Then, step by step, drafts are proposed, verified in one pass of the
    target, and what became of them is told.
    """

    taps: tuple[int, ...] = ()  # states after so many layers of the target that it wants to see
    resume_layer: int = 0  # layers of the target that drafting has already run when a draft is verified
    published: ClassVar[Published | None] = None  # what its published form costs, for the lab
    memory: str = "question"  # what it remembers: nothing beyond a question; or "run"; or "corpus:<sha256>"

    @abstractmethod
    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """For each sequence, drafts to follow its context, at most its budget of them in a row. May be none."""

    def open(self, sequence: Sequence, prompt: States) -> None:
        """The prompt was read, and `sequence.context` ends with the first token of the answer."""

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """What became of the drafts; the sequences are up to date."""

    def forget(self) -> None:
        """Drop what outlives a question: called at the start of every round and after the warm-up."""

    def verification(self, sampler: Sampler | None) -> Verify:
        """How drafts are accepted: losslessly, unless a knob of the method says otherwise."""
        from bench.drafting.verify import exact

        return exact(sampler)

    def probing(self, windows: int) -> tuple[Any, int]:
        """The configuration that drafts in a row whatever the chances, and how many of `windows` it can so.

        What `--probe-windows` asks; a method that says 0 is not probed.
        """
        return self.config, 0

    def draft_calls(self) -> Many[Callable[[], object]]:
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
        from bench.drafting import costs

        return costs.measure(self.target, self.resume_layer, self.draft_calls(), self.widest)


class TextMethod(SpeculativeMethod):
    """Drafts from the text alone, as most methods without training do."""

    @abstractmethod
    def propose_text(self, context: list[int], budget: int) -> Draft:
        """Drafts to follow the text so far (prompt and answer), at most `budget` of them in a row. May be none."""

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Text by text."""
        return [
            self.propose_text(sequence.context, budget) for sequence, budget in zip(sequences, budgets, strict=True)
        ]


class Peer(Method):
    """Another library's whole decode, counted like everybody's: it brings its own loop instead of drafts."""

    lossless: bool = True
    extra_parameters: int = 0

    def __init__(self, target: Decoder, config: Any, checkpoint: Checkpoint):
        super().__init__(target, config)  # the target: for its dtype and device
        self.checkpoint = checkpoint

    @abstractmethod
    def generate(self, prompt: Many[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None) -> Answer:
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
