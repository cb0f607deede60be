"""What a run measures when it begins: given to another one, so that both draft alike whatever the machine's mood."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.figures.records import Run
from methods import Variant

_MEASURED = ("costs",)  # knobs; what follows from them (a tree, when to stop) each side chooses by its own code


def measured_by(run: Run) -> dict[str, Any]:
    """Measured knobs by method."""
    return {
        "knobs": {
            label: {name: info.config[name] for name in _MEASURED if info.config.get(name)}
            for label, info in run.methods.items()
        },
    }


def with_knobs(variant: Variant, measured: dict[str, Any]) -> Variant:
    """The variant with the knobs that were measured before."""
    known = {field.name for field in dataclasses.fields(variant.method.Config)}
    values = measured.get("knobs", {}).get(variant.label, {})
    taken = {name: value for name, value in values.items() if name in _MEASURED and name in known}
    return dataclasses.replace(variant, config=dataclasses.replace(variant.config, **taken))
