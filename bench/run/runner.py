"""A run from its settings to its records: plan, load, assemble, prepare, ask.

For every turn of every question, vanilla and all methods decode the same prompt back to back on the same device, in an
order that is reversed from one question and round to the next, and tasks take turns, so that a drifting machine hits
all alike. The steps are functions, so that a sweep and a gate can take them one by one.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.errors import UserError
from bench.figures.facts import PassCosts
from bench.figures.machine import Machine
from bench.figures.records import Run, remembers_the_run
from bench.models import loading
from bench.models.chat import ChatFormat, template_digest, tokenizer_digest
from bench.models.loading import Compute, Loaded, Model, choose_device, memory_errors
from bench.progress import Log, progress
from bench.run import environment, resume
from bench.run.contestants import LEAST_ANSWER, Fails, line_up, pass_costs, raising
from bench.run.examiner import Examiner, Warnings, auditor_of
from bench.run.memory import PeakMeter
from bench.run.plan import WARM_UP, Adapt, Plan, fitted, make_plan
from bench.run.recorder import Recorder, continued, describe, memory_of
from bench.run.scheduler import ask_all


def run(
    config: RunConfig, log: Log = print, resumed: tuple[Path, Run] | None = None, adapt: Adapt | None = None
) -> Recorder:
    """Plan a run and carry it out. Arguments: see `make_plan`.

    Raises:
        UserError: a mistake in the command, or as `carry_out`.

    """
    return carry_out(make_plan(config, resumed, adapt=adapt), log)


def carry_out(plan: Plan, log: Log = print) -> Recorder:
    """Carry out a run and leave its records in its folder; interrupted, what was done.

    Raises:
        UserError: another process is at work in the folder, or it cannot be written, or a method cannot run.

    """
    if plan.config.prompt_lengths:
        plan = fitted(plan, loading.find(plan.config.model, plan.config.revision, log))
    examiner = assemble(plan, load(plan, log), log)
    with resume.alone_with(plan.folder, plan.resumed):
        return ask(plan, examiner, prepare(plan, examiner, log), log)


def load(plan: Plan, log: Log, least_context: int = 0) -> Loaded:
    """The model that the plan names, long enough for its questions, or for `least_context` positions.

    Raises:
        UserError: unknown or unsupported model, out of memory, or not that of the run that is to go on.

    """
    config = plan.config
    machine = environment.describe_machine(choose_device(config.device), config.threads)  # measured in empty memory
    model = loading.find(config.model, config.revision, log)
    if model.context < len(model.chat.prompt([], WARM_UP)) + LEAST_ANSWER:
        raise UserError(f"a context of {model.context} tokens is too short to warm up in: take another model")
    if not plan.of_sweep:  # which goes on without a variant that fails
        for variant in plan.variants:
            variant.method.check_weights(variant.config, model)
    if plan.resumed is not None:
        resume.check_unchanged(plan.resumed, _known_early(plan, model, machine))
        resume.check_prompts(plan.resumed, plan.folder, plan.asked_by_id, model.chat)
    log(f"loading {model.checkpoint.name}")
    context = min(plan.context_needed(model.chat), model.context)
    return loading.load(model, Compute.of(config), max(context, least_context), log)


def assemble(plan: Plan, loaded: Loaded, log: Log, fails: Fails = raising) -> Examiner:
    """Construct all methods on the model; `fails` is called for those that cannot be."""
    config, target, warnings = plan.config, loaded.target, Warnings(log)
    for text in (*plan.warnings, *plan.expected_failures(loaded)):
        warnings(text)
    contestants = line_up(plan.variants, loaded, config.probe_windows, fails)
    absent = {variant.label for variant in plan.variants} - {contestant.label for contestant in contestants}
    config = dataclasses.replace(config, method=tuple(label for label in config.method if label not in absent))
    for contestant in contestants if len(plan.values) > 1 else ():
        if remembers_the_run(memory_of(contestant.method)):
            raise UserError(
                f"{contestant.label} remembers its answers, and so those to the same question at the other values of "
                "the axis: leave out its memory, or run it at one value"
            )
    return Examiner(loaded, contestants, config, auditor_of(loaded, log), PeakMeter(target.device), warnings)


def prepare(plan: Plan, examiner: Examiner, log: Log, fails: Fails = raising, begun: Run | None = None) -> Run:
    """Warm up all methods and measure the cost of forward passes. Returns the record of the run as it begins.

    `begun`: a record that has the costs; by default that of the run that goes on, if any.
    """
    everybody = ", ".join(contestant.label for contestant in examiner.contestants)
    log(f"warming up {f'vanilla and {len(examiner.config.method)} variants' if plan.of_sweep else everybody}")
    examiner.others = environment.OthersMeter()
    examiner.warm_up(fails)
    if busy := environment.busy_warning(examiner.others.turn_share()):
        examiner.warnings(busy)
    record = describe(plan, examiner, _costs(examiner, begun or plan.resumed))
    if (graphs := examiner.loaded.target.graphs) is not None:
        graphs.close()
        if graphs.reason:
            examiner.warnings(f"passes run kernel by kernel, as none could be captured: {graphs.reason}")
    return record


def ask(plan: Plan, examiner: Examiner, record: Run, log: Log) -> Recorder:
    """Ask the remaining questions, in a folder that no other process works in."""
    begun = plan.resumed
    if begun is not None:
        resume.check_unchanged(begun, resume.facts(record))
        record = continued(begun, record, examiner.warnings)
    recorder = open_records(plan, record, examiner.loaded.chat, log)
    ask_all(examiner, recorder, log)
    return recorder


def open_records(plan: Plan, record: Run, chat: ChatFormat, log: Log) -> Recorder:
    """The run's files, with what earlier sessions have finished."""
    recorder = Recorder(plan, record, chat)
    if plan.resumed is None:
        recorder.begin(log)
    else:
        turns = resume.finished_turns(plan.folder, plan.questions.questions, functools.partial(plan.labels, record))
        ours = [label for label, info in record.methods.items() if info.kind != "peer"]
        recorder.take_over(turns, resume.finished_blocks(plan.folder, ours))
    return recorder


def _costs(examiner: Examiner, begun: Run | None) -> dict[str, PassCosts | None]:
    """The cost of each method's forward passes: as recorded where a run is resumed, else measured now."""
    found: dict[str, PassCosts | None] = {}
    with progress(len(examiner.contestants), "measuring costs") as bar:
        for contestant in examiner.contestants:
            bar.at(contestant.label)
            if begun is not None and contestant.label in begun.methods:
                found[contestant.label] = begun.methods[contestant.label].costs
            elif examiner.sampler is not None:
                found[contestant.label] = None  # nothing that is timed here samples
            else:
                with memory_errors(f"the costs of {contestant.label}"):
                    found[contestant.label] = pass_costs(contestant, examiner.contestants[0])
            bar.add(1)
    return found


def _known_early(plan: Plan, model: Model, machine: Machine) -> dict[str, Any]:
    """What must not have changed since the run was begun, as far as it is known before the weights are read."""
    software = environment.describe_software()["packages"]
    return {
        "model": model.checkpoint.sha256,
        "questions": plan.questions.sha256,
        "number of questions": len(plan.questions.questions),
        "device": machine.name,
        "machine": machine.digest,
        "torch": software["torch"],
        "transformers": software["transformers"],
        "chat template": template_digest(model.chat.tokenizer),
        "tokenizer": tokenizer_digest(model.chat.tokenizer),
    }
