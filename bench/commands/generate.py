"""generate: vanilla and a method side by side on a prompt."""

from __future__ import annotations

import shutil
import sys
from argparse import ArgumentParser, Namespace

import methods
from bench import config
from bench.commands import COMPUTE_FLAGS, add_run_flags, given_of, new_parser, refuse_given, say
from bench.errors import UserError
from bench.files import check_output, user_path

_GENERATE = """\
examples:
  python run_bench.py generate "Explain why the sky is blue."
  python run_bench.py generate "List ten fruits." --method medusa --max-new-tokens 200 --rejected
  python run_bench.py generate "Tell a story." --method kangaroo:threshold=0.6 --temperature 1
  python run_bench.py generate --json < prompt.txt > answers.json
  python run_bench.py generate "Why is the sky blue?" --record race.json"""


_RUN_FLAGS = ("--model", "--revision", "--temperature", "--top-p", "--top-k", "--seed", *COMPUTE_FLAGS)


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser("generate", "Stream vanilla's and a method's answer to a prompt side by side.", _GENERATE)
    made.add_argument("prompt", nargs="?", help="what to ask; default: standard input")
    made.add_argument("--method", default="kangaroo", metavar="NAME[:KEY=VALUE,...]", help="(default: %(default)s)")
    made.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="(default: %(default)s)")
    add_run_flags(made, _RUN_FLAGS)
    made.add_argument("--rejected", action="store_true", help="also show rejected drafts, struck through")
    made.add_argument("--json", action="store_true", help="no stream: one JSON object at the end")
    made.add_argument(
        "--record",
        type=user_path,
        metavar="FILE",
        help="also write what each side said and when, as JSON; scripts/race_svg.py draws it",
    )
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    if options.json and options.rejected:
        refuse_given(["rejected"], "--json has no text of drafts: leave one of them out")
    methods.parse_drafting(options.method, "generate")
    fixed = {"method": (options.method,), "peer": (config.NO_PEER,), "max_new_tokens": options.max_new_tokens}
    settings = config.from_flags(given_of(options, _RUN_FLAGS) | fixed, "laptop")
    from bench.run import plan  # no torch yet: mistakes in the command are reported at once

    plan.check(settings)
    check_output(options.record, "--record")
    prompt = _read_prompt(options.prompt)
    from rich.console import Console

    from bench.figures.records import write_json
    from bench.run import generate

    generation = generate.prepare(settings, prompt, say)
    if options.json:
        generate.print_json(generation)
    else:
        console = Console(highlight=False)
        if console.is_dumb_terminal:  # whose size rich does not ask for
            console.size = shutil.get_terminal_size()
        generate.show(generation, console, rejected=options.rejected)
    if options.record is not None:
        write_json(options.record, generation.race)
        say(f"written: {options.record}")
    return 0


def _read_prompt(given: str | None) -> str:
    """The prompt given, else standard input.

    Raises:
        UserError: it is empty, or not UTF-8 text.

    """
    try:
        if given is None and sys.stdin.isatty():
            say("type the prompt, then Ctrl-D")
        text = sys.stdin.read() if given is None else given
        text.encode("utf-8")
    except UnicodeError as error:
        raise UserError(f"the prompt is not UTF-8 text ({error}): convert it") from error
    if not text.strip():
        raise UserError("the prompt is empty: give it as an argument or on standard input")
    return text
