"""The workers of a training: processes here that write conversations and compute states, each with its own model.

They answer this process, which alone appends to the journal, and write files of states, each once it is whole. So
whoever is killed, nothing that was finished is lost, and nothing is done twice.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.models.loading import choose_device
from bench.progress import Log
from bench.run.workers import local
from bench.run.workers.handout import Item
from bench.run.workers.links import Hire, Link
from bench.run.workers.staff import Answered, Lost, Staff
from bench.train import precision
from bench.train.conversations import Progress, Shares
from bench.train.journal import Conversation
from bench.train.loop import Chunk, Layer
from bench.train.writer import Recipe, Row, prompt_key
from bench.train_config import Writing

WORKER = "train-worker"


class Crew(Staff[Item]):
    """Workers that have loaded the decoder of a training."""

    remedy: ClassVar[str] = "give fewer --workers; what was finished is kept, and the same command goes on"

    def __init__(self, config: Writing, hire: Hire, name: Callable[[Item], str], log: Log):
        super().__init__(hire, config.workers, config.threads, name)
        dtype = precision.chosen(config.precision, choose_device(config.device))
        self._decoder: dict[str, Any] = {
            "model": config.model,
            "revision": config.revision,
            "device": config.device,
            "dtype": str(dtype).removeprefix("torch."),
            "max_len": Recipe.length,
        }
        self._log = log

    def get_ready(self, place: int, link: Link) -> None:
        """Have a worker load the decoder."""
        seat = self.seat_of(place, link)
        link.ask(do="sit", cores=seat.cores, threads=seat.threads)
        link.ask(do="load", **self._decoder)

    def answers(self) -> Iterator[Answered[Item]]:
        """Yield what workers answer, without end; who was lost is told."""
        told = 0
        while True:
            event: Answered[Item] | Lost[Item] = self.next_event()
            for text in self.seats.warnings[told:]:
                self._log(f"WARNING: {text}")
            told = len(self.seats.warnings)
            if isinstance(event, Answered):
                yield event
            else:
                self._log(f"WARNING: {self.told(event, str(event.place))}")


# --- conversations ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Batch:
    """Prompts that are answered together; those that are, are taken out."""

    rows: dict[bytes, Row]  # by the keys of their prompts


class Writers(Crew[Batch]):
    """Workers that write conversations."""

    def __init__(self, config: Writing, recipe: Recipe, hire: Hire, log: Log):
        super().__init__(config, hire, lambda batch: f"a batch of {len(batch.rows)} conversations", log)
        self._recipe = dataclasses.asdict(recipe)

    def ask(self, place: int, link: Link, item: Batch) -> None:
        """Have a worker answer what is left of a batch."""
        if item.rows:  # a worker may be lost with nothing left
            link.ask(do="write", rows=[row.to_json() for row in item.rows.values()], recipe=self._recipe)
        while item.rows:
            answer = link.ask(do="next")
            conversation = Conversation(**answer["conversation"])
            begin, _ = conversation.answers[0]
            del item.rows[prompt_key(conversation.tokens[:begin])]  # here, before another worker may get the batch
            self.tell(Answered(place, item, {"conversation": conversation, "tokens": answer["tokens"]}))


def write(
    config: Writing, recipe: Recipe, log: Log, progress: Progress, shares: Shares
) -> Generator[Conversation, None, None]:
    """Have workers write conversations until all kinds have their shares; yield each as it ends.

    Raises:
        UserError: workers cannot be started, or a batch costs worker after worker; or as `Shares.next_batch`.

    """
    if not (rows := shares.next_batch()):
        return
    with local.hiring(config.device, config.workers, WORKER) as hire, Writers(config, recipe, hire, log) as writers:
        answers, left = writers.answers(), Counter[Batch]()  # conversations of each batch that have not ended
        while rows or left:
            if rows:
                batch = Batch({row.key: row for row in rows})
                left[batch] = len(rows)
                writers.handout.add([batch])
            else:
                answered = next(answers)
                progress(answered.answer["tokens"])
                yield answered.answer["conversation"]
                left[answered.item] -= 1
                left += Counter()  # without those that are done
            rows = shares.next_batch() if len(left) < writers.left else []


# --- states ----------------------------------------------------------------------------------------------------------


class Readers(Crew[Chunk]):
    """Workers that compute states."""

    def __init__(self, config: Writing, missing: Mapping[Chunk, Sequence[Layer]], hire: Hire, log: Log):
        super().__init__(config, hire, lambda chunk: chunk.name, log)
        self._missing = missing

    def ask(self, place: int, link: Link, item: Chunk) -> None:
        """Have a worker compute what is missing of a chunk."""
        files = [(layer, str(item.file(layer))) for layer in self._missing[item]]
        self.tell(Answered(place, item, link.ask(do="compute", rows=[row.tolist() for row in item.rows], files=files)))


def compute(config: Writing, missing: Mapping[Chunk, Sequence[Layer]], log: Log, progress: Progress) -> None:
    """Have workers compute what is missing of chunks: their states after so many layers each.

    Raises:
        UserError: workers cannot be started, a chunk costs worker after worker, or the cache cannot be written.

    """
    with local.hiring(config.device, config.workers, WORKER) as hire, Readers(config, missing, hire, log) as readers:
        readers.handout.add(missing)
        for _, answered in zip(missing, readers.answers(), strict=False):
            progress(answered.item.tokens)
