"""The interface of decoding methods.

To add a method, write one file in `methods/`. A method that only looks at the text subclasses `TextMethod` and defines
`propose_text`. Verification, caches, limits, EOS, counting and the losslessness tests are shared.
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
    from bench.drafting.trained import Dimensioned
    from bench.drafting.verify import Verify
    from bench.engine.decoder import Decoder
    from bench.models.checkpoints import Checkpoint

__all__ = ["Answer", "Draft", "Method", "NoKnobs", "Outcome", "Peer", "Sequence", "SpeculativeMethod", "States"]
__all__ += ["Step", "TextMethod"]

QUESTION, RUN = "question", "run"  # what a method remembers


class Method(ABC):  # noqa: B024 - its two kinds have the abstract methods
    """A decoding method, found by its name. Its module's docstring is its description."""

    Config: type = NoKnobs  # a frozen dataclass of this method's knobs; raises ValueError on bad values
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # names for sets of knobs: `name:preset`
    family: ClassVar[str] = ""  # reports sort by it: text, heads, self (the target's layers or output), or your own

    def __init__(self, target: Decoder, config: Any):
        self.target = target
        self.config = config

    @classmethod  # noqa: B027 - most have no weights
    def check_weights(cls, config: Any, model: Dimensioned) -> None:
        """Raise UserError if the method's weights cannot be for `model`, as far as is known before any are read."""

    @property
    def lossless(self) -> bool:
        """Whether greedy output equals vanilla's, and samples are distributed as vanilla's, with this configuration."""
        return True

    @property
    def extra_parameters(self) -> int:
        """The number of weights that the method adds to the target."""
        return 0

    @property
    def notes(self) -> dict[str, Any]:
        """What `run.json` records of the method besides its knobs, such as predictions."""
        return {}

    def knobs(self) -> dict[str, Any]:
        """Return the knobs for `run.json`: as asked for, with defaults stored with the weights filled in."""
        return asdict(self.config)

    @property
    def measured(self) -> dict[str, Any]:
        """Values of knobs that were measured or chosen at the start. A run that is given them repeats the choices."""
        return {}

    @classmethod
    def repeated(cls, config: Any, recorded: dict[str, Any], *, lenient: bool = False) -> Any:
        """Return `config` with recorded values of some knobs. `lenient`: unknown knobs are ignored.

        Raises:
            ValueError: a knob does not take the value.

        """
        return decode_value(cls.Config, asdict(config) | recorded, lenient=lenient)


class SpeculativeMethod(Method):
    """A method that drafts: weights and a rule. Text is in the sequences, along with the method's own notes.

    A sequence is opened after its prefill. In each step drafts are proposed and verified in one forward pass of the
    target, and the method observes their outcome.
    """

    taps: tuple[int, ...] = ()  # numbers of layers after which it needs the target's states
    resume_layer: int = 0  # layers of the target that drafting has already run when a draft is verified
    published: ClassVar[Published | None] = None  # the cost of its published form, for the lab
    memory: str = QUESTION  # how long it remembers: "question", "run", or "corpus:<sha256>"
    followed: bool = False  # in a composition: whether another member may draft where it does not
    digest: str = ""  # of its weights, the sha256 of their files; "": it has none

    @property
    def notes(self) -> dict[str, Any]:
        """The digest of the weights."""
        return {"weights_sha256": self.digest} if self.digest else {}

    @abstractmethod
    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return for each sequence drafts to follow its context, at most its budget of them in a row. May be none."""

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Start a sequence after its prefill; `sequence.context` ends with the first token of the answer."""

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Observe the outcomes of the drafts. The sequences are already extended by them."""

    def forget(self) -> None:
        """Drop memory of earlier questions. Called at the start of every round and after the warm-up."""

    def verification(self, sampler: Sampler | None) -> Verify:
        """Return how drafts are accepted: losslessly, unless a knob of the method says otherwise."""
        from bench.drafting.verify import exact

        return exact(sampler)

    def probing(self, windows: int) -> tuple[Any, int]:
        """Return a configuration that never stops drafting early, and how many of `windows` drafts it makes in a row.

        Used by `--probe-windows`. A method that returns 0 is not probed.
        """
        return self.config, 0

    def draft_calls(self) -> Many[Callable[[], object]]:
        """Return calls of the draft model to time before a run (see `Costs.draft`); none: the cost is unknown.

        A call drafts for all of `target.sequences` sequences.
        """
        return []

    def draft_cost(self, measured: Costs) -> float:
        """Return the cost of the draft model's call as it is used."""
        return measured.draft[0]

    @property
    def widest(self) -> int:
        """The number of tokens of its widest verification, as far as it is known."""
        return 1

    @functools.cached_property
    def costs(self) -> Costs:
        """Its forward-pass costs on this device: those of the knob `costs`, else measured on first use."""
        if given := getattr(self.config, "costs", ""):
            return Costs.parse(given)
        from bench.drafting import costs

        return costs.measure(self.target, self.resume_layer, self.draft_calls(), self.widest)


class GainMethod(SpeculativeMethod):
    """A method whose knob stop=gain weighs drafts by costs: those of the knob `costs`, else measured."""

    @property
    def measured(self) -> dict[str, Any]:
        """The costs that stop=gain uses, if they were measured."""
        return {"costs": str(self.costs)} if self.config.stop == "gain" and not self.config.costs else {}


class TextMethod(SpeculativeMethod):
    """A method that drafts from the text alone, as most training-free methods do."""

    family = "text"

    @abstractmethod
    def propose_text(self, context: list[int], budget: int) -> Draft:
        """Return drafts to follow the text so far (prompt and answer), at most `budget` in a row. May be none."""

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return a draft for each text."""
        return [
            self.propose_text(sequence.context, budget) for sequence, budget in zip(sequences, budgets, strict=True)
        ]


class Peer(Method):
    """Another library's decoding with a loop of its own, measured like ours."""

    lossless: bool = True
    extra_parameters: int = 0
    needs: ClassVar[dict[str, str]] = {}  # module -> the package that has it, of what does not come with the project
    example: ClassVar[str] = ""  # as `--peer` takes it, where the name alone is not enough

    def __init__(self, target: Decoder, config: Any, checkpoint: Checkpoint):
        super().__init__(target, config)  # the target: for its dtype and device
        self.checkpoint = checkpoint

    @property
    def engine(self) -> dict[str, Any]:
        """Return the library that decodes: `name`, `version`, and the `flags` that matter; empty: this one."""
        return {}

    def elsewhere_s(self) -> float | None:
        """Return the processor seconds that its own processes beside this one have used so far; None: not known."""
        return 0.0

    def tune(self, prompt: Many[int]) -> None:
        """Choose what makes it fastest on this machine, such as its threads, and add it to `notes`."""

    @abstractmethod
    def generate(self, prompt: Many[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None) -> Answer:
        """Decode at most `limit` tokens; the peer takes its times as `decode` does."""


@dataclass
class Answer:
    """A decoded answer with its times: seconds on the host's clock, the device synchronised at both ends."""

    token_ids: list[int]
    prefill_s: float
    decode_s: float
    steps: list[Step] = field(default_factory=list)  # as kept: the tail after EOS is cut off
    first_tokens: int = 1  # emitted by the prefill
    decode_passes: int | None = None  # after the prefill, of a peer that counts them; None: see `steps`
    drafted: int | None = None  # tokens, of a peer whose engine tells them; None: see `steps`
    accepted: int | None = None  # likewise

    def finish(self, eos: frozenset[int]) -> str:
        """Return why it ended: "eos" or "length"."""
        return "eos" if self.token_ids and self.token_ids[-1] in eos else "length"
