"""SAM-Decoding (Hu et al., arXiv 2411.10666): drafts what followed the longest suffix of the text that occurred before.

A suffix automaton of prompt and answer finds the match, however long, in constant time per token (section 3.1). Its
first occurrence gives the draft, a chain whose length follows the match's: at most `factor` tokens for each. With a
`corpus`, the same is looked up there (section 3.2), where matches have to be longer (`bias`) and drafts are trees of
counted continuations. Needs no training.

By default only what is worth verifying is drafted; `sam:paper` has the published sizes, and `sam:paper-hybrid` those in
front of a trained method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from bench.config import setting
from bench.drafting import corpora
from bench.drafting.indexes import Match
from bench.drafting.indexes.automaton import SuffixAutomaton
from bench.drafting.lookup import Lookup, LookupConfig
from bench.drafting.worth import CORPUS_PRIOR, PRIOR, Found

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder

_LONGEST = 32  # tokens by which the corpus is sorted
_HITS = 64  # occurrences in the corpus to judge by


@dataclass(frozen=True)
class SAMConfig(LookupConfig):
    """The knobs of SAM-Decoding."""

    factor: float = setting(0.0, "drafts for each token that matches; 0: as many as there are")
    climb: bool = setting(False, "take a shorter match where fewer tokens follow the longest one than may be drafted")
    corpus: str = setting("", corpora.HELP + "; default: none")
    decontaminate: str = setting("official", corpora.DECONTAMINATE)
    bias: int = setting(0, "tokens that a match in the corpus must be longer than one in the text")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(factor=(0, 1000), bias=(0, _LONGEST - 1))

    def check_files(self, model: str) -> None:
        """Raise UserError if there is no such corpus."""
        if self.corpus:
            corpora.check("sam", self.corpus, model)


@dataclass
class Texts:
    """What a question looks in."""

    own: SuffixAutomaton
    corpus: corpora.Reader | None

    def extend(self, tokens: list[int]) -> None:
        """Append tokens to the question's text."""
        self.own.extend(tokens)
        if self.corpus is not None:
            self.corpus.extend(tokens)


class SAM(Lookup):
    """Drafts what followed the longest match."""

    Config = SAMConfig
    priors = (PRIOR, CORPUS_PRIOR)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # n_predicts 40 counts the newest token; alpha 4, len_bias 5, len_threshold 5 in the authors' code.
        "paper": {"tokens": 39, "factor": 4.0, "bias": 5, "least": 1, "stop": "never"},
        "paper-hybrid": {"tokens": 39, "climb": True, "bias": 5, "least": 5, "stop": "never"},
    }

    def __init__(self, target: Decoder, config: SAMConfig):
        super().__init__(target, config)
        self.corpus = corpora.load("sam", config.corpus, target, config.decontaminate) if config.corpus else None
        if self.corpus is not None:
            self.memory = self.corpus.memory

    @property
    def notes(self) -> dict[str, Any]:
        """What the corpus is made of."""
        return {"corpus": self.corpus.facts} if self.corpus is not None else {}

    def index(self, context: list[int]) -> Texts:
        """Return the text's automaton, and where the text is looked for in the corpus."""
        reader = None if self.corpus is None else corpora.Reader(self.corpus.array, _LONGEST, context)
        return Texts(SuffixAutomaton(context), reader)

    def find(self, index: Texts, most: int, depth: int) -> list[Found]:
        """Return what followed in the text and in the corpus, the longer match first."""
        text, bias = index.own.tokens, self.config.bias
        found = [Found(match.length, text[match.end : match.end + most]) for match in self._match(index.own, most)]
        if index.corpus is not None:
            there = index.corpus.find(1 + bias, most, min(depth, most), _HITS)
            found += [replace(one, length=one.length - bias) for one in there]
        return [self._cut(one, depth) for one in sorted(found, key=lambda one: -one.length)]

    def _cut(self, found: Found, depth: int) -> Found:
        """Return as many of the found tokens as the match is long enough for."""
        most = int(self.config.factor * found.length) if self.config.factor else len(found.tokens)
        if found.parents is None:
            return replace(found, tokens=found.tokens[: min(most, depth)])
        shares = found.shares and found.shares[:most]
        return replace(found, tokens=found.tokens[:most], parents=found.parents[:most], shares=shares)

    def _match(self, index: SuffixAutomaton, most: int) -> list[Match]:
        """Return the longest match, or with `climb` the longest that `most` tokens follow, else the shortest."""
        matches = index.matches()
        match = next(matches, None)
        while self.config.climb and match is not None and len(index.tokens) - match.end < most:
            if (shorter := next(matches, None)) is None:
                break
            match = shorter
        return [] if match is None else [match]
