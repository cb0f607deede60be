"""report: redraw a run from its records, or table answer files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from bench.commands import new_parser, say, tell_written
from bench.errors import UserError
from bench.files import check_writable, user_path


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser(
        "report",
        "Redraw tables, pages and plots of a run from its records; or table answer files in Spec-Bench's format, the\n"
        "baseline's first, of any harness (`export` writes ours). Needs no model and no torch.",
    )
    made.add_argument(
        "run_dir",
        type=user_path,
        nargs="+",
        metavar="RUN_DIR | FILE",
        help="folder with run.json and turns.jsonl, like results/runs/<run id>; or two answer files or more",
    )
    made.add_argument("--plots", type=user_path, default=None, metavar="DIR", help="folder for the plots")
    made.add_argument(
        "--tokenizer",
        default=None,
        metavar="MODEL",
        help="for answer files: count the baseline's tokens by tokenising its text anew, as Spec-Bench's speed.py does",
    )
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    from bench.figures.records import plots_of, read_run
    from bench.figures.summary import read_summary
    from bench.report import terminal_table, write_report

    run_dir: Path = options.run_dir[0]
    if run_dir.is_file():
        if options.plots is not None:
            raise UserError(f"--plots {options.plots}: answer files are tabled, not drawn")
        return _report_answers(options.run_dir, options.tokenizer)
    if options.tokenizer is not None:
        raise UserError(f"--tokenizer {options.tokenizer} is for answer files: a run counts token ids")
    if len(options.run_dir) > 1:
        raise UserError(f"report takes one run, not {len(options.run_dir)}: give one folder, or answer files")
    record = read_run(run_dir)
    plots = options.plots or plots_of(run_dir, record.run_id)
    check_writable(plots, "--plots")
    paths = write_report(run_dir, plots)
    print(terminal_table(read_summary(run_dir)))
    tell_written(paths)
    return 0


def _report_answers(files: Sequence[Path], tokenizer: str | None) -> int:
    """Answer files of any harness, the baseline's first."""
    from bench.report import terminal_table
    from bench.spec_bench.exchange import is_answer_file
    from bench.spec_bench.foreign import foreign_summary

    if len(files) < 2:
        raise UserError(f"{files[0]} alone cannot be compared: give the baseline's answer file first, then a method's")
    for path in files:
        if not is_answer_file(path):
            raise UserError(f"{path} is neither a run's folder nor an answer file in Spec-Bench's format")
    retokenize = None
    if tokenizer is not None:
        from bench.models import checkpoints

        encode = checkpoints.load_tokenizer(checkpoints.resolve(tokenizer, log=say)).encode
        retokenize = lambda text: len(encode(text, add_special_tokens=False))  # noqa: E731
    summary = foreign_summary(files[0], files[1:], retokenize)
    print(terminal_table(summary))
    for name, equal in summary.text_equal.items():
        if summary.methods[name].kind != "vanilla":
            print(f"\n{name}: text equal to the baseline's in {equal['equal']} of {sum(equal.values())} questions")
    print("\n" + "\n".join(f"- {sentence}" for sentence in summary.limits))
    return 0
