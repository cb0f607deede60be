"""DFlash: a block of drafts in one pass of a small network (arXiv 2602.06036).

The network fills in a block of masks after the newest token. It sees the target's states after several of its layers,
and uses the target's embedding and LM head. Needs a trained checkpoint for the target: z-lab's or DeepSpec's.

Beyond the paper: only the drafts of a block that are expected to gain more than they cost are verified, and where
blocks do not pay, none is drafted. `dflash:paper` verifies whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.drafting import trained
from bench.drafting.pace import PacedMethod
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.drafting.stopping import BlockRule
from bench.drafting.together import in_step
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.errors import UserError
from methods.dflash import knobs
from methods.dflash.knobs import DFlashConfig
from methods.dflash.network import Drafter, Form, choose_quantize, read_form, read_weights


@dataclass(frozen=True)
class Chosen:
    """The drafts of a block."""

    tokens: list[int]
    confidences: list[float]
    drawn: list[Tensor] | None = None  # the distribution [V] of each; None: they are the most probable


@dataclass(frozen=True)
class Block:
    """A block that a sequence asks for."""

    newest: int
    start: int  # its position
    cache: KVCache
    most: int  # drafts


@dataclass
class Notes:
    """The state of a sequence."""

    cache: KVCache  # the network's context
    rule: BlockRule | None  # None: a threshold decides
    unread: list[Tensor] = field(default_factory=list)  # [1, n, T d] each: features that the network has not read
    drafted: list[int] | None = None  # its own drafts in the current step


class DFlash(PacedMethod):
    """Drafts blocks."""

    family = "heads"
    Config = DFlashConfig
    presets = knobs.presets

    @classmethod
    def read_form(cls, folder: Path, model: trained.Dimensioned) -> Form:
        """Read config.json. Raises UserError if it is not this method's, or for another model."""
        form = read_form(folder, model)
        if form.file.markov_rank or form.file.enable_confidence_head:
            raise UserError(f"{folder} is a DSpark checkpoint, with more heads: take dspark:weights=...")
        return form

    @classmethod
    def check_weights(cls, config: DFlashConfig, model: trained.Dimensioned) -> None:
        """Check config.json."""
        cls.read_form(config.find_folder(model.name), model)

    def __init__(self, target: Decoder, config: DFlashConfig):
        folder = config.find_folder(target.name)
        self.form = self.read_form(folder, target)
        self.taps = tuple(sorted(set(self.form.taps)))
        shapes = self.shapes()
        stored = read_weights(folder, shapes)
        self.parameters = sum(map(math.prod, shapes.values()))
        self.digest = trained.digest(folder, ())
        self.quantize = choose_quantize(config.draft_weights, self.form, target)
        self.drafter = Drafter(self.form, stored, target, self.quantize)
        self.caches: dict[int, KVCache] = {}  # by a sequence's slot
        self.add_heads(stored, target)
        super().__init__(target, config)  # measures costs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all weights by name."""
        return self.form.shapes()

    def add_heads(self, stored: dict[str, Tensor], target: Decoder) -> None:
        """Take what a subclass has besides the network from `stored`."""

    @property
    def most(self) -> int:
        """The drafts of a block."""
        return self.form.block - self.form.first

    @property
    def widest(self) -> int:
        """The newest token and all drafts."""
        return 1 + self.most

    @property
    def extra_parameters(self) -> int:
        """The network's weights."""
        return self.parameters

    def probing(self, windows: int) -> tuple[DFlashConfig, int]:
        """Return whole blocks."""
        return replace(self.config, stop="threshold", threshold=0.0, costs=""), min(windows, self.most)

    def draft_calls(self) -> Many[Callable[[], object]]:
        """Read the features of one position, and draft a block."""
        features = self._features({tap: self.target.embed([0]) for tap in self.taps})
        caches = [self._cache(slot) for slot in range(self.target.sequences)]

        def call() -> object:
            for cache in caches:
                self.drafter.read(features, 0, cache)
            made = self._blocks([Block(0, 1, cache, self.most) for cache in caches])
            return [self.choose(states, logits, 0, None) for states, logits in made]

        return [call]

    def _cache(self, slot: int) -> KVCache:
        if slot not in self.caches:
            self.caches[slot] = self.drafter.decoder.new_cache()
        return self.caches[slot]

    def _features(self, taps: dict[int, Tensor]) -> Tensor:
        """Return the states [1, n, d] at each tap side by side, as the network reads them: [1, n, T d]."""
        return torch.cat([taps[tap] for tap in self.form.taps], dim=-1)

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Read the prompt."""
        cache = self._cache(sequence.slot)
        self.drafter.read(self._features(prompt.taps), 0, cache)
        sequence.notes = Notes(cache, BlockRule(self.costs) if self.config.stop == "gain" else None)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Draft a block for each sequence, all in one pass."""
        drafting = [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        return in_step(drafting, self._blocks)

    def _blocks(self, asked: Many[Block]) -> list[tuple[Tensor, Tensor]]:
        """Return of each block the states [m, d] and the target's logits [m, V] of its drafts."""
        every = self.drafter.blocks([(one.newest, one.start, one.cache) for one in asked])
        states = [rows[: one.most] for rows, one in zip(every, asked, strict=True)]
        logits = self.target.project(torch.cat(states)).split([len(rows) for rows in states])
        return list(zip(states, logits, strict=True))

    def _draft(self, sequence: Sequence, budget: int) -> Generator[Block, tuple[Tensor, Tensor], Draft]:
        """Decide whether to draft, ask for a block, and choose its drafts."""
        notes: Notes = sequence.notes
        rule, notes.drafted = notes.rule, []
        if rule is not None:
            rule.begin()
        if not budget or (rule is not None and not rule.goes_on()):
            return Draft(notes.drafted, calls=0)
        if notes.unread:
            features = torch.cat(notes.unread, dim=1)
            self.drafter.read(features, sequence.length - features.shape[1], notes.cache)
            notes.unread.clear()
        newest = sequence.context[-1]
        states, logits = yield Block(newest, sequence.length, notes.cache, budget)
        made = self.choose(states, logits, newest, sequence.sampler if self.config.drafts == "sampled" else None)
        if rule is not None:
            count = rule.keep(made.tokens, made.confidences)
        else:
            unsure = (i for i, confidence in enumerate(made.confidences) if confidence < self.config.threshold)
            count = next(unsure, len(made.tokens))
        notes.drafted = made.tokens[:count]
        if made.drawn is not None:  # the confidences are not those of drawn drafts
            return Draft(notes.drafted, drawn=made.drawn[:count], calls=1)
        return Draft(notes.drafted, confidences=made.confidences[:count], calls=1)

    def choose(self, states: Tensor, logits: Tensor, newest: int, sampler: Sampler | None) -> Chosen:
        """Choose the most probable drafts after the newest token, or with a sampler drawn ones.

        By states [m, d] and the target's logits [m, V] of these. A confidence does not depend on the token that is
        drawn at its place, so stopping by it is lossless.
        """
        best = logits.softmax(-1).max(-1)
        if sampler is not None:
            drawn = list(sampler.probabilities(logits))
            return Chosen([sampler.draw(q) for q in drawn], best.values.tolist(), drawn)
        # One transfer for both; float64 holds every token id.
        confidences, ids = torch.stack((best.values.double(), best.indices.double())).tolist()
        return Chosen([int(token) for token in ids], confidences)

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Keep the features of the kept rows until the network reads them; they are all that is new in its context."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            notes: Notes = sequence.notes
            notes.unread.append(self._features(outcome.kept.taps))
            if notes.rule is not None and outcome.is_of(notes.drafted):
                notes.rule.end(outcome.emitted)
