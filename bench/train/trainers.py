"""Which trainer makes which method's weights; each is imported only when it is asked for."""

from __future__ import annotations

from typing import Any


def trainer_of(method: str) -> Any:
    """The trainer of a method in `bench.config.TRAININGS`."""
    if method == "kangaroo":
        from methods.kangaroo.training import AdapterTrainer

        return AdapterTrainer
    assert method == "medusa", method
    from methods.medusa.training import HeadsTrainer

    return HeadsTrainer
