"""Decoding a list of prompts in a batch: as many sequences at once as there are slots, each at its own pace.

A slot that falls free takes the next prompt, so that the batch stays full until the list ends; what follows is the
*drain*. A *wave* is one step of all live sequences: they draft and are verified together. Prefills come between waves
and are timed apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from bench.drafting import loop
from bench.drafting.method import Answer, SpeculativeMethod
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Sequence
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.timing import between_s, now_s


@dataclass(frozen=True)
class Request:
    """A prompt to answer with at most `limit` tokens (>= 1)."""

    prompt: Many[int]
    limit: int
    sampler: Sampler | None = None  # its own, so that its draws do not depend on the others; None: greedy decoding


@dataclass
class Wave:
    """One step of all live sequences. Seconds are of all together."""

    live: int
    wall_s: float
    draft_s: float = 0.0
    verify_s: float = 0.0


@dataclass
class Served:
    """A request's answer. `decode_s` is its share of its waves: the wall time of each over the sequences in it."""

    answer: Answer
    first_wave: int  # its first step's; one wave a step from there


@dataclass
class Batch:
    """What became of a list of requests."""

    served: list[Served]  # in the requests' order
    waves: list[Wave]


class Slots:
    """The target's caches of a batch. One method at a time uses them."""

    def __init__(self, target: Decoder, count: int):
        self.target, self.count = target, count
        self._caches: list[KVCache] = []

    def cache(self, slot: int) -> KVCache:
        """The slot's cache, allocated on first use."""
        while len(self._caches) <= slot:
            self._caches.append(self.target.new_cache())
        return self._caches[slot]


@dataclass
class _Live:
    """A sequence in a slot."""

    number: int  # of its request
    request: Request
    sequence: Sequence
    served: Served
    tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.served.answer.token_ids

    def goes_on(self, eos: frozenset[int]) -> bool:
        return len(self.tokens) < self.request.limit and self.tokens[-1] not in eos


def decode_batch(method: SpeculativeMethod, requests: Iterable[Request], slots: Slots, eos: frozenset[int]) -> Batch:
    """Answer all requests, as many at once as there are slots; answers end with the first token in `eos`."""
    device = method.target.device
    waiting = deque(enumerate(requests))
    served: dict[int, Served] = {}
    live: dict[int, _Live] = {}  # by slot
    waves: list[Wave] = []
    while waiting or live:
        for slot in range(slots.count):
            while waiting and slot not in live:
                opened = _open(method, *waiting.popleft(), slot, slots, len(waves))
                served[opened.number] = opened.served
                if opened.goes_on(eos):
                    live[slot] = opened
        if not live:
            break
        start_s = now_s(device)
        going = list(live.items())
        steps = loop.speculate(
            method,
            [one.sequence for _, one in going],
            [one.request.limit - len(one.tokens) for _, one in going],
        )
        for (slot, one), step in zip(going, steps, strict=True):
            one.served.answer.steps.append(loop.kept_of(step, one.sequence, one.tokens, eos))
            emitted, limit = len(one.tokens), one.request.limit
            assert emitted <= limit, f"{type(method).__name__} emitted {emitted} tokens with a limit of {limit}"
            if not one.goes_on(eos):
                del live[slot]
        waves.append(Wave(len(going), now_s(device) - start_s))
    batch = Batch([served[number] for number in sorted(served)], waves)
    _take_times(batch)
    return batch


def _open(method: SpeculativeMethod, number: int, request: Request, slot: int, slots: Slots, wave: int) -> _Live:
    """Prefill a request's prompt."""
    device = method.target.device
    start_s = now_s(device)
    sequence = loop.open_sequence(method, request.prompt, request.sampler, slot, slots.cache(slot))
    answer = Answer(sequence.context[len(request.prompt) :], now_s(device) - start_s, 0.0)
    return _Live(number, request, sequence, Served(answer, wave))


def _take_times(batch: Batch) -> None:
    """Once the device is idle, turn marks into seconds: of waves, and of each answer its share."""
    for one in batch.served:
        for wave, step in zip(batch.waves[one.first_wave :], one.answer.steps, strict=False):
            if not wave.verify_s:
                drafting, verifying, verified = step.marks
                wave.draft_s, wave.verify_s = between_s(drafting, verifying), between_s(verifying, verified)
            step.draft_s, step.verify_s = wave.draft_s / wave.live, wave.verify_s / wave.live
            one.answer.decode_s += wave.wall_s / wave.live
