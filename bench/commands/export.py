"""export: a run as Spec-Bench's answer files."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from bench.commands import new_parser, say
from bench.errors import UserError
from bench.files import check_writable, user_path


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser("export", "Write a run as answer files that Spec-Bench's speed.py and equal.py read.")
    made.add_argument("run_dir", type=user_path, help="folder with run.json and turns.jsonl: results/runs/<run id>")
    made.add_argument("--out", type=user_path, metavar="DIR", help="default: spec-bench/ in the run's folder")
    made.add_argument("--model", metavar="NAME", help="decode the text again with this model's tokenizer")
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.figures.records import EXPORTED, read_run
    from bench.models import checkpoints
    from bench.spec_bench import exchange

    out = options.out or options.run_dir / EXPORTED
    run = read_run(options.run_dir)
    check_writable(out)
    decode = None
    if options.model is not None:
        checkpoints.name_of(options.model)
        from bench.models.chat import ChatFormat

        checkpoint = checkpoints.resolve(options.model, log=say)
        if checkpoint.sha256 != run.model.get("sha256"):
            raise UserError(
                f"--model {options.model} is not the model of run {run.run_id}, {run.model.get('name')}: give that one"
            )
        decode = ChatFormat(checkpoints.load_tokenizer(checkpoint)).answer_text
    exported = exchange.export(options.run_dir, out, decode)
    if exported.inexact:
        print(f"{exported.inexact} texts hold parts of characters: --model makes them exact", file=sys.stderr)
    print("written:", *exported.paths, sep="\n  ")
    return 0
