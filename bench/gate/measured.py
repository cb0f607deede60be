"""What a run measures when it begins, given to another run so that both draft alike at any speed of the machine."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.errors import UserError
from bench.figures.comparable import recorded_costs
from bench.figures.records import Run
from methods import Variant


def measured_by(run: Run) -> dict[str, Any]:
    """The measured costs, by method."""
    return {label: found for label, info in run.methods.items() if (found := recorded_costs(info.ran))}


def with_knobs(variant: Variant, measured: dict[str, Any]) -> Variant:
    """The variant with the costs that were measured before.

    Raises:
        UserError: its knobs do not take them.

    """
    recorded = measured.get(variant.label, {})
    try:
        return dataclasses.replace(variant, config=variant.method.repeated(variant.config, recorded, lenient=True))
    except ValueError as error:
        raise UserError(f"{variant.label} cannot run with the costs that were recorded for it: {error}") from error
