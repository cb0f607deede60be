"""What a worker does, wherever it runs: it is given its place, gets ready, and does one thing after another.

Every request and every answer is an object of JSON. All workers know two requests:

- `{"do": "hello"}` -> `{"host", "cores", "gpu"}`: where it is; `cores` are processors, those of one core together
- `{"do": "sit", "cores", "threads"}` -> `{}`: it computes there from now on

`run_desk` and `bench.train.desk` have the others. An answer `{"error"}` is a user's mistake, which ends the work. Any
other exception ends the worker.
"""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from bench.errors import UserError
from bench.progress import Log
from bench.run import cores

Message = dict[str, Any]


class Desk:
    """A worker from within."""

    def __init__(self, log: Log):
        self.log = log

    def answer(self, asked: Message) -> Message:
        """The answer to a request; a mistake of the user's is one, too."""
        try:
            return self.handle(asked)
        except UserError as error:
            return {"error": str(error)}

    def handle(self, asked: Message) -> Message:
        """The answer to a request.

        Raises:
            UserError: a mistake of the user's.

        """
        match asked["do"]:
            case "hello":
                gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if torch.cuda.is_available() else ""
                return {"host": platform.node(), "cores": cores.physical_cores(), "gpu": gpu}
            case "sit":
                cores.pin(asked["cores"])
                torch.set_num_threads(asked["threads"])
                return {}
        raise AssertionError(f"a worker was asked to {asked['do']!r}")
