"""What was asked for: a run's settings, with all that can be found out about them before anything slow begins."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import methods
from bench.config import RunConfig
from bench.errors import UserError
from bench.figures.records import RUNS, SWEEP_FILE, Run, check_writable, plots_of
from bench.models.loading import choose_device
from bench.run import resume
from bench.run.contestants import variants
from bench.run.plan import Plan

Adapt = Callable[[methods.Variant], methods.Variant]


@dataclass(frozen=True)
class Place:
    """A run's name, and the folder for its records."""

    run_id: str
    folder: Path

    @property
    def plots(self) -> Path:
        """The folder for its plots."""
        return plots_of(self.folder, self.run_id)


@dataclass(frozen=True)
class Command:
    """A run that was asked for, with all that can be found out before anything slow begins."""

    config: RunConfig
    plan: Plan
    variants: list[methods.Variant]  # vanilla first, peers last
    started: datetime.datetime
    place: Place
    resumed: Run | None  # the record of the run that goes on
    widths: dict[int, int] | None  # of passes, as measured before; None: measured now
    of_sweep: bool

    @property
    def go_on(self) -> str:
        """How the user goes on with the run if it is interrupted."""
        return f"the same command and --out {self.place.folder}" if self.of_sweep else f"--resume {self.place.folder}"


def check(
    config: RunConfig,
    resumed: tuple[Path, Run] | None = None,
    *,
    adapt: Adapt | None = None,
    widths: dict[int, int] | None = None,
    of_sweep: bool = False,
) -> Command:
    """Find what can be wrong with the command before anything slow begins.

    `resumed`: folder and record of a run to go on with; `config` is then that run's. `adapt` sets knobs of all but
    vanilla; `widths`: at which positions are padded to how many, as another run has measured.

    Raises:
        UserError: unknown questions, tasks, methods, knobs or device, or a folder that this run cannot have.

    """
    plan = Plan.of(config)
    chosen = variants(config)
    if resumed is not None:
        adapt = functools.partial(resume.as_begun, run=resumed[1])
        widths = {int(n): width for n, width in resumed[1].engine.get("pass_widths", {}).items()}
    if adapt is not None:
        chosen = [variant if variant.label == methods.BASELINE else adapt(variant) for variant in chosen]
    choose_device(config.device)
    started = datetime.datetime.now(datetime.UTC)
    if resumed is not None:
        place = Place(resumed[1].run_id, resumed[0])
    else:
        named_after = next((label for label in config.method if label != methods.BASELINE), methods.BASELINE)
        run_id = f"{started:%Y%m%d-%H%M%S}-{_slug(named_after)}-{_slug(plan.questions.name)}"
        place = Place(run_id, Path(config.out) if config.out else RUNS / run_id)
    check_writable(place.folder)
    if resumed is None and not of_sweep and (place.folder / SWEEP_FILE).exists():
        raise UserError(f"{place.folder} holds a sweep ({SWEEP_FILE}): choose another folder with --out")
    return Command(config, plan, chosen, started, place, resumed and resumed[1], widths, of_sweep)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)[:60]
