"""What peers are tried on: a tiny model, as transformers has it, as our decoder, and as a checkpoint on disk."""

from __future__ import annotations

import pytest


@pytest.fixture
def scene(tiny_model, tiny_decoder, tiny_checkpoint):
    """(hf_model, our decoder, checkpoint)."""
    config, model = tiny_model("tied", faint=True)
    return model, tiny_decoder(config, model), tiny_checkpoint("tied", faint=True)
