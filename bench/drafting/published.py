"""What a method costs in the form that its paper describes. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder


@dataclass(frozen=True)
class Form:
    """How the published form drafts."""

    what: str  # its draft model, as tables call it
    drafts: int  # most in a row, where a source does not say how many
    exit_layer: int = 0  # layers of the target that drafting runs as well; 0: none
    call_per_draft: bool = False  # drafting may stop after any call; otherwise one call makes all drafts


@dataclass(frozen=True, kw_only=True)
class Published(Form):
    """The form with its draft model, which the lab times on any model with random weights."""

    # target -> a call of the draft model over one position, LM head and choice included; None: no such model has the
    # target's sizes.
    call: Callable[[Decoder], Callable[[], object] | None]

    def form(self) -> Form:
        """Without the draft model, for records."""
        return Form(**{field.name: getattr(self, field.name) for field in fields(Form)})
