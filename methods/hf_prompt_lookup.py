"""Transformers' prompt lookup on the same weights (Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding).

Drafts are the tokens that followed the newest ones earlier in the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.models.hf_peer import HFPeer


@dataclass(frozen=True)
class PromptLookupConfig:
    """The library's two knobs, with its defaults."""

    tokens: int = field(default=10, metadata={"help": "most drafts in a row (prompt_lookup_num_tokens)"})
    ngram: int = field(default=2, metadata={"help": "most tokens that must match (max_matching_ngram_size)"})

    def __post_init__(self) -> None:
        for knob in ("tokens", "ngram"):
            if (value := getattr(self, knob)) < 1:
                raise ValueError(f"{knob}={value} must be at least 1")


class HFPromptLookup(HFPeer):
    """`generate(prompt_lookup_num_tokens=...)`: training-free speculation with one chain per step.

    Drafts are deterministic and accepted where they equal the target's own choice or sample, which is lossless.
    """

    Config = PromptLookupConfig
    drafts = True

    @property
    def options(self) -> dict[str, Any]:
        """Return the knobs by the library's names."""
        return {"prompt_lookup_num_tokens": self.config.tokens, "max_matching_ngram_size": self.config.ngram}
