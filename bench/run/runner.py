"""A run from its settings to its records: check, load, prepare, ask.

For every turn of every question, vanilla and all methods decode the same prompt back to back on the same device, in an
order that is reversed from one question and round to the next, and tasks take turns, so that a drifting machine hits
all alike. The steps are functions, so that a sweep and a gate can take them one by one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.figures.records import MethodInfo, Run, alone_in
from bench.models import loading
from bench.models.loading import Compute, Loaded, Log, Model, choose_device, memory_errors
from bench.run import environment, resume
from bench.run.command import Adapt, Command, check
from bench.run.contestants import (
    Contestant,
    Fails,
    line_up,
    pass_costs,
    raising,
    set_sampler,
    warmed_up,
)
from bench.run.examiner import Examiner, auditor_of
from bench.run.memory import PeakMeter
from bench.run.recorder import Recorder, Warnings, continued, describe, describe_method
from bench.run.scheduler import ask_all


def run(
    config: RunConfig,
    log: Log = print,
    resumed: tuple[Path, Run] | None = None,
    *,
    adapt: Adapt | None = None,
    widths: dict[int, int] | None = None,
) -> Recorder:
    """Carry out a whole run and leave its records in its folder; interrupted, what was done. Arguments as of `check`.

    Raises:
        UserError: a mistake in the command, another process is at work in the folder, or it cannot be written.

    """
    command = check(config, resumed, adapt=adapt, widths=widths)
    examiner = assemble(command, load(command, log), log)
    with alone_in(command.place.folder):
        return ask(command, examiner, prepare(command, examiner, log), log)


def load(command: Command, log: Log, least_context: int = 0) -> Loaded:
    """The model that the command names, long enough for its questions, or for `least_context` positions.

    Raises:
        UserError: unknown or unsupported model, out of memory, or not that of the run that is to go on.

    """
    config = command.config
    model = loading.find(config.model, config.revision, log)
    if command.resumed is not None:
        resume.check_unchanged(command.resumed, _known_early(command, model))
    log(f"loading {model.checkpoint.name}")
    context = min(command.plan.context_needed(model.chat), model.context)
    return loading.load(model, Compute.of(config), max(context, least_context), log)


def assemble(command: Command, loaded: Loaded, log: Log, fails: Fails = raising) -> Examiner:
    """Make everybody ready on the model; `fails` is told who cannot take part."""
    config, target, warnings = command.config, loaded.target, Warnings(log)
    if busy := environment.busy_warning():
        warnings(busy)
    if command.widths is not None:
        target.widths = command.widths
    contestants = line_up(command.variants, loaded, config.probe_windows, fails)
    absent = {variant.label for variant in command.variants} - {contestant.label for contestant in contestants}
    config = dataclasses.replace(config, method=tuple(label for label in config.method if label not in absent))
    sampler = set_sampler(contestants, config)
    return Examiner(loaded, contestants, config, sampler, auditor_of(loaded, log), PeakMeter(target.device), warnings)


def prepare(command: Command, examiner: Examiner, log: Log, fails: Fails = raising) -> Run:
    """Warm everybody up, and measure what passes cost; the record of the run as it begins."""
    everybody = ", ".join(contestant.label for contestant in examiner.contestants)
    log(f"warming up {f'vanilla and {len(examiner.config.method)} variants' if command.of_sweep else everybody}")
    examiner.contestants = warmed_up(examiner.contestants, examiner.loaded.chat, examiner.context, fails)
    record = describe(command, examiner, _infos(examiner.contestants, command.resumed))
    if (graphs := examiner.loaded.target.graphs) is not None:
        graphs.close()
        if graphs.reason:
            examiner.warnings(f"passes run kernel by kernel, as none could be captured: {graphs.reason}")
    return record


def ask(command: Command, examiner: Examiner, record: Run, log: Log) -> Recorder:
    """Ask everything that is left to ask, in a folder that nobody else is at work in; what the run has left there."""
    plan, place, begun = command.plan, command.place, command.resumed
    if begun is not None:
        resume.check_unchanged(begun, resume.facts(record))
        record = continued(begun, record, examiner.warnings)
    recorder = Recorder(place, record, examiner.loaded.chat, command.go_on)
    if begun is None:
        recorder.begin()
    else:
        recorder.take_over(
            resume.finished_turns(
                place.folder,
                plan.questions.questions,
                lambda question: [other.label for other in plan.taking_part(question, examiner.contestants)],
            )
        )
    ask_all(plan, examiner, recorder, log)
    return recorder


def _infos(contestants: list[Contestant], begun: Run | None) -> dict[str, MethodInfo]:
    """What the record says of everybody; what passes cost as a run that goes on has recorded it, else measured now."""
    found = {}
    for contestant in contestants:
        if begun is not None and contestant.label in begun.methods:
            costs = begun.methods[contestant.label].costs
        else:
            with memory_errors(f"the costs of {contestant.label}"):
                costs = pass_costs(contestant, contestants[0])
        found[contestant.label] = describe_method(contestant, costs)
    return found


def _known_early(command: Command, model: Model) -> dict[str, Any]:
    """What must not have changed since a run was begun, as far as it is known before the weights are read."""
    software = environment.describe_software()["packages"]
    return {
        "model": model.checkpoint.sha256,
        "questions": command.plan.questions.sha256,
        "number of questions": len(command.plan.questions.questions),
        "device": environment.describe_device(choose_device(command.config.device)).get("name"),
        "torch": software["torch"],
        "transformers": software["transformers"],
    }
