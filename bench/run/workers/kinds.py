"""Kinds of workers: on equal machines with equal threads, costs are measured once, and all ask with the same knobs."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from bench.errors import UserError
from bench.figures.machine import Machine
from bench.figures.records import BatchInfo, Run
from bench.run import resume


class Kind:
    """What its first worker measured, as the record of a run."""

    def __init__(self, record: dict[str, Any] | None = None):
        self.record = record
        self._measuring = threading.Lock()

    def prepared(self, prepare: Callable[[dict[str, Any] | None], dict[str, Any]]) -> dict[str, Any]:
        """What `prepare` returns for the record of the first worker, which is measured now if there is none.

        The others wait meanwhile, so that they do not disturb it.
        """
        with self._measuring:
            if self.record is None:
                ready = prepare(None)
                self.record = ready["run"]
                return ready
        return prepare(self.record)


class Kinds:
    """All kinds of a run, by `Machine.kind`."""

    def __init__(self, begun: Run | None, *, mixed: bool):
        """`begun`: the run that goes on. `mixed`: several kinds may take part."""
        self.begun, self.mixed = begun, mixed
        self._known: dict[str, Kind] = {}
        self._lock = threading.Lock()
        if begun is not None:
            self._known = {begun.machine.kind: Kind(dataclasses.asdict(begun))}
            self._known |= {kind: Kind(dataclasses.asdict(of_kind(begun, kind))) for kind in begun.kinds}
        self._machine = None if begun is None else begun.machine

    def of(self, machine: Machine) -> Kind:
        """The kind of a worker that takes part.

        Raises:
            UserError: the others are of another kind, and nobody asked for a mixture.

        """
        with self._lock:
            if self.begun is not None and not self.mixed:
                now = {"device": machine.name, "machine": machine.digest, "threads": machine.threads}
                resume.check_unchanged(self.begun, now)
            first = self._machine = self._machine or machine
            if not self.mixed and machine.kind != first.kind:
                raise UserError(
                    f"workers are on unlike machines, {first} with {first.threads} threads and {machine} with "
                    f"{machine.threads}: their times do not belong in one table; leave one kind out, or give "
                    "--mix-machines"
                )
            return self._known.setdefault(machine.kind, Kind())


def of_kind(run: Run, kind: str) -> Run:
    """The run's record with the knobs and costs of another kind of worker."""
    infos = {
        label: dataclasses.replace(info, measured=found.measured, costs=found.costs)
        for label, info in run.methods.items()
        if (found := run.kinds[kind].get(label)) is not None
    }
    return dataclasses.replace(run, methods=run.methods | infos)


def measured_of(run: Run) -> dict[str, BatchInfo]:
    """What a worker of another kind measured."""
    return {label: BatchInfo(info.measured, info.costs) for label, info in run.methods.items()}
