"""generate: vanilla and a method side by side on a prompt."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench import config
from bench.commands import add_run_flags, new_parser, say

_GENERATE = """\
examples:
  python run_bench.py generate "Explain why the sky is blue."
  python run_bench.py generate "List ten fruits." --method medusa --max-new-tokens 200 --rejected
  python run_bench.py generate "Tell a story." --method kangaroo:threshold=0.6 --temperature 1
  python run_bench.py generate --json < prompt.txt > answers.json"""


_RUN_FLAGS = (
    "--model",
    "--revision",
    "--temperature",
    "--top-p",
    "--top-k",
    "--seed",
    "--dtype",
    "--quantize",
    "--device",
    "--threads",
)


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser("generate", "Stream vanilla's and a method's answer to a prompt side by side.", _GENERATE)
    made.add_argument("prompt", nargs="?", help="what to ask; default: standard input")
    made.add_argument("--method", default="kangaroo", metavar="NAME[:KEY=VALUE,...]", help="(default: %(default)s)")
    made.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="(default: %(default)s)")
    add_run_flags(made, _RUN_FLAGS)
    made.add_argument("--rejected", action="store_true", help="also show rejected drafts, struck through")
    made.add_argument("--json", action="store_true", help="no stream: one JSON object at the end")
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    given = {k: v for k, v in vars(options).items() if k not in ("prompt", "rejected", "json")}
    settings = config.from_flags(given | {"method": (options.method,), "peer": ("none",)}, "laptop")
    from rich.console import Console

    from bench.run import generate

    generation = generate.prepare(settings, generate.read_prompt(options.prompt, say), say)
    if options.json:
        generate.print_json(generation)
    else:
        generate.show(generation, Console(highlight=False), rejected=options.rejected)
    return 0
