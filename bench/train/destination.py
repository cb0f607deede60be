"""Where a training's weights go. Needs no torch, so that a folder that cannot take them is refused at once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import methods
from bench.drafting.knobs import default_folder
from bench.errors import UserError
from bench.files import IS_INSTALLED, check_writable, existing, user_path
from bench.train.scores import SCORES_FILE
from bench.train_config import TrainConfig

TRIED = "TRIED.md"  # what else was tried, written by hand; appended to the card
PARTIAL = ".partial"  # ends the name of a folder that is being written
_NEEDED_BYTES = 100e6


def destination(method: str, config: TrainConfig, model: str) -> Path:
    """Return the folder that the weights go to.

    Raises:
        UserError: nobody names one, and the default would go with the next version.

    """
    if config.out is None and IS_INSTALLED and has_weights_knob(method):
        raise UserError(
            "Roobench is installed here, and weights in its folder would be lost with the next version: name a folder "
            f"with --out FOLDER, and run them as {method}:weights=FOLDER"
        )
    return default_folder(method, model, config.form) if config.out is None else user_path(config.out)


def check(method: str, out: Path, *, replace: bool) -> None:
    """Refuse a folder that cannot take the weights, before any work.

    Raises:
        UserError: it cannot be written, has weights and `replace` is false, has other files, or has a name that
            `--method` cannot take.

    """
    if has_weights_knob(method) and not _is_knob(method, out):
        raise UserError(f"--out {out}: --method {method}:weights=... cannot name this folder: leave out , and +")
    check_writable(out)
    there = sorted(path.name for path in out.glob("*") if path.name != TRIED and path.suffix != PARTIAL)
    if there and SCORES_FILE not in there:
        raise UserError(f"{out} has files that no training wrote ({there[0]}): give a new folder (--out NEWFOLDER)")
    if there and not replace:
        raise UserError(f"{out} has weights already: keep them (--out NEWFOLDER) or replace them (--replace)")
    free = shutil.disk_usage(existing(out)).free
    if free < _NEEDED_BYTES:
        raise UserError(f"cannot write {out}: only {free / 1e6:.0f} MB are free there; choose another with --out")


def has_weights_knob(method: str) -> bool:
    """Return whether a method's weights can be named by a knob."""
    return "weights" in {field.name for field in dataclasses.fields(methods.declared(method).Config)}


def _is_knob(method: str, out: Path) -> bool:
    """Return whether `weights=` can name the folder."""
    try:
        return bool(getattr(methods.parse(f"{method}:weights={out}").config, "weights", None) == str(out))
    except UserError:
        return False
