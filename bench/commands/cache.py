"""cache: what was downloaded, written and built."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench.commands import new_parser
from bench.errors import UserError, program


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "cache",
        "Show or remove what was downloaded or made ($ROOBENCH_CACHE, else ~/.cache/roobench): models, questions, a\n"
        "model's conversations and states for trainings (hours of work), the engine's kernels, environments of gates.",
    )
    made.add_argument("action", choices=("list", "clean"))
    names = "what to remove, as `cache list` names it; default: everything, conversations too"
    made.add_argument("names", nargs="*", help=names)
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.files import cache_root
    from bench.models.checkpoints import clean_cache, list_cache

    if options.action == "clean":
        print(f"freed {clean_cache(options.names) / 1e6:.0f} MB in {cache_root()}")
        return 0
    if options.names:
        raise UserError(f"cache list takes no names, got {options.names[0]!r}: to remove it, {program()} cache clean")
    entries = list_cache()
    for entry in entries:
        print(f"{entry.bytes / 1e6:10.0f} MB  {entry.name}  ({entry.path})")
    if not entries:
        print(f"{cache_root()} is empty")
    return 0
