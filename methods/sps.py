"""SpS: a second, smaller model drafts a chain (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

The draft model is a decoder of the target's vocabulary with a cache of its own. `model=self` takes the target's own
weights in fewer bits: they take less time to read, and what they draft is nearly always the target's choice.

Beyond the papers: drafting stops where one more draft is expected to cost more than it gains on this device, by what
the question has shown so far, and the draft model is in eight bits where the engine's kernels run, as drafts need not
be exact. `sps:paper` does neither: its draft length is that of Spec-Bench's SpS and of transformers' assisted
generation (five drafts, two more after a full match, else one less).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from bench.config import setting
from bench.drafting.chains import ChainMethod, draft_of
from bench.drafting.pace import PacedConfig
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.drafting.stopping import Candidate, GainRule, HeuristicRule, ThresholdRule
from bench.drafting.together import in_step
from bench.engine import MAX_DRAFTS
from bench.errors import UserError
from bench.models import checkpoints

if TYPE_CHECKING:
    from torch import Tensor

    from bench.drafting.sampling import Sampler
    from bench.drafting.trained import Dimensioned
    from bench.engine.cache import KVCache
    from bench.engine.decoder import Decoder

SELF = "self"  # in place of the draft model's name
_SURE = 0.95  # the chance of the first drafts of a question where the draft model is the target itself
_WIDE = 16  # tokens of the wider one of the two calls that are timed


@dataclass(frozen=True)
class SpSConfig(PacedConfig):
    """The knobs of SpS."""

    stops: ClassVar[tuple[str, ...]] = ("gain", "heuristic", "threshold")
    stop: str = setting(
        "gain",
        "gain: once one more draft is expected to cost more than it gains on this device; heuristic: after five "
        "drafts, then two more after a full match, else one less; threshold: once a draft's probability is below it",
    )
    model: str = setting(
        "",
        "the draft model, as for --model, with the target's vocabulary; self: the target's own weights in fewer bits",
    )
    quantize: str = setting(
        "",
        "the draft model's weights: none, q8 or q4; default: q4 for self, else q8 where the engine's kernels run "
        "(drafts need not be exact), or q4 for a target in q4",
    )
    gamma: int = setting(16, "most drafts in a row")
    threshold: float = setting(0.0, "for stop=threshold: that probability; 0: never stop")
    drafts: str = setting("sampled", "when sampling: sampled, drafts are drawn; top, the most probable")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("quantize", ("", "none", "q8", "q4")), ("drafts", ("sampled", "top"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value} must be {' or '.join(filter(None, known))}")
        if self.model == SELF and self.quantize == "none":
            raise ValueError("model=self drafts with the target's weights in fewer bits: quantize must be q4 or q8")
        if not 1 <= self.gamma <= MAX_DRAFTS:
            raise ValueError(f"gamma={self.gamma} must be in 1..{MAX_DRAFTS}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be in [0, 1]")

    def check_files(self, model: str) -> None:
        """Raise UserError if no draft model is named, or it is unknown."""
        if not self.model:
            raise UserError(
                "sps needs a draft model: a smaller one with the same vocabulary (sps:model=NAME), or the target's own "
                "weights in four bits (sps:model=self)"
            )
        if self.model != SELF:
            with self.named():
                checkpoints.name_of(self.model)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the draft model's knobs in errors."""
        try:
            yield
        except UserError as error:
            quantize = f",quantize={self.quantize}" if self.quantize else ""
            raise UserError(f"sps:model={self.model}{quantize}: {error}") from error


@dataclass(frozen=True)
class Unread:
    """Tokens that the draft model is asked to read, of one text."""

    cache: KVCache
    start: int
    tokens: Many[int]


@dataclass(frozen=True)
class Choice:
    """What the draft model says of the next token: its logits [1, vocab], the most probable one and its probability."""

    logits: Tensor
    token: int
    confidence: float


@dataclass
class Notes:
    """The state of a sequence."""

    rule: GainRule | HeuristicRule | ThresholdRule
    cache: KVCache  # the draft model's
    read: int = 0  # tokens of the text that it holds
    ahead: Many[int] = ()  # drafts of the current step that it holds after them
    drafted: Many[int] | None = None  # its own draft of the current step


class SpS(ChainMethod):
    """Drafts with a second decoder."""

    Config = SpSConfig
    family = "model"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"stop": "heuristic", "gamma": MAX_DRAFTS, "quantize": "none"}
    }

    def __init__(self, target: Decoder, config: SpSConfig):
        from bench.models import loading, second

        config.check_files(target.name)
        with config.named():
            self.draft = second.load(target, None if config.model == SELF else config.model, config.quantize)
        self.digest = loading.checkpoint_of(self.draft).sha256
        self.vocab = min(target.config.vocab, self.draft.config.vocab)  # the last rows of either may be padding
        self.expected = _SURE if second.is_same(target, self.draft) else None
        self.caches: dict[int, KVCache] = {}  # the draft model's, by a sequence's slot
        super().__init__(target, replace(config, quantize=self.draft.quantize))

    @classmethod
    def check_weights(cls, config: SpSConfig, model: Dimensioned) -> None:
        """Find the draft model, and compare its vocabulary with the target's."""
        from bench.models import loading, second

        config.check_files(model.name)
        if isinstance(model, loading.Model):
            with config.named():
                second.find(None if config.model == SELF else config.model, model.checkpoint)

    @property
    def extra_parameters(self) -> int:
        """Those of the draft model."""
        return self.draft.parameters

    @property
    def notes(self) -> dict[str, Any]:
        """The draft model."""
        from bench.models import second

        return super().notes | second.notes(self.target, self.draft)

    def draft_calls(self) -> Many[Callable[[], object]]:
        """Read one token of every sequence, or several, half-way in the context, and choose the next one."""
        caches = [self.draft.new_cache() for _ in range(self.target.sequences)]
        for cache in caches:
            cache.zero()
        position = self.draft.max_len // 2
        return [partial(self._read, [Unread(cache, position, [0] * n) for cache in caches]) for n in (1, _WIDE)]

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Prefill the draft model, unless the prompt is beyond its context: then nothing is drafted."""
        if sequence.slot not in self.caches:
            self.caches[sequence.slot] = self.draft.new_cache()
        c, cache = self.config, self.caches[sequence.slot]
        if c.stop == "gain":
            sequence.notes = Notes(GainRule(None, self.costs, self.expected), cache)
        else:
            sequence.notes = Notes(HeuristicRule() if c.stop == "heuristic" else ThresholdRule(c.threshold), cache)
        if sequence.length <= self.draft.max_len:
            self.draft.run_layers(self._embed(sequence.context[:-1]), 0, cache)
            sequence.notes.read = sequence.length

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return a chain for each sequence; the draft model runs over all that still draft."""
        return in_step(
            [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)], self._read
        )

    def _draft(self, sequence: Sequence, budget: int) -> Generator[Unread, Choice, Draft]:
        """Draft until the rule stops it."""
        notes, length = sequence.notes, len(sequence.context)
        rule, start, unread = notes.rule, notes.read, sequence.context[notes.read :]
        calls, most = 0, min(self.config.gamma, budget, self.draft.max_len - length + 1)
        kept: list[Candidate] = []
        rule.begin()
        while calls < most and rule.goes_on():
            choice = yield Unread(notes.cache, start, unread)
            candidate = self._candidate(choice, sequence.sampler, calls - 1)
            start, calls = start + len(unread), calls + 1
            if not rule.keep([candidate], 1):
                break
            kept.append(candidate)
            unread = [candidate.token]
        if calls:
            if isinstance(rule, GainRule):  # what the first call has read besides the newest token
                per_token = (self.costs.draft[-1] - self.costs.draft[0]) / (_WIDE - 1)
                rule.pace.pay((length - notes.read - 1) * per_token)
            notes.read = length
        draft = draft_of(kept, calls=calls)
        notes.drafted, notes.ahead = draft.tokens, draft.tokens[: max(0, calls - 1)]
        return draft

    def _read(self, asked: Many[Unread]) -> list[Choice]:
        """Read tokens of several texts, and return what may follow each."""
        import torch

        from bench.engine.joined import Part, run_joined
        from bench.engine.places import Places

        parts = [Part(Places.after(one.start, len(one.tokens)), one.cache) for one in asked]
        states = run_joined(self.draft, self._embed([token for one in asked for token in one.tokens]), parts)
        last = [end - 1 for end in accumulate(part.width for part in parts)]
        logits = self.draft.logits(states[0, last])[:, : self.vocab]
        best = logits.softmax(-1).max(-1)
        said = torch.stack((best.values.double(), best.indices.double()), dim=-1).tolist()  # one transfer for all
        return [Choice(logits[i : i + 1], int(token), confidence) for i, (confidence, token) in enumerate(said)]

    def _candidate(self, choice: Choice, sampler: Sampler | None, parent: int) -> Candidate:
        """Return what may follow: the most probable token, or when sampling a drawn one."""
        import torch

        if sampler is None or self.config.drafts == "top":
            return Candidate(parent, choice.token, choice.confidence)
        q = sampler.probabilities(choice.logits)[0]
        q = torch.nn.functional.pad(q, (0, self.target.config.vocab - self.vocab))
        # Its confidence is the largest probability: stopping by that of the drawn token would not be lossless.
        return Candidate(parent, sampler.draw(q), choice.confidence, q)

    def _embed(self, tokens: Many[int]) -> Tensor:
        """Return the embedding [1, n, d]. A token that only the target has is read as another: drafts may be wrong."""
        return self.draft.embed([min(token, self.vocab - 1) for token in tokens])

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Keep what the draft model has read of the text, and report the outcome of its own drafts to the rule."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            notes = sequence.notes
            if outcome.is_of(notes.drafted):
                notes.rule.end(outcome.emitted)
            pairs = zip(notes.ahead, outcome.emitted, strict=False)
            right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            # The newest token is read in the next step, for what follows it.
            notes.read, notes.ahead = min(notes.read + right, len(sequence.context) - 1), ()
