"""The command line: finds the command, carries it out. `UserError` is caught once, here."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import bench
from bench.commands import (
    bench_engine,
    cache,
    compare,
    export,
    gate,
    gate_side,
    generate,
    history,
    listing,
    project,
    report,
    run,
    sweep,
    train,
)
from bench.errors import UserError

COMMANDS = {
    "run": run,
    "report": report,
    "compare": compare,
    "gate": gate,
    "history": history,
    "gate-side": gate_side,
    "sweep": sweep,
    "generate": generate,
    "export": export,
    "train": train,
    "bench-engine": bench_engine,
    "project": project,
    "list": listing,
    "cache": cache,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["--version"], ["-V"]):
        print(f"roobench {bench.__version__}")
        return 0
    command = COMMANDS[given.pop(0)] if given and given[0] in COMMANDS else run
    options = command.parser().parse_args(given)
    try:
        return command.run(options)
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
