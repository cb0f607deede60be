"""export: a run as Spec-Bench's answer files."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench.commands import new_parser, say
from bench.errors import UserError


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser("export", "Write a run as answer files that Spec-Bench's speed.py and equal.py read.")
    made.add_argument("run_dir", type=Path, help="folder with run.json and turns.jsonl, like results/runs/<run id>")
    made.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: spec-bench/ in the run's folder")
    made.add_argument("--model", default=None, metavar="NAME", help="decode the text anew with this model's tokenizer")
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    from bench.figures.records import EXPORTED, read_run
    from bench.models import checkpoints
    from bench.spec_bench import exchange

    decode = None
    if options.model is not None:
        from bench.models.chat import ChatFormat

        checkpoint = checkpoints.resolve(options.model, log=say)
        run = read_run(options.run_dir)
        if checkpoint.sha256 != run.model.get("sha256"):
            raise UserError(f"--model {options.model} is not the model of run {run.run_id}, {run.model.get('name')}")
        decode = ChatFormat(checkpoints.load_tokenizer(checkpoint)).answer_text
    exported = exchange.export(options.run_dir, options.out or options.run_dir / EXPORTED, decode)
    if exported.inexact:
        print(f"{exported.inexact} texts hold parts of characters: --model makes them exact", file=sys.stderr)
    print("written:", *exported.paths, sep="\n  ")
    return 0
