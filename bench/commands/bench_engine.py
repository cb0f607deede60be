"""bench-engine: what passes, drafts, LM head and cache cost on this device, and how close vanilla is to its limit."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench import config
from bench.commands import add_run_flags, new_parser, say
from bench.errors import UserError

_EPILOG = """\
Shapes are published architectures with random weights: they show what passes cost, without a download, and say nothing
of acceptance. What is compared was timed in turns; medians are shown.

examples:
  python run_bench.py bench-engine
  python run_bench.py bench-engine --method kangaroo --method medusa --json engine.json
  python run_bench.py bench-engine --shape vicuna-7b --device cuda --dtype bfloat16"""
_RUN_FLAGS = ("--method", "--peer", "--model", "--revision", "--dtype", "--quantize", "--device", "--threads")


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser(
        "bench-engine", "Measure the engine: passes, drafts, LM head, cache, share of its limit.", _EPILOG
    )
    shapes = "vicuna-7b, vicuna-13b, llama-3.1-8b or smollm2-135m"
    made.add_argument(
        "--shape", default=None, metavar="NAME", help=f"random weights in the place of a model's: {shapes}"
    )
    for flag, default, what in (("context", 1024, "positions of the cache"), ("repeats", 15, "timings of each pass")):
        made.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")
    made.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write all figures for programs")
    add_run_flags(made, _RUN_FLAGS)
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    if options.context < 256:
        raise UserError(f"--context {options.context} is too short to measure in: give 256 or more")
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats} must be at least 1")
    given = {flag[2:]: getattr(options, flag[2:]) for flag in _RUN_FLAGS}
    if options.shape is not None and options.model is not None:
        raise UserError("--shape and --model: give one of them")
    if options.shape is not None:
        given["method"] = given["method"] or ("vanilla",)  # random weights have no drafts worth a name
    settings = config.from_flags(given, "laptop")
    from bench.figures.records import write_json
    from bench.lab import engine_bench
    from bench.report import engine_page

    found = engine_bench.run(settings, options.shape, options.context, options.repeats, say)
    print(engine_page.terminal(found))
    if options.json:
        write_json(options.json, found)
        print(f"written: {options.json}")
    return 0
