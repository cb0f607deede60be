"""The commands, a file each: `parser()` says what a command takes, `run(options)` carries it out."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Collection, Sequence
from pathlib import Path

from bench import config


def new_parser(command: str, description: str, epilog: str = "") -> ArgumentParser:
    """An empty parser; `command` is what stands after the program's name."""
    return ArgumentParser(
        prog=f"run_bench.py {command}".strip(),
        description=description,
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
    )


def add_run_flags(made: ArgumentParser, names: Collection[str]) -> None:
    """Those of a run's flags that a command takes as well."""
    for flag, settings in config.flags(config.RunConfig):
        if flag in names:
            made.add_argument(flag, **settings)


def say(line: str) -> None:
    """Tell what is going on, beside the results."""
    print(line, file=sys.stderr)


def tell_written(paths: Sequence[Path]) -> None:
    """The files by name, plots by their folder."""
    plots = [path for path in paths if path.suffix == ".png"]
    print("written:", *(path for path in paths if path not in plots), sep="\n  ")
    if plots:
        print(f"  {plots[0].parent}{os.sep}  (plots: {', '.join(path.stem for path in plots)})")
