"""Transformers' own generation at its best: a static cache, and its passes compiled where it does so."""

from __future__ import annotations

from typing import Any

from bench.models.hf_peer import HFPeer


class HFStatic(HFPeer):
    """`generate(cache_implementation="static")`: on CUDA the library then compiles its passes; on a CPU it does not."""

    @property
    def options(self) -> dict[str, Any]:
        """The static cache."""
        return {"cache_implementation": "static"}
