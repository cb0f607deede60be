"""Sweeps: one run over the product of some knobs' values; weights are trained on the way.

An axis is a knob of the method (`threshold=0,0.2`) or a setting of its training (`train.exit_layer=1,2,3`): then one
set of weights is trained per value, kept in the run's folder, and not trained again when the sweep is.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import methods
from bench.config import RunConfig, TrainConfig
from bench.drafting.method import Peer
from bench.errors import UserError, did_you_mean
from bench.figures.records import RUN_FILE, Run, check_writable, read_run, write_json
from bench.report import write_report
from bench.report.sweep_page import SWEEP_FILE, Axis, Sweep, Variant, read_sweep, write_sweep
from bench.run import resume, runner
from bench.run.contestants import WARM_UP, Contestant
from bench.train.scores import read_scores
from bench.train.training import train, trainer_of
from bench.typed_json import read

Log = Callable[[str], None]

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
) -> tuple[SweepBench, list[Path]]:
    """Train what is to be trained, run all variants beside vanilla, and write records, table and figures.

    `config.method` is the one method; `training`: settings of every training. What fails is told and left out. Returns
    the runner's bench after its run, and the files written.

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
    _train_all(planned, sweep, log)
    config = dataclasses.replace(config, out=str(folder))
    bench = _going_on(config, earlier, sweep, log) or _prepared(config, sweep, log)
    _keep(folder, sweep)  # now, so that what a killed run leaves can be drawn
    bench.run()
    _keep(folder, sweep)
    if not bench.turns:
        return bench, []
    return bench, [*write_sweep(folder), *write_report(bench.run_dir, bench.plots_dir)]


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


def _train_all(planned: Sequence[Planned], sweep: Sweep, log: Log) -> None:
    """Train each set of weights once; variants whose training fails are out."""
    trainings = list({p.training.out: p.training for p in planned if p.training}.values())
    layers = sorted({training.exit_layer for training in trainings})
    for training in trainings:
        _is_trained(training)  # a mistake in the command is told before an hour of work
    failed: dict[str | None, str] = {}
    for number, training in enumerate(trainings, 1):
        assert training.out
        try:
            _train(sweep.method.partition(":")[0], training, layers, f"{number} of {len(trainings)}", log)
        except Exception as error:  # any failure is a result: told, and the others go on
            failed[training.out] = f"training failed: {_reason(error)}"
    for p, variant in zip(planned, sweep.variants, strict=True):
        if p.training and p.training.out in failed:
            _fail(sweep, variant.label, failed[p.training.out], log)
        elif p.training:
            scores = read_scores(Path(str(p.training.out)))
            variant.agreement = scores.agreement if scores else None


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


def _train(method: str, training: TrainConfig, layers: Sequence[int], number: str, log: Log) -> None:
    """One set of weights, unless it lies there."""
    if _is_trained(training):
        log(f"weights {number} lie in {training.out} already")
        return
    log(f"training weights {number}, in {training.out}")
    train(method, training, log, layers)
    write_json(Path(str(training.out)) / TRAINED_FILE, _settings(training))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


class _VariantError(Exception):
    """A variant cannot be made."""

    def __init__(self, label: str, reason: str):
        super().__init__(reason)
        self.label = label


class SweepBench(runner.Bench):
    """A run that goes on without the variants that fail before its first question."""

    other_records = ()

    def __init__(self, config: RunConfig, sweep: Sweep, log: Log, resumed: tuple[Path, Run] | None = None):
        self.sweep = sweep
        super().__init__(config, log, resumed)

    @property
    def go_on(self) -> str:
        """By the sweep's own command."""
        return f"the same command and --out {self.run_dir}"

    def _contestant(self, variant: methods.Variant) -> Contestant:
        try:
            return super()._contestant(variant)
        except Exception as error:
            if variant.label not in self.config.method:
                raise
            raise _VariantError(variant.label, _reason(error)) from error

    def _warm_up(self) -> None:
        """As a run does; who fails is left out."""
        self.log(f"warming up vanilla and {len(self.config.method)} variants")
        prompt = self.chat.prompt([], WARM_UP)
        alive = []
        for contestant in self.contestants:
            try:
                contestant.warm_up(prompt, self.context, self.sampler)
            except Exception as error:
                if contestant.label not in self.config.method:
                    raise
                if self.resumed is not None:
                    raise UserError(
                        f"cannot go on with run {self.run_id}: {contestant.label} fails now: {_reason(error)}"
                    ) from error
                _fail(self.sweep, contestant.label, _reason(error), self.log)
            else:
                alive.append(contestant)
        self.contestants = alive
        if len(self.config.method) > MANY:
            total_s = self.config.rounds * sum(map(self._expected_s, self.questions.questions))
            self.log(
                f"WARNING: {len(self.config.method)} variants take long, about {total_s / 60:.0f} min: fewer values, "
                "--limit or --tasks make it shorter"
            )


def _going_on(config: RunConfig, earlier: Sweep | None, sweep: Sweep, log: Log) -> SweepBench | None:
    """The runner of the sweep's interrupted run, with the variants that it has; None: there is none to go on with.

    Raises:
        UserError: one of its variants fails now.

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
    try:
        return SweepBench(dataclasses.replace(config, method=labels), sweep, log, (folder, run))
    except _VariantError as error:
        raise UserError(f"cannot go on with run {run.run_id}: {error.label} fails now: {error}") from error


def _prepared(config: RunConfig, sweep: Sweep, log: Log) -> SweepBench:
    """The runner, ready, with every variant that can be made.

    Raises:
        UserError: there is none.

    """
    while True:
        labels = tuple(variant.label for variant in sweep.variants if variant.label not in sweep.failed)
        try:
            return SweepBench(dataclasses.replace(config, method=labels), sweep, log)
        except _VariantError as error:
            _fail(sweep, error.label, str(error), log)


def _fail(sweep: Sweep, label: str, reason: str, log: Log) -> None:
    """Note and tell that a variant is out; UserError if it was the last."""
    sweep.failed[label] = reason
    log(f"WARNING: {label} fails and is left out: {reason}")
    if len(sweep.failed) == len(sweep.variants):
        raise UserError(f"no variant of the sweep is left; the last, {label}: {reason}")
