"""list: methods with their knobs, tasks and models."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

import methods
from bench.commands import new_parser
from bench.config import DEFAULT_MODEL


def parser() -> ArgumentParser:
    """What the command takes."""
    return new_parser("list", "Show methods with their knobs, tasks and models.")


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    from bench.drafting.method import Peer
    from bench.models.checkpoints import list_cache
    from bench.questions import TASKS

    print(f"methods\n  {methods.ALL}: every built-in method, without peers")
    for name in methods.names():
        method = methods.load(name)
        kind = " (peer: another library's decoding)" if issubclass(method, Peer) else ""
        print(f"  {name}{kind}: {(sys.modules[method.__module__].__doc__ or '').strip().splitlines()[0]}")
        for preset, values in method.presets.items():
            print(f"      {preset}   for {','.join(f'{knob}={value}' for knob, value in values.items())}")
        for knob, default, text in methods.knobs(method):
            print(f"      {knob}={default}   {text}")
    print("tasks\n  all,", ", ".join(TASKS))
    cached = {entry.name for entry in list_cache() if entry.is_model}
    print(
        f"models\n  {DEFAULT_MODEL} (the default{', in the cache' if DEFAULT_MODEL in cached else ', 93 MB to fetch'})"
    )
    for name in sorted(cached - {DEFAULT_MODEL}):
        print(f"  {name} (in the cache)")
    print("  any Llama-family chat model: a Hugging Face id like lmsys/vicuna-7b-v1.3, or a folder")
    return 0
