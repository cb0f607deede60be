"""Counters against a committed baseline: what changes in them is the code's, on any day and machine.

A baseline is a run of few questions, with the overall decode speedup that each method must reach in `floor.json` next
to it. Methods run with the costs that the baseline measured, so that nothing depends on how fast this machine is today;
everything else is chosen by the code at hand.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

from bench.config import DEFAULT_MODEL, RunConfig
from bench.errors import UserError
from bench.figures import metrics
from bench.figures.compare import FLOOR, SPEEDUP, compare
from bench.figures.comparison import Comparison
from bench.figures.metrics import OVERALL
from bench.figures.records import RUN_FILE, TURNS_FILE, Records, Run, read_records, write_json, write_turns
from bench.figures.rules import Rules
from bench.figures.verdicts import SAME, WORSE, new_metric, settle
from bench.files import IS_INSTALLED, SOURCES
from bench.gate.measured import measured_by, with_knobs
from bench.models import loading
from bench.progress import Log
from bench.run import resume, runner
from bench.typed_json import Amount, MismatchError, read

BASELINES = (Path() if IS_INSTALLED else SOURCES) / "results" / "baselines"
FLOOR_FILE = "floor.json"
FLOOR_SHARE = 0.9  # of the speedup that a new baseline measured: what another day's noise leaves of it for sure
DEFAULTS: dict[str, Any] = {"method": ("all",), "peer": ("none",), "limit": 1, "max_new_tokens": 32}


def folder_of(given: dict[str, Any]) -> Path:
    """The folder of a model's baseline on this kind of device."""
    kind = loading.choose_device(given.get("device", "auto")).type
    model = given.get("model", DEFAULT_MODEL)
    return BASELINES / f"{DEFAULT_MODEL if model.lower() == 'default' else Path(model).name}-{kind}"


def check(folder: Path, given: dict[str, Any], rules: Rules, log: Log, *, counters_only: bool) -> Comparison:
    """Run what the baseline ran; the comparison. Counters decide, and the floor unless `counters_only`.

    Raises:
        UserError: no baseline there, or other settings than its own are given.

    """
    if not (folder / RUN_FILE).is_file():
        raise UserError(
            f"{folder} holds no baseline: make one with --update-baseline, or compare with a commit by --base"
        )
    before, floors = read_records(folder), _floors(folder)
    now = _measure(_settings_of(before[0], given), log, measured_by(before[0]))
    return _compared(before, now, floors, rules, counters_only=counters_only)


def _settings_of(run: Run, given: dict[str, Any]) -> RunConfig:
    settings = resume.recorded_settings(run)
    if changed := resume.changed_flags(settings, given):
        raise UserError(
            f"the baseline was made with other settings ({resume.listed(changed)}): --update-baseline makes a new one"
        )
    return settings


def measure(given: dict[str, Any], log: Log) -> Records:
    """What this checkout's baseline would be."""
    return _measure(RunConfig(**(DEFAULTS | given)), log, {})


def difference(folder: Path, now: Records, rules: Rules, log: Log) -> Comparison | None:
    """How `now` differs from the baseline in a folder; None where there is none, or one of other things."""
    if not (folder / RUN_FILE).is_file():
        return None
    try:
        before = read_records(folder)
        return _compared(before, now, _floors(folder), rules, counters_only=False)
    except UserError as error:  # another model or other questions: that is why it is rebuilt
        log(f"not compared with the baseline before: {error}")
        return None


def write(folder: Path, now: Records) -> None:
    """Make it the baseline."""
    run, turns = now
    write_json(folder / RUN_FILE, run)
    write_turns(folder / TURNS_FILE, turns)
    write_json(folder / FLOOR_FILE, {name: round(FLOOR_SHARE * value, 2) for name, value in _speedups(now).items()})


def _measure(settings: RunConfig, log: Log, measured: dict[str, Any]) -> Records:
    with tempfile.TemporaryDirectory(prefix="roobench-baseline-") as scratch:
        settings = dataclasses.replace(settings, out=scratch)
        knobs = functools.partial(with_knobs, measured=measured)
        left = runner.run(settings, log, adapt=knobs)
    run = left.record
    if not run.complete:  # part of a run is no evidence
        raise KeyboardInterrupt
    run.config["out"] = None  # a folder that is gone
    return run, left.turns


def _speedups(records: Records) -> dict[str, float]:
    """Overall decode speedup of each method."""
    entries = metrics.summarize(*records).of_kind("method")
    found = {name: entry.overall.speedup_decode.value for name, entry in entries.items()}
    return {name: value for name, value in found.items() if value is not None}


def _compared(
    before: Records, now: Records, floors: dict[str, float], rules: Rules, *, counters_only: bool
) -> Comparison:
    """As `compare` has it, but speedups are held against the floor: the baseline's times are another day's."""
    compared = compare(before, now, dataclasses.replace(rules, allow=(*rules.allow, "device")))
    speedups = _speedups(now)
    for label, entry in compared.methods.items():
        for task, cell in entry.tasks.items():
            cell.metrics.pop(SPEEDUP, None)
            floor, value = floors.get(label), speedups.get(label)
            if task == OVERALL and floor is not None and value is not None:
                verdict = WORSE if value < floor else SAME
                cell.metrics[FLOOR] = new_metric(floor, value, verdict=verdict, counts=not counters_only)
    settle(compared)
    return compared


def _floors(folder: Path) -> dict[str, float]:
    path = folder / FLOOR_FILE
    try:
        return read(dict[str, Amount], path)
    except (OSError, MismatchError) as error:
        raise UserError(f"{path} cannot be read ({error}): rebuild the baseline with --update-baseline") from error
