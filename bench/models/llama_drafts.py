"""How llama-cpp-python speculates: what drafts, and what its drafts came to."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import UserError
from bench.files import first_line, sha256, user_path

LOOKUP = "lookup"


@dataclass(frozen=True)
class LlamaCppConfig:
    """What drafts, if anything does. The library's own defaults."""

    draft: str = field(
        default="",
        metadata={"help": f"what drafts: {LOOKUP} (the tokens that followed the newest ones earlier), or a GGUF file"},
    )
    tokens: int = field(default=10, metadata={"help": "drafts in a row (num_pred_tokens)"})
    ngram: int = field(default=2, metadata={"help": f"of {LOOKUP}: most tokens that must match (max_ngram_size)"})

    def __post_init__(self) -> None:
        for knob in ("tokens", "ngram"):
            if (value := getattr(self, knob)) < 1:
                raise ValueError(f"{knob}={value} must be at least 1")

    @property
    def plain(self) -> str:
        """The peer that this one is compared with where both run."""
        return "llama-cpp" if self.draft else ""

    def check_files(self, model: str) -> None:
        """Raise UserError if the draft model is not there."""
        if self.draft not in ("", LOOKUP) and not user_path(self.draft).is_file():
            raise UserError(f"draft={self.draft}: there is no such file; give a GGUF file, or {LOOKUP}")


class Drafts:
    """The library's `draft_model`: passes drafts on, and counts them."""

    def __init__(self, config: LlamaCppConfig, library: Any, vocab: int, options: dict[str, Any]):
        """`options`: of the target, for a draft model.

        Raises:
            UserError: the draft model cannot be loaded, or has other tokens.

        """
        self.notes: dict[str, Any] = {}
        self.made: list[tuple[int, list[int]]] = []  # the context's length, and the drafts behind it
        if config.draft == LOOKUP:
            lookup = importlib.import_module("llama_cpp.llama_speculative").LlamaPromptLookupDecoding
            self._draft: Any = lookup(max_ngram_size=config.ngram, num_pred_tokens=config.tokens)
            return
        path = user_path(config.draft)
        try:
            self._model = library.Llama(model_path=str(path), **options)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"llama-cpp cannot load the draft model {path} ({first_line(error)})") from error
        if self._model.n_vocab() != vocab:
            raise UserError(
                f"the draft model {path} has {self._model.n_vocab()} tokens, the target {vocab}: take another"
            )
        self._tokens, self._draft = config.tokens, self._of_model
        self.notes["draft_sha256"] = sha256(path)

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        """Return drafts to follow the context; the library calls it after every pass."""
        found = self._draft(input_ids)
        self.made.append((len(input_ids), found.tolist()))
        return found

    def _of_model(self, input_ids: Any) -> Any:
        """Greedy tokens of the draft model, whose cache keeps what the contexts share."""
        import numpy as np

        room, drafts = min(self._tokens, self._model.n_ctx() - len(input_ids)), []
        if room > 0:
            for token in self._model.generate(input_ids.tolist(), temp=0.0, repeat_penalty=1.0):
                drafts.append(token)
                if len(drafts) == room:
                    break
        return np.array(drafts, dtype=np.intc)

    def forget(self) -> None:
        """Start a new answer."""
        self.made = []

    def fates(self, prompt: int, tokens: Sequence[int]) -> tuple[int, int, int]:
        """Return the forward passes after a prefill of `prompt` tokens, the tokens drafted, and those accepted."""
        accepted = 0
        for context, drafts in self.made:
            followed = tokens[context - prompt :]
            equal = [draft == token for draft, token in zip(drafts, followed, strict=False)]
            accepted += equal.index(False) if False in equal else len(equal)
        return len(self.made), sum(len(drafts) for _, drafts in self.made), accepted
