"""What the tests of both trainings share."""

from __future__ import annotations

import pytest

from bench.train import prompts
from tests.tiny import short_prompt


@pytest.fixture(scope="module")
def short_prompts():
    """Prompts of a few letters, in place of the grammars'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "prompt", short_prompt)
        yield
