"""bench-engine: what forward passes, drafts, LM head and cache cost here, and how close passes are to the limits."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench import config
from bench.commands import COMPUTE_FLAGS, add_run_flags, given_of, new_parser, refuse_given, say
from bench.errors import UserError
from bench.files import check_output, user_path

_EPILOG = """\
Shapes are published architectures with random weights: they show what forward passes cost, without a download, but not
acceptance. What is compared was timed in turns; medians are shown. With --peer llama-cpp, llama.cpp decodes the same
model with the number of threads that suits it best.

examples:
  python run_bench.py bench-engine
  python run_bench.py bench-engine --method kangaroo --method medusa --json engine.json
  python run_bench.py bench-engine --neighbour --json neighbour.json
  python run_bench.py bench-engine --quantize q4 --peer hf-generate --peer llama-cpp --json q4.json
  python run_bench.py bench-engine --shape vicuna-7b --device cuda --dtype bfloat16"""
_RUN_FLAGS = ("--method", "--peer", "--model", "--revision", *COMPUTE_FLAGS)
_NUMBERS = (
    ("context", 1024, "positions of the cache", 256, config.MANY),
    ("repeats", 15, "timings of each forward pass", 1, 10_000),
)


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "bench-engine",
        "Measure the engine: forward passes, drafts, LM head, cache, and its share of both limits.",
        _EPILOG,
    )
    shapes = "vicuna-7b, vicuna-13b, llama-3.1-8b or smollm2-135m"
    made.add_argument("--shape", metavar="NAME", help=f"random weights in the place of a model's: {shapes}")
    for name, default, what, least, most in _NUMBERS:
        flag = f"--{name}"
        read, text = config.number(int, flag, least, most), f"{what} (default: %(default)s)"
        made.add_argument(flag, type=read, default=default, metavar="N", help=text)
    made.add_argument(
        "--neighbour",
        action="store_true",
        help="instead of all this, time vanilla steps alone and beside a process that keeps a core busy",
    )
    written = "also write all figures for programs, and the roofline next to it, as a plot of the same name"
    made.add_argument("--json", type=user_path, metavar="FILE", help=written)
    add_run_flags(made, _RUN_FLAGS)
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.figures.records import write_json
    from bench.models.shapes import check_shape
    from bench.run import plan  # no torch yet: mistakes in the command are reported at once

    given = given_of(options, _RUN_FLAGS)
    if options.shape is not None:
        refuse_given(given.keys() & {"model", "revision"}, "--shape takes the place of a model: give one of them")
        check_shape(options.shape)
        given.setdefault("method", ("vanilla",))  # random weights have no drafts worth a name
    if options.neighbour:
        refuse_given(given.keys() & {"method", "peer"}, "--neighbour times vanilla alone: leave it out")
        given |= {"method": ("vanilla",), "peer": (config.NO_PEER,)}
    settings = config.from_flags(given, "laptop")
    plan.check(settings, options.shape)
    check_output(options.json, "--json")
    if options.json and options.json.suffix == ".png":
        raise UserError(f"--json {options.json} has the name of the plot that is written next to it: end it in .json")
    from bench.lab import engine_bench
    from bench.report import engine_figures, engine_page

    found = engine_bench.run(settings, options.shape, options.context, options.repeats, say, beside=options.neighbour)
    print(engine_page.neighbour(found) if options.neighbour else engine_page.terminal(found))
    if options.json:
        write_json(options.json, found)
        plots = [engine_figures.write(found, options.json.parent, options.json.stem)] if "products" in found else []
        print("written:", *[options.json, *plots])
    return 0
