"""LayerSkip's self-speculation (Elhoushi et al., arXiv 2404.16710): drafts from the target's own first layers.

The draft model is the first `exit_layer` layers, the final norm and the LM head. The remaining layers verify, starting
from the exit states that drafting already computed. Needs a target that was trained for early exits: of others, hardly
a draft is right. Kangaroo adds an adapter to the same loop, so the difference between the two is what that is worth.

Beyond the paper: drafting stops where one more draft is expected to cost more than it gains, by what the question has
shown so far. `layer-skip:paper` always drafts six tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from bench.config import setting
from bench.drafting.chains import ChainMethod, draft_of
from bench.drafting.pace import PacedConfig
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.drafting.stopping import Candidate, GainRule, ThresholdRule
from bench.drafting.together import in_step
from bench.drafting.tree import ROOT, chain_of
from bench.engine import MAX_DRAFTS
from bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from bench.drafting.sampling import Sampler
    from bench.engine.decoder import Decoder


@dataclass(frozen=True)
class LayerSkipConfig(PacedConfig):
    """The knobs of LayerSkip."""

    stops: ClassVar[tuple[str, ...]] = ("gain", "threshold")
    stop: str = setting(
        "gain",
        "gain: once one more draft is expected to cost more than it gains on this device; threshold: once a draft's "
        "probability is below it",
    )
    exit_layer: int = setting(0, "layers of the draft model; 0: a quarter (paper: 8 of Llama 2 7B's 32)")
    gamma: int = setting(6, "most drafts in a row")
    threshold: float = setting(0.0, "for stop=threshold: that probability; 0: never stop, as published")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit_layer < 0:
            raise ValueError(f"exit_layer={self.exit_layer} must be at least 1 (0: a quarter of the layers)")
        if not 1 <= self.gamma <= MAX_DRAFTS:
            raise ValueError(f"gamma={self.gamma} must be in 1..{MAX_DRAFTS}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be in [0, 1]")


@dataclass
class Notes:
    """The state of a sequence."""

    rule: GainRule | ThresholdRule
    drafted: Many[int] | None = None  # its own draft of the current step


class Asked(NamedTuple):
    """A token that the first layers run over."""

    sequence: Sequence
    token: int
    row: int  # 0: the newest token; i + 1: draft i
    last: bool = False  # nothing is drafted after it


class LayerSkip(ChainMethod):
    """Drafts with the target's own first layers."""

    Config = LayerSkipConfig
    family = "self"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"stop": "threshold", "threshold": 0.0, "gamma": 6}}

    def __init__(self, target: Decoder, config: LayerSkipConfig):
        layers = target.config.layers
        self.resume_layer = config.exit_layer or max(1, layers // 4)
        if self.resume_layer >= layers:
            remedy = "it is too small for this method" if layers == 1 else f"take at most {layers - 1}"
            unfit = f"layer-skip: exit_layer={self.resume_layer} leaves no layers to verify: {target.name} has {layers}"
            raise UserError(f"{unfit}, {remedy}")
        super().__init__(target, replace(config, exit_layer=self.resume_layer))

    def draft_calls(self) -> Many[Callable[[], object]]:
        """The LM head on an exit state."""
        state = self.target.embed([0] * self.target.sequences)

        def call() -> object:
            return [self._candidate(logits, ROOT, None) for logits in self.target.logits(state[0])]

        return [call]

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Start a question's rule."""
        c = self.config
        sequence.notes = Notes(GainRule(None, self.costs) if c.stop == "gain" else ThresholdRule(c.threshold))

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return a chain for each sequence; the first layers run over all that still draft."""
        drafting = [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        return in_step(drafting, self._answer)

    def _draft(self, sequence: Sequence, budget: int) -> Generator[Asked, tuple[Tensor, Tensor | None], Draft]:
        """Draft until the rule stops it."""
        import torch

        rule, calls = sequence.notes.rule, 0
        kept: list[Candidate] = []
        states: list[Tensor] = []
        rule.begin()
        while calls < min(self.config.gamma, budget) and rule.goes_on():
            token = kept[-1].token if kept else sequence.context[-1]
            state, logits = yield Asked(sequence, token, len(kept))
            states.append(state)
            calls += 1
            assert logits is not None
            found = rule.keep([self._candidate(logits, len(kept) - 1, sequence.sampler)], 1)
            if not found:
                break
            kept += found
        if kept and len(states) == len(kept):  # the last draft's, too, is resumed from
            state, _ = yield Asked(sequence, kept[-1].token, len(kept), last=True)
            states.append(state)
        joined, layer = (torch.cat(states, dim=1), self.resume_layer) if states else (None, 0)
        draft = draft_of(kept, states=joined, resume_layer=layer, calls=calls)
        sequence.notes.drafted = draft.tokens
        return draft

    def _answer(self, asked: Many[Asked]) -> list[tuple[Tensor, Tensor | None]]:
        """Return of each token its state [1, 1, d] after the first layers, and the logits [V] by it if need be."""
        from bench.engine.joined import Part, run_joined

        target = self.target
        parts = [
            Part(chain_of(one.row).places(one.sequence.length, target.device, one.row, 1), one.sequence.cache)
            for one in asked
        ]
        states = run_joined(target, target.embed([one.token for one in asked]), parts, 0, self.resume_layer)
        going = [i for i, one in enumerate(asked) if not one.last]
        logits = dict(zip(going, target.logits(states[0, going]), strict=True)) if going else {}
        return [(states[:, i : i + 1], logits.get(i)) for i in range(len(asked))]

    def _candidate(self, logits: Tensor, parent: int, sampler: Sampler | None) -> Candidate:
        """Return what may follow by an exit state's logits [V]: the most probable token, or a drawn one."""
        best = logits.softmax(-1).max(-1)
        if sampler is None:
            return Candidate(parent, int(best.indices), float(best.values))
        q = sampler.probabilities(logits[None])[0]
        # Its confidence is the largest probability: stopping by that of the drawn token would not be lossless.
        return Candidate(parent, sampler.draw(q), float(best.values), q)

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Report the outcome of its own drafts to the rule."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            if outcome.is_of(sequence.notes.drafted):
                sequence.notes.rule.end(outcome.emitted)
