"""Sweeps: one run over the product of some knobs' values; weights are trained on the way.

An axis is a knob of the method (`threshold=0,0.2`) or a setting of its training (`train.exit_layer=1,2,3`): then one
set of weights is trained per value, kept in the run's folder, and not trained again when the sweep is.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

import methods
from bench.config import RunConfig, TrainConfig
from bench.drafting.method import Peer
from bench.errors import UserError, did_you_mean
from bench.figures.records import RUN_FILE, Run, alone_in, check_writable, read_run, write_json
from bench.models import loading
from bench.models.loading import Compute, Loaded, Log
from bench.report import write_report
from bench.report.sweep_page import SWEEP_FILE, Axis, Sweep, Variant, read_sweep, write_sweep
from bench.run import resume, runner
from bench.run.examiner import Examiner
from bench.run.plan import Plan
from bench.run.recorder import Recorder
from bench.run.scheduler import expected_s
from bench.train.scores import read_scores
from bench.train.training import compute, train, trainer_of
from bench.train.writer import Recipe
from bench.typed_json import read

MANY = 24  # variants from which on a sweep is said to take long
TRAIN = "train."  # begins the name of an axis of training
WEIGHTS = "weights"
TRAINED_FILE = "trained.json"  # the settings of weights that are finished
_NO_AXES = ("model", "revision", "device", "threads", "out", "decontaminate")  # the run's, or not one value


@dataclass(frozen=True)
class Planned:
    """A variant before anything is trained."""

    label: str
    values: tuple[str, ...]  # one an axis
    training: TrainConfig | None  # of its weights, whose folder is `training.out`


def parse_axis(text: str) -> Axis:
    """`name=value,value,..`.

    Raises:
        UserError: another form, no value, or one twice.

    """
    name, equals, listed = text.partition("=")
    values = tuple(value.strip() for value in listed.split(","))
    if not name or not equals or not all(values):
        raise UserError(f"--grid {text!r} must be spelled name=value,value,... (threshold=0,0.2,0.4)")
    if doubled := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise UserError(f"--grid {text!r} has {doubled[0]} twice: give each value once")
    return Axis(name.strip(), values)


def plan(method: str, grids: Sequence[str], folder: Path, training: dict[str, Any]) -> tuple[list[Axis], list[Planned]]:
    """The axes, and every variant of their product, the first axis varying slowest.

    `training`: settings of every training. Weights are to lie in `folder`.

    Raises:
        UserError: no method, an unknown axis, a value of the wrong type or range, or two variants that are one.

    """
    axes = [parse_axis(text) for text in grids]
    if not axes:
        raise UserError("a sweep needs at least one --grid (threshold=0,0.2,0.4)")
    if doubled := [axis.name for i, axis in enumerate(axes) if axis.name in [other.name for other in axes[:i]]]:
        raise UserError(f"--grid {doubled[0]} is given twice: give it once, with all values")
    _check_method(method, axes)
    planned = [
        _planned(method, axes, values, folder, training) for values in itertools.product(*(a.values for a in axes))
    ]
    configs: dict[str, Any] = {}
    for variant in planned:
        config = methods.parse(variant.label).config
        same = next((label for label, other in configs.items() if other == config), None)
        if same is not None:
            raise UserError(f"{variant.label} and {same} are one and the same: give each value once")
        configs[variant.label] = config
    return axes, planned


def _check_method(method: str, axes: Sequence[Axis]) -> None:
    if issubclass(methods.parse(method).method, Peer):
        raise UserError(f"{method!r} is a peer: a sweep is of a method of ours")
    name, _, knobs = method.partition(":")
    trained = [axis.name for axis in axes if axis.name.startswith(TRAIN)]
    if trained and name not in methods.trained():
        raise UserError(
            f"--grid {trained[0]}: method {name!r} is not trained; methods that are: {', '.join(methods.trained())}"
        )
    if trained and any(knob.startswith(f"{WEIGHTS}=") for knob in [*knobs.split(","), *(f"{a.name}=" for a in axes)]):
        raise UserError(f"--grid {trained[0]} trains the weights: leave out weights=...")


def _planned(
    method: str, axes: Sequence[Axis], values: tuple[str, ...], folder: Path, training: dict[str, Any]
) -> Planned:
    """One variant: its label as `--method` takes it, checked by the method itself."""
    base, _, spelled = method.partition(":")
    knobs = [spelled] if spelled else []
    settings: dict[str, str] = {}
    for axis, value in zip(axes, values, strict=True):
        if axis.name.startswith(TRAIN):
            settings[axis.name.removeprefix(TRAIN)] = value
        else:
            knobs.append(f"{axis.name}={value}")
    made = None
    if settings:
        out = folder / WEIGHTS / "+".join(f"{name}={value}" for name, value in settings.items())
        made = _training(base, settings, training | {"out": str(out)})
        if "," in str(out):
            raise UserError(f"--out {folder}: a folder for trained weights cannot have a comma in its name")
        knobs.insert(1 if spelled else 0, f"{WEIGHTS}={out}")
    label = f"{base}:{','.join(knobs)}"
    methods.parse(label)
    return Planned(label, values, made)


def _training(method: str, settings: dict[str, str], fixed: dict[str, Any]) -> TrainConfig:
    """The method's training with some settings as spelled, others as they are."""
    kind = trainer_of(method).Config
    hints, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        known = [field for field in fields if field not in _NO_AXES]
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"--grid {TRAIN}{name}: no setting of {method}'s training{hint}; those: {', '.join(known)}")
        choices = fields[name].metadata.get("choices")
        if choices and value not in choices:
            raise UserError(f"--grid {TRAIN}{name}={value} is none of {', '.join(choices)}")
        found[name] = _convert(name, value, hints[name])
    return kind(**fixed | found)


def _convert(name: str, value: str, kind: type) -> Any:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError) as error:
        raise UserError(f"--grid {TRAIN}{name}={value} is not of type {kind.__name__}") from error


def run(
    config: RunConfig, grids: Sequence[str], training: dict[str, Any], log: Log = print
) -> tuple[Recorder, list[Path]]:
    """Train what is to be trained, run all variants beside vanilla, and write records, table and figures.

    `config.method` is the one method; `training`: settings of every training. What fails is told and left out. The
    model is loaded once, for runs in float32 also for their trainings. Returns what the run has left, and the files
    written.

    Raises:
        UserError: a mistake in the command, a folder of another sweep, or nothing is left to run.

    """
    if len(config.method) != 1:
        raise UserError(f"a sweep is of one method, not {len(config.method)}: give --method once")
    folder = Path(config.out) if config.out else _new_folder(config.method[0])
    shared = {"model": config.model, "revision": config.revision, "device": config.device, "threads": config.threads}
    axes, planned = plan(config.method[0], grids, folder, shared | training)
    sweep = Sweep(config.method[0], axes, [Variant(p.label, p.values, _told(p.training)) for p in planned], {})
    earlier = _earlier(folder, sweep)
    log(
        f"{len(planned)} variants, in {folder}; interrupted, the sweep goes on with the same command and --out {folder}"
    )
    config = dataclasses.replace(config, out=str(folder))
    loaded = _train_all(config, planned, sweep, log)
    config, resumed = _going_on(config, earlier, sweep, log) or (_of_living(config, sweep), None)
    asked = runner.make_plan(config, resumed, of_sweep=True)
    fails = functools.partial(_fail_in_run, sweep, resumed and resumed[1], log)
    examiner = runner.assemble(asked, loaded or runner.load(asked, log), log, fails)
    with alone_in(folder):
        record = runner.prepare(asked, examiner, log, fails)
        _warn_of_many(asked, examiner, log)
        _keep(folder, sweep)  # now, so that what a killed run leaves can be drawn
        left = runner.ask(asked, examiner, record, log)
        _keep(folder, sweep)
    if not left.turns:
        return left, []
    return left, [*write_sweep(folder), *write_report(folder, left.plan.plots)]


def _new_folder(method: str) -> Path:
    started = datetime.datetime.now(datetime.UTC)
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in method)[:60]
    return Path("results/runs") / f"{started:%Y%m%d-%H%M%S}-sweep-{slug}"


def _told(training: TrainConfig | None) -> dict[str, Any] | None:
    return dataclasses.asdict(training) if training else None


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


def _keep(folder: Path, sweep: Sweep) -> None:
    write_json(folder / SWEEP_FILE, sweep)


def _train_all(config: RunConfig, planned: Sequence[Planned], sweep: Sweep, log: Log) -> Loaded | None:
    """Train each set of weights once; variants whose training fails are out.

    All trainings are on one loaded model. If it will do for the run as well, it is returned.
    """
    trainings = list({p.training.out: p.training for p in planned if p.training}.values())
    layers = sorted({training.exit_layer for training in trainings})
    missing = [t for t in trainings if not _is_trained(t)]  # a mistake in the command is told before an hour of work
    shared = Compute.of(config).quantize == "none" and Compute.of(config).torch_dtype == torch.float32
    loaded = None
    if missing and shared:
        loaded = runner.load(runner.make_plan(_of_living(config, sweep), of_sweep=True), log, Recipe.length)
    elif missing:
        model = loading.find(config.model, config.revision, log)
        loaded = loading.load(model, compute(missing[0]), Recipe.length, log)
    failed: dict[str | None, str] = {}
    for number, training in enumerate(trainings, 1):
        assert training.out
        try:
            _train(sweep.method.partition(":")[0], training, layers, f"{number} of {len(trainings)}", loaded, log)
        except Exception as error:  # any failure is a result: told, and the others go on
            failed[training.out] = f"training failed: {_reason(error)}"
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
    settings = {key: value for key, value in dataclasses.asdict(training).items() if key not in ("out", "threads")}
    return dict(json.loads(json.dumps(settings)))


def _train(
    method: str, training: TrainConfig, layers: Sequence[int], number: str, loaded: Loaded | None, log: Log
) -> None:
    """One set of weights, unless it lies there."""
    if _is_trained(training):
        log(f"weights {number} lie in {training.out} already")
        return
    log(f"training weights {number}, in {training.out}")
    train(method, training, log, layers, loaded, replace_weights=True)  # what was interrupted may have left some
    write_json(Path(str(training.out)) / TRAINED_FILE, _settings(training))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _of_living(config: RunConfig, sweep: Sweep) -> RunConfig:
    """The settings of a run of all variants that have not failed."""
    labels = tuple(variant.label for variant in sweep.variants if variant.label not in sweep.failed)
    return dataclasses.replace(config, method=labels)


def _warn_of_many(asked: Plan, examiner: Examiner, log: Log) -> None:
    if (count := len(examiner.config.method)) > MANY:
        total_s = asked.config.rounds * sum(expected_s(asked, examiner, q) for q in asked.questions.questions)
        log(
            f"WARNING: {count} variants take long, about {total_s / 60:.0f} min: fewer values, --limit or --tasks make "
            "it shorter"
        )


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
        resume.settings(run, {k: v for k, v in dataclasses.asdict(config).items() if k != "method"})
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
        raise UserError(f"cannot go on with run {begun.run_id}: {label} fails now: {_reason(error)}") from error
    _fail(sweep, label, _reason(error), log)


def _fail(sweep: Sweep, label: str, reason: str, log: Log) -> None:
    """Note and tell that a variant is out; UserError if it was the last."""
    sweep.failed[label] = reason
    log(f"WARNING: {label} fails and is left out: {reason}")
    if len(sweep.failed) == len(sweep.variants):
        raise UserError(f"no variant of the sweep is left; the last, {label}: {reason}")
