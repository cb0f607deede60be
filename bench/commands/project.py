"""project: what a published or recorded acceptance would be worth on this device, at the costs of a shape."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench import config
from bench.commands import COMPUTE_FLAGS, add_run_flags, given_of, new_parser, refuse_given, say
from bench.errors import UserError
from bench.files import check_output, user_file, user_path
from bench.text import counts

_EPILOG = """\
Forward passes, exit layers and the published draft models are measured on this device, with random weights of the
shape; how many tokens a step yields is taken from a paper's figures or from a run's records. The product is a
PROJECTION, no measurement. A paper gives the compression rate, but not how much was drafted for it: where drafting may
stop early, the projection is a range.

examples:
  python run_bench.py project --shape vicuna-7b --device cuda
  python run_bench.py project --shape smollm2-135m --acceptance results/runs/RUN_ID
  python run_bench.py project --engine engine.json --acceptance results/runs/RUN_ID --batch 1,2,4,8
  python run_bench.py bench-engine --shape vicuna-13b --json engine.json
  python run_bench.py project --engine engine.json --json projection.json"""
_SHAPE = "vicuna-7b"


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser("project", "Project published or recorded acceptance onto this device's costs.", _EPILOG)
    made.add_argument("--shape", metavar="NAME", help=f"architecture (default: {_SHAPE})")
    made.add_argument(
        "--engine", type=user_file, metavar="FILE", help="costs that bench-engine wrote, instead of measuring"
    )
    made.add_argument(
        "--acceptance",
        type=user_path,
        action="append",
        metavar="FILE|RUN_DIR",
        help="published figures or a run's folder; may be repeated (default: all of results/published)",
    )
    made.add_argument(
        "--batch",
        type=counts,
        metavar="B,B,...",
        help="project the throughput of the runs' recorded steps in batches of these sizes instead, see run's --batch",
    )
    made.add_argument("--json", type=user_path, metavar="FILE", help="also write it for programs")
    add_run_flags(made, COMPUTE_FLAGS)
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.figures.engine_record import read_engine
    from bench.figures.published import PUBLISHED
    from bench.figures.records import write_json
    from bench.models.shapes import check_shape

    asked = given_of(options, ("--shape", *COMPUTE_FLAGS))
    if options.engine is not None:
        refuse_given(asked, f"{options.engine} has its own: leave them out")
    shape = asked.pop("shape", _SHAPE)
    check_shape(shape)
    settings = config.from_flags(
        asked | {"method": ("vanilla",), "peer": (config.NO_PEER,), "batch": options.batch}, "laptop"
    )
    sizes = sorted(settings.batch)
    if sizes and not any(source.is_dir() for source in options.acceptance or ()):
        raise UserError("--batch projects a run's recorded steps: name its folder with --acceptance")
    check_output(options.json, "--json")
    from bench.lab import projection as project
    from bench.lab.batch_projection import project_batches
    from bench.report import engine_page

    sources = options.acceptance or sorted(PUBLISHED.glob("*.json"))
    if options.engine is None:
        from bench.lab import engine_bench

        engine = engine_bench.run(settings, shape, context=1024, repeats=15, log=say)
    else:
        engine = read_engine(options.engine)
    if sizes:
        rows = project_batches(engine, [source for source in sources if source.is_dir()], sizes)
        print(engine_page.batches(engine, rows, sizes))
    else:
        rows = project.project(engine, sources)
        print(engine_page.projection(engine, rows))
    if options.json:
        write_json(options.json, {"projection": rows, "engine": engine})
        print(f"written: {options.json}")
    return 0
