"""The commands, a file each: `parser()` gives a command's arguments, `run(options)` runs it."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench import config, train_config
from bench.errors import UserError, program
from bench.text import shortened, visible

COMPUTE_FLAGS = ("--dtype", "--quantize", "--device", "--threads")  # of a run, for commands that load a model
_WRITTEN = "python run_bench.py"  # in help texts, for `program()`


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(visible(shortened(message)))

    def print_help(self, file: Any = None) -> None:
        (file or sys.stdout).write(self.format_help())  # argparse would say nothing of a full disk


def new_parser(command: str, description: str, epilog: str = "") -> ArgumentParser:
    """An empty parser; `command` follows the program's name."""
    return _Parser(
        prog=f"{program()} {command}".strip(),
        description=description,
        epilog=epilog.replace(_WRITTEN, program()),
        formatter_class=RawDescriptionHelpFormatter,
    )


def add_run_flags(made: ArgumentParser, names: Collection[str]) -> None:
    """Those of a run's flags that a command takes as well."""
    for flag, settings in config.flags(config.RunConfig):
        if flag in names:
            made.add_argument(flag, **settings)


def add_training_flags(made: ArgumentParser, more: str = "") -> None:
    """Those of trainings that a command runs itself; `more`: what else their help says, with {} for the setting."""
    for name, what, most in (("tokens", "tokens of answers", 1000 * config.MANY), ("epochs", "passes over them", 1000)):
        default, flag = train_config.SWEEP_TRAINING[name], f"--train-{name}"
        text = f"{what} for each training (default: {default}){more.format(name)}"
        made.add_argument(flag, type=config.number(int, flag, 1, most), metavar="N", help=text)


def given_of(options: Namespace, flags: Iterable[str]) -> dict[str, Any]:
    """The settings that were given by some of the flags."""
    values = {name: getattr(options, name) for name in (flag[2:].replace("-", "_") for flag in flags)}
    return {name: value for name, value in values.items() if value is not None}


def refuse_given(given: Iterable[str], reason: str) -> None:
    """Refuse settings that would be ignored; `reason`: why, and what to do.

    Raises:
        UserError: one was given.

    """
    if flags := [config.flag_of(name) for name in given]:
        raise UserError(f"{' and '.join(flags)}: {reason}")


def say(line: str) -> None:
    """Report progress, apart from the results."""
    print(visible(line), file=sys.stderr)


def tell_written(paths: Sequence[Path]) -> None:
    """List the files by name, plots by their folder."""
    plots = [path for path in paths if path.suffix == ".png"]
    print("written:", *(path for path in paths if path not in plots), sep="\n  ")
    if plots:
        print(f"  {plots[0].parent}{os.sep}  (plots: {', '.join(path.stem for path in plots)})")
