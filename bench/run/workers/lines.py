"""A process that is asked through its standard input and answers through its standard output, a line of JSON each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TextIO


def answers() -> TextIO:
    """The standard output for answers alone: whatever a library or a method prints goes to the errors' stream."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], lines: Iterable[str], out: TextIO) -> None:
    """Answer lines until they end."""
    for line in lines:
        out.write(json.dumps(answer(json.loads(line))) + "\n")
        out.flush()
