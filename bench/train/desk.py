"""A worker of a training: it writes conversations, or computes states of the target.

Beside those of `bench.run.workers.desk`, it knows these requests:

- `{"do": "load", "model", "revision", "device", "dtype", "max_len"}` -> `{}`: the decoder that does either
- `{"do": "write", "rows", "recipe"}` -> `{}`: a batch of prompts, see `Row.to_json`, is begun
- `{"do": "next"}` -> `{"conversation", "tokens"}`: the next one of the batch that ended, and the number of answer
  tokens since the last one
- `{"do": "compute", "rows", "files"}` -> `{}`: states of conversations, of which `rows` has the tokens, are written to
  `files`, pairs of a layer and a path
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.engine.decoder import Decoder
from bench.models.loading import DTYPES, Compute, find, memory_errors, set_up
from bench.run.workers.desk import Desk, Message
from bench.train import loop, precision
from bench.train.journal import Conversation
from bench.train.writer import Recipe, Row, Writer


class TrainDesk(Desk):
    """A worker of a training from within."""

    target: Decoder
    eos: frozenset[int]
    ending: Iterator[Conversation]  # the conversations of the batch, as they end
    tokens = 0  # answered since the last one ended

    def handle(self, asked: Message) -> Message:
        """The answer to a request."""
        match asked["do"]:
            case "load":
                self._load(asked)
                return {}
            case "write":
                rows = [Row.from_json(row) for row in asked["rows"]]
                self.ending = Writer(self.target, self.eos, Recipe(**asked["recipe"]), rows).run(self._count)
                return {}
            case "next":
                return self._next()
            case "compute":
                files = {layer: Path(path) for layer, path in asked["files"]}
                with memory_errors("computing states"):
                    loop.compute(self.target, [torch.tensor(row) for row in asked["rows"]], files)
                return {}
        return super().handle(asked)

    def _load(self, asked: Message) -> None:
        model = find(asked["model"], asked["revision"], self.log)
        device, _ = set_up(Compute(asked["device"], "float32"), self.log)
        self.eos = model.eos
        self.target = precision.reader(model.checkpoint, device, DTYPES[asked["dtype"]], asked["max_len"])

    def _next(self) -> Message:
        with memory_errors("writing conversations"):
            ended = next(self.ending)
        tokens, self.tokens = self.tokens, 0
        return {"conversation": dataclasses.asdict(ended), "tokens": tokens}

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
