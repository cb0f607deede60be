"""gate-side: one side of a gate, which starts it and speaks to it through its standard input and output."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace

from bench.commands import new_parser
from bench.config import RunConfig
from bench.errors import UserError
from bench.typed_json import decode_value


def parser() -> ArgumentParser:
    """The command's arguments."""
    return new_parser("gate-side", "One side of a gate; started by `gate` and useless by itself.")


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.run.workers import lines

    out = lines.answers()
    from bench.gate import worker

    first = sys.stdin.readline()
    try:
        given = json.loads(first)
        settings = decode_value(RunConfig, given["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"gate-side is started by gate, which says what to run; it was told {first[:80]!r} ({error})"
        ) from error
    one = worker.Worker(settings, given.get("measured", {}), given.get("slower", {}))
    lines.serve(one.handle, sys.stdin, out)
    return 0
