"""The grids of a sweep: every variant of their product, and the training that it needs. Needs no torch.

An axis is a knob of the method (`threshold=0,0.2`) or a setting of its training (`train.exit_layer=1,2,3`).
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import methods
from bench.config import RunConfig
from bench.errors import UserError, did_you_mean
from bench.figures.records import RUNS
from bench.files import user_path
from bench.report.sweep_page import Axis
from bench.run.plan import check, slug
from bench.train import settings_of
from bench.train_config import TRAIN, TrainConfig

WEIGHTS = "weights"
_SHARED = ("model", "revision", "device", "threads", "workers")  # of the run and all of its trainings
_NO_AXES = (*_SHARED, "out", "decontaminate")  # those, or not one value


@dataclass(frozen=True)
class Planned:
    """A variant before anything is trained."""

    label: str
    values: tuple[str, ...]  # one an axis
    training: TrainConfig | None  # of its weights, whose folder is `training.out`


@dataclass(frozen=True)
class Grid:
    """A sweep as asked for."""

    method: str
    folder: Path
    axes: list[Axis]
    variants: list[Planned]


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


def grid_of(config: RunConfig, grids: Sequence[str], training: dict[str, Any]) -> Grid:
    """The sweep that was asked for: `config.method` is the one method, `training` the settings of every training.

    Raises:
        UserError: a mistake in the command.

    """
    if len(config.method) != 1:
        raise UserError(f"a sweep is of one method, not {len(config.method)}: give --method once")
    folder = user_path(config.out) if config.out is not None else _new_folder(config.method[0])
    shared = {name: getattr(config, name) for name in _SHARED}
    axes, planned = plan(config.method[0], grids, folder, shared | training)
    check(dataclasses.replace(config, method=tuple(variant.label for variant in planned if variant.training is None)))
    return Grid(config.method[0], folder, axes, planned)


def plan(method: str, grids: Sequence[str], folder: Path, training: dict[str, Any]) -> tuple[list[Axis], list[Planned]]:
    """The axes, and every variant of their product, the first axis varying slowest.

    `training`: settings of every training. Weights are kept in `folder`.

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
    methods.parse_drafting(method, "sweep")
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
    kind = settings_of(method)
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


def _new_folder(method: str) -> Path:
    started = datetime.datetime.now(datetime.UTC)
    return RUNS / f"{started:%Y%m%d-%H%M%S}-sweep-{slug(method)}"
