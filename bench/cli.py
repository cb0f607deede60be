"""The command line: run is the default, others have a parser and a function each. `UserError` is caught once, here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import bench
import methods
from bench import config
from bench.errors import UserError

_COMMANDS = """\
other commands (each has its own --help):
  report RUN_DIR     redraw tables and plots from a run's records
  sweep              one run over the product of some knobs' values, or of some settings of training
  train METHOD       train kangaroo's or medusa's weights for a model, on its own answers to prompts of all kinds
  list               methods with their knobs, tasks, models
  generate PROMPT    vanilla and a method side by side on your own prompt, streamed
  export RUN_DIR     a run as answer files in Spec-Bench's format
  cache list|clean   what was downloaded, and how to be rid of it

examples:
  python run_bench.py --method kangaroo --tasks all
  python run_bench.py --method kangaroo --method kangaroo:paper --tasks all
  python run_bench.py --method kangaroo:threshold=0,gamma=4 --tasks qa,rag --limit 4
  python run_bench.py --preset spec-bench --model lmsys/vicuna-7b-v1.3 --method kangaroo:weights=FOLDER,exit_layer=2

Vanilla decoding always runs as the baseline. Exit status: 0 fine, 1 a lossless method's output was not vanilla's or a
method failed in every question, 2 a mistake in the command, 130 interrupted (what was done until then is kept)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsers = _parsers()
    if given[:1] in (["--version"], ["-V"]):
        print(f"roobench {bench.__version__}")
        return 0
    command = given.pop(0) if given and given[0] in parsers else "run"
    parser, handler = parsers[command]
    options = parser.parse_args(given)
    try:
        return handler(options)
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parsers() -> dict[str, tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], int]]]:
    makers = {"run": _run_parser, "report": _report_parser, "train": _train_parser, "list": _list_parser}
    makers |= {"sweep": _sweep_parser, "cache": _cache_parser, "generate": _generate_parser, "export": _export_parser}
    return {name: maker() for name, maker in makers.items()}


_Made = tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], int]]


def _parser(command: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"run_bench.py {command}".strip(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _run_parser() -> _Made:
    parser = _parser(
        "",
        "Measure decoding methods against vanilla decoding on the same device: speedup, compression rate, CTAR.\n"
        f"Methods: {', '.join(methods.names())}.",
        _COMMANDS,
    )
    for flag, options in config.flags(config.RunConfig):
        parser.add_argument(flag, **options)
    presets = "; ".join(f"{name}: {_spell(values) or 'the defaults'}" for name, values in config.PRESETS.items())
    parser.add_argument("--preset", choices=list(config.PRESETS), default=None, help=f"settings by name: {presets}")
    parser.add_argument(
        "--resume",
        type=Path,
        default=None,
        metavar="RUN_DIR",
        help="go on with a run that was killed or interrupted, under the settings that it was begun with",
    )
    return parser, _run


def _spell(values: dict[str, object]) -> str:
    return ", ".join(f"--{key.replace('_', '-')} {value}" for key, value in values.items())


def _run(options: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(options).items() if value is not None}
    folder, preset = given.pop("resume", None), given.pop("preset", None)
    from bench import metrics, resume, runner
    from bench.report import terminal_table, write_report

    resumed = None if folder is None else (folder, resume.begun(folder))
    if resumed is None:
        settings = config.from_flags(given, preset or "laptop")
    else:
        settings = resume.settings(resumed[1], (config.PRESETS[preset] if preset else {}) | given)
    bench_run = runner.Bench(settings, lambda line: print(line, file=sys.stderr), resumed)
    record = bench_run.run()
    if not bench_run.turns:
        print("interrupted before the first question was through: there is nothing to report", file=sys.stderr)
        return 130
    paths = write_report(bench_run.run_dir, bench_run.plots_dir)
    summary = json.loads((bench_run.run_dir / "summary.json").read_text(encoding="utf-8"))
    print(terminal_table(summary))
    _tell_written(paths)
    if not record.complete:
        print("interrupted: the figures are of the questions finished until then;", file=sys.stderr)
        print(f"go on with: python run_bench.py --resume {bench_run.run_dir}", file=sys.stderr)
        return 130
    failed = metrics.not_lossless(record, bench_run.turns)
    if failed:
        print(f"NOT LOSSLESS: {', '.join(failed)}; see the divergences in {bench_run.run_dir}", file=sys.stderr)
    dead = metrics.failed_throughout(record, bench_run.turns)
    for label, error in dead.items():
        print(f"{label} failed in every question, first with: {error}", file=sys.stderr)
    return 1 if failed or dead else 0


def _report_parser() -> _Made:
    parser = _parser(
        "report",
        "Redraw tables, pages and plots of a run from its records; or table answer files in Spec-Bench's format, the\n"
        "baseline's first, of any harness (`export` writes ours). Needs no model and no torch.",
    )
    parser.add_argument(
        "run_dir",
        type=Path,
        nargs="+",
        metavar="RUN_DIR | FILE",
        help="folder with run.json and turns.jsonl, like results/runs/<run id>; or two answer files or more",
    )
    parser.add_argument("--plots", type=Path, default=None, metavar="DIR", help="folder for the plots")
    return parser, _report


def _report(options: argparse.Namespace) -> int:
    from bench.records import plots_of, read_run
    from bench.report import terminal_table, write_report

    run_dir: Path = options.run_dir[0]
    if run_dir.is_file():
        return _report_answers(options.run_dir)
    if len(options.run_dir) > 1:
        raise UserError(f"report takes one run, not {len(options.run_dir)}: give one folder, or answer files")
    paths = write_report(run_dir, options.plots or plots_of(run_dir, read_run(run_dir).run_id))
    print(terminal_table(json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))))
    _tell_written(paths)
    return 0


def _report_answers(files: Sequence[Path]) -> int:
    """Answer files of any harness, the baseline's first."""
    from bench.foreign import foreign_summary
    from bench.report import terminal_table

    if len(files) < 2:
        raise UserError(f"{files[0]} alone cannot be compared: give the baseline's answer file first, then a method's")
    summary = foreign_summary(files[0], files[1:])
    print(terminal_table(summary))
    for name, entry in summary["methods"].items():
        equal = entry["tasks"]["overall"]["text_equal"]
        if entry["kind"] != "vanilla":
            print(
                f"\n{name}: the text is the baseline's in {equal['equal']} of {sum(equal.values())} questions", end=""
            )
    print("\n\n" + "\n".join(f"- {sentence}" for sentence in summary["limits"]))
    return 0


def _tell_written(paths: Sequence[Path]) -> None:
    """The files by name, plots by their folder."""
    plots = [path for path in paths if path.suffix in (".png", ".svg")]
    print("written:", *(path for path in paths if path not in plots), sep="\n  ")
    if plots:
        print(f"  {plots[0].parent}{os.sep}  ({len(plots)} plots: {', '.join(dict.fromkeys(p.stem for p in plots))})")


_SWEEPS = """\
examples:
  python run_bench.py sweep --grid threshold=0,0.2,0.4,0.6,0.8 --grid gamma=2,4,6,8 --limit 2
  python run_bench.py sweep --grid train.exit_layer=1,2,3,5,8 --train-tokens 50000 --out results/runs/exit-layers
  python run_bench.py sweep results/runs/exit-layers      # redraw from the records

Trained weights are kept in the run's folder: the same command with the same --out goes on where it was interrupted.
Exit status as of a run; 1 as well if a variant failed."""


def _sweep_parser() -> _Made:
    parser = _parser("sweep", "Measure a method over the product of some knobs' values, all in one run.", _SWEEPS)
    parser.add_argument("run_dir", type=Path, nargs="?", help="an existing sweep's folder: redraw it")
    parser.add_argument(
        "--grid",
        action="append",
        metavar="NAME=V,V,...",
        help="a knob of the method, or a setting of its training (train.exit_layer, train.architecture, ...), with the "
        "values to try; may be repeated",
    )
    for name, what in (("tokens", "tokens of answers"), ("epochs", "passes over them")):
        default = config.SWEEP_TRAINING[name]
        text = f"{what} for each training (default: {default}); --grid train.{name}=... tries several"
        parser.add_argument(f"--train-{name}", type=int, default=default, metavar="N", help=text)
    for flag, options in config.flags(config.RunConfig):
        parser.add_argument(flag, **(options | ({"help": "the method to sweep"} if flag == "--method" else {})))
    parser.add_argument("--preset", choices=list(config.PRESETS), default="laptop", help="settings by name, as for run")
    return parser, _sweep


def _sweep(options: argparse.Namespace) -> int:
    given = dict(vars(options))
    run_dir, grids, preset = given.pop("run_dir"), given.pop("grid"), given.pop("preset")
    training = {name: given.pop(f"train_{name}") for name in config.SWEEP_TRAINING}
    if run_dir is not None:
        if grids:
            raise UserError(f"{run_dir} is redrawn without --grid; to sweep into a folder, name it with --out")
        return _redraw_sweep(run_dir)
    settings = config.from_flags({"peer": ("none",)} | {k: v for k, v in given.items() if v is not None}, preset)
    from bench import sweep

    bench_run, paths = sweep.run(settings, grids or [], training, log=lambda line: print(line, file=sys.stderr))
    if not paths:
        print("interrupted before the first question was through: there is nothing to report", file=sys.stderr)
        return 130
    return _show_sweep(bench_run.run_dir, paths)


def _redraw_sweep(run_dir: Path) -> int:
    from bench.report.sweep_page import write_sweep

    return _show_sweep(run_dir, write_sweep(run_dir))


def _show_sweep(run_dir: Path, paths: Sequence[Path]) -> int:
    from bench import metrics
    from bench.records import read_run, read_turns
    from bench.report.sweep_page import measured, read_sweep, table

    swept, record, turns = read_sweep(run_dir), read_run(run_dir), read_turns(run_dir)
    summary, points = measured(swept, record, turns)
    print(table(swept, points, sampled=summary["sampling"] is not None))
    print("written:", *paths, sep="\n  ")
    failed = [point for point in points if point.failure]
    for point in failed:
        print(f"{point.variant.label} failed: {point.failure}", file=sys.stderr)
    if not record.complete:
        print("interrupted: the figures are of the questions finished until then", file=sys.stderr)
        return 130
    lossy = metrics.not_lossless(record, turns)
    if lossy:
        print(f"NOT LOSSLESS: {', '.join(lossy)}; see the divergences in {run_dir}", file=sys.stderr)
    return 1 if failed or lossy else 0


def _train_parser() -> _Made:
    parser = _parser("train", "Train a method's small weights for a model, on conversations that the model writes.")
    kinds = parser.add_subparsers(dest="what", required=True, metavar="METHOD", title="what to train")
    for what, (settings, text) in _TRAINABLE.items():
        own = kinds.add_parser(what, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for flag, options in config.flags(settings):
            own.add_argument(flag, **options)
    return parser, _train


_TRAINABLE: dict[str, tuple[type[config.TrainConfig], str]] = {
    "kangaroo": (config.KangarooTraining, "train an adapter for Kangaroo"),
    "medusa": (config.MedusaTraining, "train Medusa's heads"),
    "conversations": (config.TrainConfig, "only make the conversations that methods are trained on, and keep them"),
}


def _train(options: argparse.Namespace) -> int:
    given = {k: v for k, v in vars(options).items() if k != "what" and v is not None}
    settings = _TRAINABLE[options.what][0](**given)
    from bench.train import training

    def log(line: str) -> None:
        print(line, file=sys.stderr)

    if isinstance(settings, config.KangarooTraining):
        from bench.train.kangaroo import AdapterTrainer

        paths = training.train(AdapterTrainer, settings, log)
    elif isinstance(settings, config.MedusaTraining):
        from bench.train.medusa import HeadsTrainer

        paths = training.train(HeadsTrainer, settings, log)
    else:
        paths = training.keep_conversations(settings, log)
    print("written:", *paths, sep="\n  ")
    return 0


def _list_parser() -> _Made:
    return _parser("list", "Show methods with their knobs, tasks and models."), _list


def _list(options: argparse.Namespace) -> int:
    from bench.checkpoints import DEFAULT_MODEL, list_cache
    from bench.questions import TASKS
    from methods.base import Peer

    print("methods")
    for name in methods.names():
        method = methods.load(name)
        kind = " (peer: another library's decoding)" if issubclass(method, Peer) else ""
        print(f"  {name}{kind}: {(sys.modules[method.__module__].__doc__ or '').strip().splitlines()[0]}")
        for preset, values in method.presets.items():
            print(f"      {preset}   for {','.join(f'{knob}={value}' for knob, value in values.items())}")
        for knob, default, text in methods.knobs(method):
            print(f"      {knob}={default}   {text}")
    print("tasks\n  all,", ", ".join(TASKS))
    cached = {entry.name for entry in list_cache() if entry.is_model}
    print(
        f"models\n  {DEFAULT_MODEL} (the default{', in the cache' if DEFAULT_MODEL in cached else ', 93 MB to fetch'})"
    )
    for name in sorted(cached - {DEFAULT_MODEL}):
        print(f"  {name} (in the cache)")
    print("  any Llama-family chat model: a Hugging Face id like lmsys/vicuna-7b-v1.3, or a folder")
    return 0


def _cache_parser() -> _Made:
    parser = _parser("cache", "Show or clean what was downloaded ($ROOBENCH_CACHE, else ~/.cache/roobench).")
    parser.add_argument("action", choices=("list", "clean"))
    parser.add_argument("names", nargs="*", help="what to clean; default: everything")
    return parser, _cache


def _cache(options: argparse.Namespace) -> int:
    from bench.checkpoints import cache_root, clean_cache, list_cache

    if options.action == "clean":
        print(f"freed {clean_cache(options.names) / 1e6:.0f} MB in {cache_root()}")
        return 0
    entries = list_cache()
    for entry in entries:
        print(f"{entry.bytes / 1e6:10.0f} MB  {entry.name}  ({entry.path})")
    if not entries:
        print(f"{cache_root()} is empty")
    return 0


_GENERATE = """\
examples:
  python run_bench.py generate "Explain why the sky is blue."
  python run_bench.py generate "List ten fruits." --method medusa --max-new-tokens 200 --rejected
  python run_bench.py generate "Tell a story." --method kangaroo:threshold=0.6 --temperature 1
  python run_bench.py generate --json < prompt.txt > answers.json"""


def _generate_parser() -> _Made:
    parser = _parser("generate", "Stream vanilla's and a method's answer to a prompt side by side.", _GENERATE)
    parser.add_argument("prompt", nargs="?", help="what to ask; default: standard input")
    parser.add_argument("--method", default="kangaroo", metavar="NAME[:KEY=VALUE,...]", help="(default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="(default: %(default)s)")
    shared = ("model", "revision", "temperature", "top-p", "top-k", "seed", "dtype", "device", "threads")
    for flag, options in config.flags(config.RunConfig):
        if flag.removeprefix("--") in shared:
            parser.add_argument(flag, **options)
    parser.add_argument("--rejected", action="store_true", help="also show rejected drafts, struck through")
    parser.add_argument("--json", action="store_true", help="no stream: one JSON object at the end")
    return parser, _generate


def _generate(options: argparse.Namespace) -> int:
    given = {k: v for k, v in vars(options).items() if k not in ("prompt", "rejected", "json")}
    settings = config.from_flags(given | {"method": (options.method,), "peer": ("none",)}, "laptop")
    from rich.console import Console

    from bench import generate

    def log(line: str) -> None:
        print(line, file=sys.stderr)

    generation = generate.prepare(settings, generate.read_prompt(options.prompt, log), log)
    if options.json:
        generate.print_json(generation)
    else:
        generate.show(generation, Console(highlight=False), rejected=options.rejected)
    return 0


def _export_parser() -> _Made:
    parser = _parser("export", "Write a run as answer files that Spec-Bench's speed.py and equal.py read.")
    parser.add_argument("run_dir", type=Path, help="folder with run.json and turns.jsonl, like results/runs/<run id>")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="default: spec-bench/ in the run's folder"
    )
    parser.add_argument(
        "--model", default=None, metavar="NAME", help="decode the text anew with this model's tokenizer"
    )
    return parser, _export


def _export(options: argparse.Namespace) -> int:
    from bench import checkpoints, exchange

    decode = None
    if options.model is not None:
        from bench.questions import ChatFormat

        checkpoint = checkpoints.resolve(options.model, log=lambda line: print(line, file=sys.stderr))
        decode = ChatFormat(checkpoints.load_tokenizer(checkpoint)).answer_text
    exported = exchange.export(options.run_dir, options.out or options.run_dir / "spec-bench", decode)
    if exported.inexact:
        print(f"{exported.inexact} texts hold parts of characters: --model makes them exact", file=sys.stderr)
    print("written:", *exported.paths, sep="\n  ")
    return 0
