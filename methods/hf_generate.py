"""Transformers' own `generate` on the same weights (Wolf et al., arXiv 1910.03771): a reference for our vanilla."""

from __future__ import annotations

from typing import Any

from bench.models.hf_peer import HFPeer


class HFGenerate(HFPeer):
    """`AutoModelForCausalLM.generate` with its defaults: eager, dynamic cache, the library's choice of attention."""

    @property
    def options(self) -> dict[str, Any]:
        """Return no options."""
        return {}
