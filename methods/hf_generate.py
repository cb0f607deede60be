"""Transformers' own generation on the same weights: it shows what our vanilla is worth."""

from __future__ import annotations

from typing import Any

from bench.models.hf_peer import HFPeer


class HFGenerate(HFPeer):
    """`AutoModelForCausalLM.generate` with its defaults: eager, dynamic cache, the library's choice of attention."""

    @property
    def options(self) -> dict[str, Any]:
        """None."""
        return {}
