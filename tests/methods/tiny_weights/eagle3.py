"""EAGLE-3 heads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.methods.tiny_weights import eagle

write = functools.partial(eagle.write, version=3)


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function in `eagle`."""
    own = {"own_head": 140, "draft_vocab": 140}
    others = {"norm_before_residual": True, "fc_norm": True, "norm_output": True}
    return [
        {"weights": str(write()), "threshold": 0.0, "gamma": 3, "beam": 1},
        {"weights": str(write()), "threshold": 0.0, "gamma": 4, "beam": 3},
        {"weights": str(write()), "tree": "best", "gamma": 3, "beam": 3, "nodes": 8},
        {"weights": str(write(useful=False, changes=others)), "threshold": 0.1},
        {"weights": str(write(useful=False, ranking=eagle.RANKING, changes=own)), "threshold": 0.0},
    ]
