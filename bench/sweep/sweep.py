"""Sweeps: one run over the product of some knobs' values; weights are trained on the way.

An axis is a knob of the method (`threshold=0,0.2`) or a setting of its training (`train.exit_layer=1,2,3`): then one
set of weights is trained per value, kept in the run's folder, and not trained again when the sweep is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.config import RunConfig
from bench.errors import UserError, reason_of
from bench.figures.records import RUN_FILE, Run, read_run, write_json
from bench.files import check_writable
from bench.models import loading
from bench.models.loading import Compute, Loaded
from bench.progress import Log
from bench.report import write_report
from bench.report.sweep_page import SWEEP_FILE, Sweep, Variant, read_sweep, write_sweep
from bench.run import resume, runner
from bench.run.plan import Plan
from bench.run.recorder import Recorder
from bench.run.scheduler import expected_s
from bench.run.workers import driver
from bench.sweep.grid import Grid, Planned
from bench.train.scores import read_scores
from bench.train.training import compute, train
from bench.train.writer import Recipe
from bench.train_config import TrainConfig
from bench.typed_json import read

MANY = 24  # variants from which on a sweep is said to take long
TRAINED_FILE = "trained.json"  # the settings of weights that are finished
_PLACES = ("out", "threads", "workers")  # settings of a training that its weights do not depend on


def run(config: RunConfig, grid: Grid, log: Log = print) -> tuple[Recorder, list[Path]]:
    """Train what is missing, run all variants beside vanilla, and write records, table and figures.

    What fails is reported and left out. The model is loaded once, for runs in float32 also for their trainings. Where
    workers ask the questions, this process trains. Returns what the run has left, and the files written.

    Raises:
        UserError: a folder of another sweep, or nothing is left to run.

    """
    folder, planned = grid.folder, grid.variants
    trainings = [dataclasses.asdict(p.training) if p.training else None for p in planned]
    variants = [Variant(p.label, p.values, training) for p, training in zip(planned, trainings, strict=True)]
    sweep = Sweep(grid.method, grid.axes, variants)
    earlier = _earlier(folder, sweep)
    log(
        f"{len(planned)} variants, in {folder}; interrupted, the sweep goes on with the same command and --out {folder}"
    )
    config = dataclasses.replace(config, out=str(folder))
    loaded = _train_all(config, planned, sweep, log)
    config, resumed = _going_on(config, earlier, sweep, log) or (_of_living(config, sweep), None)
    asked = runner.make_plan(config, resumed, of_sweep=True)
    if config.by_workers:
        del loaded  # each of them has its own
        left = _ask_by_workers(asked, sweep, log)
    else:
        left = _ask(asked, loaded, sweep, log)
    write_json(folder / SWEEP_FILE, sweep)
    if not left.turns:
        return left, []
    return left, [*write_sweep(folder), *write_report(folder, left.plan.plots)]


def _ask(asked: Plan, loaded: Loaded | None, sweep: Sweep, log: Log) -> Recorder:
    """Carry out the sweep's run in this process."""
    fails = functools.partial(_fail_in_run, sweep, asked.resumed, log)
    examiner = runner.assemble(asked, loaded or runner.load(asked, log), log, fails)
    with resume.alone_with(asked.folder, asked.resumed):
        record = runner.prepare(asked, examiner, log, fails)
        about_s = asked.config.rounds * sum(expected_s(asked, examiner, q) for q in asked.questions.questions)
        _begin(asked, sweep, about_s, log)
        return runner.ask(asked, examiner, record, log)


def _ask_by_workers(asked: Plan, sweep: Sweep, log: Log) -> Recorder:
    """Carry out the sweep's run by workers, which tell what fails before the first question."""

    def begins(failed: dict[str, str], about_s: float) -> None:
        for label, reason in failed.items():
            _fail(sweep, label, reason, log)
        _begin(asked, sweep, about_s, log)

    return driver.carry_out(asked, log, begins)


def _begin(asked: Plan, sweep: Sweep, about_s: float, log: Log) -> None:
    """Do what comes before the first question, which are expected to take so many seconds."""
    if (count := len(sweep.variants) - len(sweep.failed)) > MANY:
        log(
            f"WARNING: {count} variants take long, about {about_s / 60:.0f} min: fewer values, --limit or --tasks make "
            "it shorter"
        )
    write_json(asked.folder / SWEEP_FILE, sweep)  # now, so that what a killed run leaves can be drawn


def _earlier(folder: Path, sweep: Sweep) -> Sweep | None:
    """The record of the same sweep in `folder`, if it was begun there.

    Raises:
        UserError: the folder cannot be written, or holds another sweep.

    """
    check_writable(folder)
    if not (folder / SWEEP_FILE).is_file():
        return None
    there = read_sweep(folder)
    if (there.method, there.axes) != (sweep.method, sweep.axes):
        axes = " ".join(f"--grid {axis.name}={','.join(axis.values)}" for axis in there.axes)
        raise UserError(f"{folder} holds another sweep ({there.method} {axes}): choose another folder with --out")
    return there


def _train_all(config: RunConfig, planned: Sequence[Planned], sweep: Sweep, log: Log) -> Loaded | None:
    """Train each set of weights once; variants whose training fails are out.

    All trainings are on one loaded model. If it will do for the run as well, it is returned.
    """
    trainings = list({p.training.out: p.training for p in planned if p.training}.values())
    missing = [t for t in trainings if not _is_trained(t)]  # a mistake in the command is told before an hour of work
    shared = Compute.of(config).quantize == "none" and Compute.of(config).torch_dtype == torch.float32
    loaded = None
    if missing and shared:
        trains = dataclasses.replace(config, method=(), threads=compute(missing[0]).threads)
        loaded = runner.load(runner.make_plan(trains, of_sweep=True), log, Recipe.length)
    elif missing:
        model = loading.find(config.model, config.revision, log)
        loaded = loading.load(model, compute(missing[0]), Recipe.length, log)
    failed: dict[str | None, str] = {}
    for number, training in enumerate(trainings, 1):
        assert training.out
        try:
            _train(sweep.method.partition(":")[0], training, trainings, f"{number} of {len(trainings)}", loaded, log)
        except Exception as error:  # any failure is a result: told, and the others go on
            failed[training.out] = f"training failed: {reason_of(error)}"
    for p, variant in zip(planned, sweep.variants, strict=True):
        if p.training and p.training.out in failed:
            _fail(sweep, variant.label, failed[p.training.out], log)
        elif p.training:
            scores = read_scores(Path(str(p.training.out)))
            variant.agreement = scores.agreement if scores else None
    return loaded if shared else None


def _is_trained(training: TrainConfig) -> bool:
    """Whether its weights lie there, finished.

    Raises:
        UserError: they do, but were trained otherwise.

    """
    path = Path(str(training.out)) / TRAINED_FILE
    if not path.is_file():
        return False
    try:
        there = read(dict[str, Any], path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove {path.parent}, and it is trained again") from error
    for key, value in _settings(training).items():
        if there.get(key) != value:
            raise UserError(
                f"{path.parent} was trained with {key} {there.get(key)}, not {value}: choose another folder with --out"
            )
    return True


def _settings(training: TrainConfig) -> dict[str, Any]:
    """What the weights depend on, as JSON gives it back."""
    settings = {key: value for key, value in dataclasses.asdict(training).items() if key not in _PLACES}
    return dict(json.loads(json.dumps(settings)))


def _train(
    method: str, training: TrainConfig, others: Sequence[TrainConfig], number: str, loaded: Loaded | None, log: Log
) -> None:
    """One set of weights, unless it lies there."""
    if _is_trained(training):
        log(f"weights {number} lie in {training.out} already")
        return
    log(f"training weights {number}, in {training.out}")
    train(method, training, log, others, loaded, replace_weights=True)  # what was interrupted may have left some
    write_json(Path(str(training.out)) / TRAINED_FILE, _settings(training))


def _of_living(config: RunConfig, sweep: Sweep) -> RunConfig:
    """The settings of a run of all variants that have not failed."""
    labels = tuple(variant.label for variant in sweep.variants if variant.label not in sweep.failed)
    return dataclasses.replace(config, method=labels)


def _going_on(
    config: RunConfig, earlier: Sweep | None, sweep: Sweep, log: Log
) -> tuple[RunConfig, tuple[Path, Run]] | None:
    """The sweep's interrupted run, and settings with the variants that it has; None: there is none to go on with.

    Raises:
        UserError: its variants are spelled otherwise.

    """
    folder = Path(str(config.out))
    if earlier is None or not (folder / RUN_FILE).is_file() or (run := read_run(folder)).complete:
        return None
    try:
        own = ("method", "out")  # compared below, and the folder that the run is in, however it is spelled now
        resume.settings(run, {k: v for k, v in dataclasses.asdict(config).items() if k not in own})
    except UserError as error:
        log(f"{error}: begun anew, the earlier run is set aside")
        return None
    log(f"going on with run {run.run_id}")
    labels = tuple(variant.label for variant in sweep.variants if variant.label in run.methods)
    known = [label for label, info in run.methods.items() if info.kind == "method"]
    if sorted(labels) != sorted(known):
        raise UserError(
            f"cannot go on with run {run.run_id}: its variants are spelled otherwise ({known[0]}), as after a move of "
            f"the folder: sweep into another folder with --out"
        )
    for variant in sweep.variants:
        if variant.label not in labels:
            sweep.failed[variant.label] = earlier.failed.get(variant.label, "was not in the run that was gone on with")
    return dataclasses.replace(config, method=labels), (folder, run)


def _fail_in_run(sweep: Sweep, begun: Run | None, log: Log, label: str, error: Exception) -> None:
    """A run goes on without the variants that fail before its first question, unless it was begun with them."""
    if label not in [variant.label for variant in sweep.variants]:
        raise error
    if begun is not None:
        raise UserError(f"cannot go on with run {begun.run_id}: {label} fails now: {reason_of(error)}") from error
    _fail(sweep, label, reason_of(error), log)


def _fail(sweep: Sweep, label: str, reason: str, log: Log) -> None:
    """Note and tell that a variant is out; UserError if it was the last."""
    sweep.failed[label] = reason
    log(f"WARNING: {label} fails and is left out: {reason}")
    if len(sweep.failed) == len(sweep.variants):
        raise UserError(f"no variant of the sweep is left; the last, {label}: {reason}")
