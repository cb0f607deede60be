"""What a method costs in the form that its paper describes. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder


@dataclass(frozen=True)
class Published:
    """How the published form drafts, and its draft model, which the lab times on any target with random weights."""

    what: str  # the draft model, as tables call it
    drafts: int  # most in a row, where a source does not say how many
    exit_layer: int = 0  # layers of the target that drafting runs as well; 0: none
    call_per_draft: bool = False  # drafting may stop after any call; otherwise one call makes all drafts
    # target -> a call of the draft model over one position, LM head and choice included; None: no such model has the
    # target's sizes. Records leave it out.
    call: Callable[[Decoder], Callable[[], object] | None] = lambda target: None
