"""Workers on this machine: processes that are spoken to through pipes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from bench.errors import UserError
from bench.files import SOURCES
from bench.models.loading import choose_device
from bench.run.workers.links import Hire, Link, LostWorkerError


class LocalWorker(Link):
    """A process that answers line by line."""

    def __init__(self, command: str, log_file: Path, gpu: str | None):
        """`gpu`: the only one that it sees, as CUDA_VISIBLE_DEVICES names it; what it says goes to `log_file`."""
        self.log_file = log_file
        # -P: the bench is found by this path alone, not because it is where we are. Relative paths stay the user's.
        path = os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH", ""))))
        seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with log_file.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bench", command],
                env={**os.environ, **seen, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )

    def request(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One line there, one back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (OSError, ValueError):  # it has ended, or was closed
            line = ""
        if not line.endswith("\n"):
            self._lost()
        return dict(json.loads(line))

    def end(self) -> None:
        """Kill it: nothing that it holds is worth waiting for."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """The same, and close the pipes."""
        self.end()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what it was sent and has not read
                pipe.close()

    def _lost(self) -> NoReturn:
        """Tell how it ended, and the last thing that it said."""
        status = self.process.wait()
        said = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        last = f"; its last words: {said[-1]}" if said and status > 0 else ""
        raise LostWorkerError(how + last)


@contextlib.contextmanager
def hiring(device: str, workers: int, command: str = "run-worker") -> Iterator[Hire]:
    """How to start workers by a command of the bench. Each has a GPU of its own if they compute on GPUs.

    Raises:
        UserError: there are fewer GPUs than workers.

    """
    gpus = _gpus(device, workers)
    with tempfile.TemporaryDirectory(prefix="roobench-workers-") as folder:

        def hire(place: int) -> LocalWorker:
            return LocalWorker(command, Path(folder) / f"{place}.log", gpus[place - 1] if gpus else None)

        yield hire


def _gpus(device: str, workers: int) -> list[str]:
    """A GPU for each worker, as CUDA_VISIBLE_DEVICES names them; none where they compute on the CPU."""
    if choose_device(device).type != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if workers > len(found):
        raise UserError(f"--workers {workers}: every worker needs a GPU of its own, and torch sees {len(found)}")
    return found
