"""The cost of a method in its published form. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder


@dataclass(frozen=True)
class Published:
    """How the published form drafts, and its draft model, which the lab times with random weights."""

    what: str  # the draft model's name in tables
    drafts: int  # most drafts in a row, where a source does not give the number
    exit_layer: int = 0  # layers of the target that drafting runs as well; 0: none
    call_per_draft: bool = False  # True: each draft takes a call; False: one call makes all drafts
    # target -> a call of the draft model over one token, with LM head and choice; None: the model cannot have the
    # target's sizes. Not recorded.
    call: Callable[[Decoder], Callable[[], object] | None] = lambda target: None
