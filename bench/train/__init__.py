"""Training of methods' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import methods

if TYPE_CHECKING:
    from bench.train_config import TrainConfig


def settings_of(method: str) -> type[TrainConfig]:
    """The settings of a method's training: `Training` of its module `knobs`, which needs no torch, else its trainer's.

    Raises:
        UserError: its module does not define exactly one trainer.

    """
    found: type[TrainConfig] | None = getattr(methods.declared(method), "Training", None)
    if found is None:
        from bench.train.training import trainer_of

        found = trainer_of(method).Config
    return found
