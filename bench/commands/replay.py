"""replay: how methods that draft from text alone would have done on the answers of a run, without the model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import methods
from bench.commands import new_parser, say
from bench.errors import UserError, program
from bench.files import check_output, user_path

_EPILOG = """\
Under greedy decoding a lossless method emits vanilla's answer, whatever it drafts. So the answers that a run recorded
decide which drafts would have been accepted: the steps, drafts and accepted tokens are those of a real run, exactly.
It takes milliseconds a question, so a knob can be tried in seconds. Speedups are PREDICTED, no measurements: the steps
are weighed by the forward-pass costs that the run recorded, plus the time that drafting takes on this machine.

Methods must draft from the text alone. Those that read the target's states or logits are refused. Prompts are not
recorded: they are made again from the questions and the tokenizer, and compared with the run's. The weights are not
read. Sampled runs cannot be replayed: another method would have sampled other answers.

examples:
  python run_bench.py replay results/runs/RUN_ID
  python run_bench.py replay results/runs/RUN_ID --method pld --method pld:ngram=2,tokens=4
  python run_bench.py replay results/runs/RUN_ID --method pld --json replay.json"""


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser("replay", "Replay methods that draft from text on a run's recorded answers.", _EPILOG)
    made.add_argument("run_dir", type=user_path, metavar="RUN_DIR", help="folder of a greedy run: results/runs/RUN_ID")
    made.add_argument(
        "--method",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help="a method with its knobs, or a composition; may be repeated (default: all that draft from text)",
    )
    made.add_argument("--questions", metavar="NAME", help="where the run's questions are now (default: as recorded)")
    made.add_argument("--model", metavar="NAME", help="where the run's model is now, for its tokenizer")
    made.add_argument("--json", type=user_path, metavar="FILE", help="also write every step and figure for programs")
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.figures.records import read_records, write_json

    everything = options.method in (None, [methods.ALL])
    variants = {one: methods.parse(one) for one in methods.expanded(options.method or [methods.ALL])}
    variants.pop(methods.BASELINE, None)
    if not variants:
        raise UserError(f"{methods.BASELINE} drafts nothing: name a method that drafts from text with --method")
    check_output(options.json, "--json")
    record, turns = read_records(options.run_dir)
    from bench.lab import replay  # imports torch

    answers, model = replay.prepare(record, turns, options.model, options.questions, say)
    found = []
    for variant in variants.values():
        try:
            found.append(replay.replay(record, model, answers, variant))
        except UserError as error:  # it needs more than text, or a file that is not here
            if not everything:
                raise
            say(f"left out: {error}")
    if not found:
        raise UserError(f"none of the built-in methods can be replayed on this run: name one ({program()} list)")
    from bench.figures.replayed import best_choice
    from bench.report import replay_page

    best = best_choice(record, turns, found)
    print(replay_page.page(record, found, best))
    if options.json:
        write_json(options.json, replay.as_json(record, found, best))
        print(f"written: {options.json}")
    return 0
