"""The paper of a method, part by part: which commands show it on a model, and which parts cannot be shown. No torch.

Every part is a run or a sweep in a folder of its own, and goes on as these do. What is left out, and why, is recorded.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import methods
from bench.config import RunConfig, flag_of
from bench.drafting.reproduction import Part, Recipe
from bench.errors import UserError, did_you_mean, program
from bench.figures.records import RUN_FILE, RUNS, read_run, write_json
from bench.files import check_writable
from bench.models import checkpoints
from bench.report.reproduction_page import STATE_FILE, PartState, Reproduction, read_reproduction
from bench.run.plan import check, slug
from bench.train_config import SWEEP_TRAINING

_OF_PEERS = ("peer", "peer_limit")  # not for a sweep, in which none takes part


@dataclass(frozen=True)
class Asked:
    """A reproduction as asked for on the command line."""

    method: str
    recipe: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)  # of all runs, by the names of `RunConfig`
    knobs: str = ""  # for every variant of the method that is not trained here
    train: bool = False
    training: Mapping[str, int] = field(default_factory=dict)  # `tokens` and `epochs` of every training
    parts: Sequence[str] = ()  # none: all
    out: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder of all parts."""
        return self.out or RUNS / f"reproduce-{self.method}-{slug(self.model)}"

    @property
    def model(self) -> str:
        """The model's name in records."""
        return checkpoints.name_of(self.settings.get("model", RunConfig.model), self.settings.get("revision"))

    @property
    def every_training(self) -> dict[str, int]:
        """The settings of every training."""
        return SWEEP_TRAINING | dict(self.training)

    @property
    def chosen(self) -> list[Part]:
        """The parts that were asked for.

        Raises:
            UserError: the recipe has no such part.

        """
        known = {part.name: part for part in self.recipe.parts}
        for name in self.parts:
            if name not in known:
                raise UserError(f"no part {name!r}{did_you_mean(name, known)}; parts of it: {', '.join(known)}")
        return [part for part in self.recipe.parts if not self.parts or part.name in self.parts]


@dataclass(frozen=True)
class Planned:
    """A part with what carries it out."""

    part: Part
    folder: Path
    config: RunConfig | None  # None: it cannot be carried out
    state: PartState

    @property
    def arguments(self) -> list[str]:
        """The command without the program's name."""
        return shlex.split(self.state.command)

    @property
    def begun(self) -> bool:
        """Whether there are records of it."""
        return (self.folder / RUN_FILE).is_file()

    @property
    def done(self) -> bool:
        """Whether it is complete."""
        return self.begun and read_run(self.folder).complete


def plan(asked: Asked) -> list[Planned]:
    """Return all parts, in the recipe's order, those that cannot be carried out with the reason.

    Raises:
        UserError: an unknown part, method, knob or model; or none of the parts asked for can be carried out.

    """
    chosen = asked.chosen
    planned = [_planned(asked, part, part in chosen) for part in asked.recipe.parts]
    if not any(one.config for one in planned):
        reasons = dict.fromkeys(one.state.reason for one in planned if one.part in chosen)
        raise UserError(f"no part can be carried out: {'; '.join(reasons)}")
    return planned


def begin(asked: Asked, planned: Sequence[Planned]) -> Reproduction:
    """Check all commands, and record in the folder what is about to be done.

    Raises:
        UserError: a mistake in a command; or the folder cannot be written, or has parts that other commands have begun.

    """
    now = Reproduction(asked.method, asked.model, [one.state for one in planned])
    check_writable(asked.folder)
    if (asked.folder / STATE_FILE).is_file():
        _refuse_other_commands(planned, read_reproduction(asked.folder))
    for one in planned:
        if one.config is not None and not one.done:
            check(dataclasses.replace(one.config, method=() if one.part.grid else one.config.method))
    write_json(asked.folder / STATE_FILE, now)
    return now


def _refuse_other_commands(planned: Sequence[Planned], there: Reproduction) -> None:
    """Refuse to go on with parts that other commands have begun; where the folder is may be spelled otherwise."""
    before = {state.name: state.command for state in there.parts}
    for one in (one for one in planned if one.begun):
        was, now = (_without_folder(command) for command in (before.get(one.part.name, ""), one.state.command))
        if was != now:
            raise UserError(
                f"{one.folder} is of `{program()} {was}`, and not of `{program()} {now}`: give the same flags, or "
                "another folder with --out"
            )


def _without_folder(command: str) -> str:
    return command.rpartition(" --out ")[0]


def _planned(asked: Asked, part: Part, wanted: bool) -> Planned:
    folder = asked.folder / part.name
    labels, left_out = _able(asked, part)
    reason = ""
    if not wanted:
        reason = "not asked for by --part"
    elif part.trainings and not asked.train:
        reason = f"it needs {part.trainings} sets of trained weights: add --train"
    elif not labels:
        reason = "; ".join(dict.fromkeys(left_out.values()))
    settings = dict(part.settings) | dict(asked.settings)
    if part.grid:
        settings = {name: value for name, value in settings.items() if name not in _OF_PEERS}
    config = None if reason else RunConfig(**settings, method=tuple(labels), out=str(folder))
    command = shlex.join(_arguments(part, labels or list(part.methods), settings, folder, asked.every_training))
    return Planned(part, folder, config, PartState(part.name, command, reason, left_out if labels else {}))


def _able(asked: Asked, part: Part) -> tuple[list[str], dict[str, str]]:
    """Return the methods of a part as they are run, and why others cannot be, by name."""
    labels, left_out = [], {}
    for label in part.methods:
        own = label.partition(":")[0] == asked.method and asked.knobs and not part.trainings
        full = f"{label}{',' if ':' in label else ':'}{asked.knobs}" if own else label
        variant = methods.parse(full)
        try:
            if not part.trainings:
                variant.check_files(asked.model)
            labels.append(full)
        except UserError as error:
            left_out[full] = str(error)
    if not any(label.partition(":")[0] == asked.method for label in labels):  # nothing to reproduce with
        return [], left_out
    return labels, left_out


def _arguments(
    part: Part, labels: Sequence[str], settings: Mapping[str, Any], folder: Path, training: Mapping[str, int]
) -> list[str]:
    """Return the part's command: of a run, or of a sweep."""
    words = ["sweep"] if part.grid else ["run"]
    for flag, values in ("--method", labels), ("--grid", part.grid):
        words += [word for value in values for word in (flag, value)]
    for name, setting in settings.items():
        for value in setting if isinstance(setting, tuple | list) else (setting,):
            words += [flag_of(name), str(value)]
    if part.trainings:
        words += [word for name, value in training.items() for word in (flag_of(f"train_{name}"), str(value))]
    return [*words, "--out", str(folder)]
