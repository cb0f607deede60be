"""Forward-pass costs on this device, in vanilla steps. Methods weigh drafts by them.

Where several sequences are decoded at once (`Decoder.sequences`), a pass is one of all of them, each with as many
tokens, and the unit a vanilla step of the whole batch: what a sequence gains in it, all do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from bench.drafting.knobs import Costs
from bench.drafting.tree import tree_of
from bench.engine.decoder import Decoder
from bench.engine.huge_pages import use_huge_pages
from bench.engine.joined import Part, run_joined
from bench.engine.timing import least_s, time_s

_REPEATS = 11
_FEWER = 3  # repeats of passes over more than _ALWAYS tokens, which take long and decide little
_DEAREST = 2.5  # vanilla steps: widths are timed up to the first pass of this cost, as no draft would be worth more
_ALWAYS = 8  # tokens up to which passes are always timed
_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)  # tokens of the passes that are timed


@dataclass(frozen=True)
class _Measured:
    """Verification alone: number of tokens -> vanilla steps, up to the first width that is too expensive."""

    shallow: float
    verify: dict[int, float]


# One table for all methods of a run that share an exit layer: it is faster, and all decide by the same figures.
_measured: WeakKeyDictionary[Decoder, dict[int, _Measured]] = WeakKeyDictionary()
_given: WeakKeyDictionary[Decoder, Costs] = WeakKeyDictionary()  # of targets that stand in for one


def give(target: Decoder, costs: Costs) -> None:
    """Give the costs of a target that cannot be measured, because only records of it are here."""
    _given[target] = costs


@torch.inference_mode()
def measure(target: Decoder, exit_layer: int, drafts: Sequence[Callable[[], object]], widest: int = 1) -> Costs:
    """Measure a method's forward passes on `target`: `drafts` as given, verification from `exit_layer` on.

    `drafts` and `widest` are those of the method; a draft is of all sequences.

    The table ends where verification costs more than any drafts could be worth, but always has the width `widest`.
    """
    if target in _given:
        return _given[target]
    if target.device.type == "cpu":
        use_huge_pages()  # for the method's own weights
    tables = _measured.setdefault(target, {})
    if exit_layer not in tables:
        tables[exit_layer] = _measure_passes(target, exit_layer)
    passes = tables[exit_layer]
    bench = Passes(target, exit_layer)
    widest = min(widest, target.max_len - 1)
    if widest > max(passes.verify):
        single_s, wide_s = least_s([bench.vanilla, bench.verify(widest)], _FEWER, target.device)
        passes.verify[widest] = wide_s / single_s
    # The unit is timed again together with the drafts: the speed of a shared machine changes. Each draft comes after a
    # vanilla step, as in decoding: its weights are then no longer in the processor's cache.
    calls = [call for draft in drafts for call in (bench.vanilla, draft)] or [bench.vanilla]
    times = least_s(calls, _REPEATS if drafts else 1, target.device)
    step_s, draft_s = min(times[::2]), times[1::2]
    # Rounded as in a record, so that a run repeated with it decides the same.
    draft = tuple(call_s / step_s for call_s in draft_s) or (0.0,)
    return Costs.parse(str(Costs(passes.shallow, draft, tuple(sorted(passes.verify.items())))))


class Passes:
    """The forward passes of a method, to call and time: of all sequences that are decoded at once."""

    def __init__(self, target: Decoder, exit_layer: int, position: int | None = None):
        """Passes start at `position`; None: half-way in the context, as attention costs more with longer contexts."""
        self.target, self.exit_layer = target, exit_layer
        self.caches = [target.new_cache() for _ in range(target.sequences)]
        for cache in self.caches:
            cache.zero()  # touches the memory, as decoding does
        most = _WIDTHS[-1]
        self.position = max(0, target.max_len // 2 - most) if position is None else position
        self.x = target.embed([0] * (most * target.sequences))

    def shallow(self) -> object:
        """Run the layers below the exit over one token."""
        return self._run(1, 0, self.exit_layer) if self.exit_layer else None

    def verify(self, n: int) -> Callable[[], object]:
        """Return a call of the layers above the exit and the choice of tokens, over n tokens."""
        return lambda: self.target.logits(self._run(n, self.exit_layer)[0]).argmax(-1).tolist()

    def _run(self, n: int, first: int, last: int | None = None) -> Tensor:
        """Run layers over a tree of n tokens of each sequence."""
        places = tree_of([-1] * (n - 1)).places(self.position, self.target.device)
        parts = [Part(places, cache) for cache in self.caches]
        return run_joined(self.target, self.x[:, : n * len(parts)], parts, first, last)

    def vanilla(self) -> None:
        """Run a vanilla step."""
        self.shallow()
        self.verify(1)()


def _measure_passes(target: Decoder, exit_layer: int) -> _Measured:
    bench = Passes(target, exit_layer)
    always = max(2, _ALWAYS // target.sequences)
    widths = _affordable([n for n in _WIDTHS if n < target.max_len], bench.verify, target.device, always)
    narrow = [bench.verify(n) for n in widths if n <= always]
    shallow_s, *verify_s = least_s([bench.shallow, *narrow], _REPEATS, target.device)
    verify_s += least_s([bench.verify(n) for n in widths if n > always], _FEWER, target.device)
    step_s = shallow_s + verify_s[0]
    # More tokens never cost less. Where they seem to, it is noise, which would make verifying more drafts look free.
    rising = np.maximum.accumulate(verify_s)
    verify = {n: float(call_s) / step_s for n, call_s in zip(widths, rising, strict=True)}
    return _Measured(shallow_s / step_s, verify)


def _affordable(
    widths: Sequence[int], verify: Callable[[int], Callable[[], object]], device: torch.device, always: int
) -> list[int]:
    """Return the widths up to the first beyond `always` whose pass costs too much to be useful."""
    verify(1)()  # warms up
    single_s = time_s(verify(1), device)
    taken: list[int] = []
    for n in widths:
        taken.append(n)
        if n < always:
            continue
        verify(n)()  # on CUDA the first call captures the graph, which is not part of the cost
        if time_s(verify(n), device) > _DEAREST * single_s:
            break
    return taken
