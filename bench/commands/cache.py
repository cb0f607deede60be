"""cache: what was downloaded."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench.commands import new_parser


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser("cache", "Show or clean what was downloaded ($ROOBENCH_CACHE, else ~/.cache/roobench).")
    made.add_argument("action", choices=("list", "clean"))
    made.add_argument("names", nargs="*", help="what to clean; default: everything")
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    from bench.files import cache_root
    from bench.models.checkpoints import clean_cache, list_cache

    if options.action == "clean":
        print(f"freed {clean_cache(options.names) / 1e6:.0f} MB in {cache_root()}")
        return 0
    entries = list_cache()
    for entry in entries:
        print(f"{entry.bytes / 1e6:10.0f} MB  {entry.name}  ({entry.path})")
    if not entries:
        print(f"{cache_root()} is empty")
    return 0
