"""Transformers' own `generate` with a static cache, with which the library compiles forward passes on CUDA."""

from __future__ import annotations

from typing import Any

from bench.models.hf_peer import HFPeer


class HFStatic(HFPeer):
    """`generate(cache_implementation="static")`: compiled on CUDA, not on a CPU."""

    @property
    def options(self) -> dict[str, Any]:
        """Return the option for the static cache."""
        return {"cache_implementation": "static"}
