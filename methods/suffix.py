"""SuffixDecoding (Oliaro et al., arXiv 2411.04975): drafts the most frequent continuation of a matching suffix.

Two tries count what followed every string of at most `depth` tokens: one holds the question's text, the other, with
`memory=run`, the answers to earlier questions (section 4.1). For each length of match the most frequent continuations
are followed, at most `factor` tokens per token that matches, while their estimated probability is at least
`probability`; the best sum of probabilities is drafted (section 4.2). Needs no training.

By default only what is worth verifying is drafted. The presets `arctic` (also `paper`) and `vllm` have the sizes of
ArcticInference and vLLM; `tree` and `run` set `shape=tree` and `memory=run`.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.config import MANY, setting
from bench.drafting.indexes import walks
from bench.drafting.indexes.cursor import Cursor
from bench.drafting.indexes.trie import Place, SuffixTrie
from bench.drafting.lookup import Lookup, LookupConfig
from bench.drafting.method import QUESTION, RUN
from bench.drafting.sequence import Sequence, States
from bench.drafting.tree import ROOT
from bench.drafting.worth import CORPUS_PRIOR, NOTHING, Found

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder

_DEEPEST = 256
# As `worth.PRIOR`, per estimated probability. That one also counts the newest occurrence, which nothing follows yet: a
# token that was seen once has 1/2.
_PRIOR = (0.44, 0.55, 0.55, 0.65, 0.73, 0.85, 0.94)


@dataclass(frozen=True)
class SuffixConfig(LookupConfig):
    """The knobs of SuffixDecoding."""

    depth: int = setting(48, "longest string that is counted: a match and its continuation")
    factor: float = setting(0.0, "drafts for each token that matches; 0: as many as there are")
    probability: float = setting(0.1, "least estimated probability of a draft")
    shape: str = setting("path", "path: the most frequent continuation; tree: the most probable tokens of all")
    memory: str = setting(QUESTION, "question; or run: what was answered earlier in the run is looked in as well")
    answers: int = setting(10_000, "for memory=run: answers to remember; the oldest are forgotten first")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(depth=(2, _DEEPEST), factor=(0, _DEEPEST), probability=(1e-6, 1), answers=(1, MANY))
        self.check(shape=("path", "tree"), memory=(QUESTION, RUN))
        if self.least >= self.depth:
            raise ValueError(f"least={self.least} must be less than depth={self.depth}")


_ARCTIC = {"tokens": 64, "depth": 64, "factor": 1.0, "probability": 0.1, "least": 1, "stop": "never"}


@dataclass
class Texts:
    """What a question looks in."""

    own: SuffixTrie
    earlier: Cursor | None  # where its text is in the answers to earlier questions

    def extend(self, tokens: Many[int]) -> None:
        """Append tokens to the question's text."""
        self.own.extend(tokens)
        if self.earlier is not None:
            self.earlier.extend(tokens)


class Suffix(Lookup):
    """Drafts by counts of what followed a suffix."""

    Config = SuffixConfig
    priors = (_PRIOR, CORPUS_PRIOR)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _ARCTIC,
        "arctic": _ARCTIC,
        "vllm": _ARCTIC | {"tokens": 24, "depth": 24},
        "tree": {"shape": "tree"},
        "run": {"memory": RUN},
    }

    def __init__(self, target: Decoder, config: SuffixConfig):
        super().__init__(target, config)
        self.memory = config.memory
        self.forget()

    def forget(self) -> None:
        """Forget the answers to earlier questions."""
        self.answers = SuffixTrie(self.config.depth)
        self.latest: dict[int, tuple[list[int], int]] = {}  # by slot: a text, and where its answer begins

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Index the prompt; with memory=run, remember the slot's last answer."""
        if self.memory == RUN:
            text, begin = self.latest.get(sequence.slot, ([], 0))
            self.answers.start()
            self.answers.extend(text[begin:])
            if self.answers.texts > self.config.answers:
                self.answers.drop_oldest()
            self.latest[sequence.slot] = sequence.context, len(sequence.context) - 1
        super().open(sequence, prompt)

    def index(self, context: list[int]) -> Texts:
        """Return where the text's suffixes are."""
        own = SuffixTrie(self.config.depth)
        own.extend(context)
        earlier = Cursor(self.answers, context[-self.config.depth :]) if self.memory == RUN else None
        return Texts(own, earlier)

    def find(self, index: Texts, most: int, depth: int) -> list[Found]:
        """Return the best continuation in each of the texts, the one with the best sum of probabilities first."""
        places = [(index.own, index.own.suffixes())]
        if index.earlier is not None:
            places.append((self.answers, index.earlier.suffixes()))
        best = [self._best(trie, suffixes, kind, most, depth) for kind, (trie, suffixes) in enumerate(places)]
        best.sort(key=lambda pair: -pair[0])
        return [found for _, found in best]

    def _best(self, trie: SuffixTrie, suffixes: Many[Place], kind: int, most: int, depth: int) -> tuple[float, Found]:
        """Return the best continuation of any suffix; of equally good ones, of the longest."""
        config = self.config
        best = 0.0, NOTHING
        for length, place in self._matches(trie, suffixes):
            limit = min(most, int(config.factor * length + 1e-6)) if config.factor else most
            if config.shape == "path":
                tokens, parents, chances = walks.path(trie, place, min(limit, depth), config.probability)
            else:
                tokens, parents, chances = walks.tree(trie, place, limit, config.probability, depth)
            if tokens and (score := sum(chances)) >= best[0]:
                before = [1.0 if parent == ROOT else chances[parent] for parent in parents]
                shares = [chance / above for chance, above in zip(chances, before, strict=True)]
                best = score, Found(length, tokens, parents, shares, kind)
        return best

    def _matches(self, trie: SuffixTrie, suffixes: Many[Place]) -> list[tuple[int, Place]]:
        """Return the suffixes to continue, by length: as published, all.

        By default, of those that occur at the same places only the longest, and none that leaves no room to continue.
        """
        if self.config.stop == "never":
            return list(enumerate(suffixes))[1:]
        within = suffixes[: max(self.config.depth // 2, self.least) + 1]
        counts = [*map(trie.count, within), 0]
        return [(length, within[length]) for length in range(1, len(within)) if counts[length] != counts[length + 1]]
