"""REST: retrieval-based speculative decoding (He et al., arXiv 2311.08252): drafts what followed in a corpus.

A suffix array of the corpus finds the longest suffix of the text, and what followed its occurrences becomes a tree of
the most frequent continuations (section 3.2). Needs no training, but a corpus: by default the model's own answers that
come with the project, or a folder of text files. Text that shares 13 words with the test questions is left out.

By default only what is worth verifying is drafted; `rest:paper` has the published sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.config import MANY, setting
from bench.drafting import corpora
from bench.drafting.lookup import Lookup, LookupConfig
from bench.drafting.worth import CORPUS_PRIOR, PRIOR, Found
from bench.engine import MAX_DRAFTS

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder

_LONGEST = 32  # tokens by which the corpus is sorted


@dataclass(frozen=True)
class RESTConfig(LookupConfig):
    """The knobs of REST."""

    corpus: str = setting(corpora.OWN, corpora.HELP)
    decontaminate: str = setting("official", corpora.DECONTAMINATE)
    longest: int = setting(16, "longest suffix to look for; shorter ones follow, down to `least`, or 2")
    depth: int = setting(10, "most drafts in a row")
    hits: int = setting(64, "occurrences to judge by, at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(longest=(1, _LONGEST), depth=(1, MAX_DRAFTS), hits=(1, MANY))
        if self.least > self.longest:
            raise ValueError(f"least={self.least} is more than longest={self.longest}")

    def check_files(self, model: str) -> None:
        """Raise UserError if there is no such corpus."""
        corpora.check("rest", self.corpus, model)


class REST(Lookup):
    """Drafts the most frequent continuations of the longest match in a corpus."""

    Config = RESTConfig
    priors = (PRIOR, CORPUS_PRIOR)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"tokens": 64, "longest": 16, "least": 2, "depth": 10, "hits": 5000, "stop": "never"}
    }

    def __init__(self, target: Decoder, config: RESTConfig):
        super().__init__(target, config)
        self.corpus = corpora.load("rest", config.corpus, target, config.decontaminate)
        self.memory = self.corpus.memory

    @property
    def notes(self) -> dict[str, Any]:
        """What the corpus is made of."""
        return {"corpus": self.corpus.facts}

    def index(self, context: list[int]) -> corpora.Reader:
        """Return where the text's newest tokens are looked for."""
        return corpora.Reader(self.corpus.array, self.config.longest, context)

    def find(self, index: corpora.Reader, most: int, depth: int) -> list[Found]:
        """Return what followed the longest suffix in the corpus."""
        config = self.config
        return index.find(min(max(2, self.least), config.longest), most, min(depth, config.depth), config.hits)
