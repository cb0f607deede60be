"""report: redraw a run from its records, or table answer files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from bench.commands import new_parser, say, tell_written
from bench.errors import UserError
from bench.files import check_writable, user_path

_EXAMPLES = """\
examples:
  python run_bench.py report results/runs/RUN_ID --open
  python run_bench.py report vanilla.jsonl medusa.jsonl"""


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser(
        "report",
        "Redraw tables, pages and plots of a run from its records; or table answer files in Spec-Bench's format, of\n"
        "any harness, the baseline's first (`export` writes ours). Needs no model and no torch.",
        _EXAMPLES,
    )
    made.add_argument(
        "run_dir",
        type=user_path,
        nargs="+",
        metavar="RUN_DIR | FILE",
        help="folder with run.json and turns.jsonl, like results/runs/RUN_ID; or two or more answer files",
    )
    made.add_argument("--open", action="store_true", help="open the HTML page in the browser")
    made.add_argument("--plots", type=user_path, metavar="DIR", help="folder for the plots")
    made.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="for answer files: count the baseline's tokens by tokenizing its text, as Spec-Bench's speed.py does",
    )
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.figures.records import plots_of, read_run
    from bench.report import HTML_FILE, write_report
    from bench.report.conclusion import conclusion

    run_dir: Path = options.run_dir[0]
    if run_dir.is_file():
        if options.plots is not None or options.open:
            flag = "--open" if options.plots is None else f"--plots {options.plots}"
            raise UserError(f"{flag}: answer files are tabled, not drawn; leave it out")
        return _report_answers(options.run_dir, options.tokenizer)
    if options.tokenizer is not None:
        raise UserError(
            f"--tokenizer {options.tokenizer} is for answer files, and a run counts token ids; leave it out"
        )
    if len(options.run_dir) > 1:
        raise UserError(f"report takes one run, not {len(options.run_dir)}: give one folder, or answer files")
    plots = options.plots or plots_of(run_dir, read_run(run_dir).run_id)
    check_writable(plots, "--plots")
    paths = write_report(run_dir, plots)
    print(conclusion(run_dir))
    tell_written(paths)
    if options.open:
        _open(run_dir / HTML_FILE)
    return 0


def _open(page: Path) -> None:
    """Open a page in the browser, if there is one."""
    import webbrowser

    try:
        opened = webbrowser.open(page.absolute().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        say(f"no browser was found here: open {page.absolute()} in one")


def _report_answers(files: Sequence[Path], tokenizer: str | None) -> int:
    """Table answer files of any harness, the baseline's first."""
    from bench.report import terminal_table
    from bench.spec_bench.foreign import foreign_summary
    from bench.text import visible

    if len(files) < 2:
        raise UserError(f"{files[0]} alone cannot be compared: give the baseline's answer file first, then a method's")
    retokenize = None
    if tokenizer is not None:
        from bench.models import checkpoints

        encode = checkpoints.load_tokenizer(checkpoints.resolve(tokenizer, log=say)).encode
        retokenize = lambda text: len(encode(text, add_special_tokens=False))  # noqa: E731
    summary = foreign_summary(files[0], files[1:], retokenize)
    print(terminal_table(summary))
    for name, equal in summary.text_equal.items():
        if summary.methods[name].kind != "vanilla":
            counts = f"{equal['equal']} of {sum(equal.values())} questions"
            print(visible(f"\n{name}: text equal to the baseline's in {counts}"))
    print(visible("\n" + "\n".join(f"- {sentence}" for sentence in summary.limits)))
    return 0
