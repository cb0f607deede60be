"""Forward-pass costs on this device, in vanilla steps. Methods weigh drafts by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from bench.drafting.knobs import Costs
from bench.drafting.tree import tree_of
from bench.engine.decoder import Decoder
from bench.engine.huge_pages import use_huge_pages
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


@torch.inference_mode()
def measure(target: Decoder, exit_layer: int, drafts: Sequence[Callable[[], object]], widest: int = 1) -> Costs:
    """Measure a method's forward passes on `target`: `drafts` as given, verification from `exit_layer` on.

    The table ends where verification costs more than any drafts could be worth, but always has the width `widest`.
    """
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
    """The forward passes of a method, to call and time."""

    def __init__(self, target: Decoder, exit_layer: int, position: int | None = None):
        """Passes start at `position`; None: half-way in the context, as attention costs more with longer contexts."""
        self.target, self.exit_layer = target, exit_layer
        self.cache = target.new_cache()
        self.cache.zero()  # touches the memory, as decoding does
        most = _WIDTHS[-1]
        self.position = max(0, target.max_len // 2 - most) if position is None else position
        self.x = target.embed([0] * most)

    def shallow(self) -> object:
        """Run the layers below the exit over one token."""
        x, layer = self.x[:, :1], self.exit_layer
        return self.target.run_layers(x, self.position, self.cache, 0, layer) if layer else None

    def verify(self, n: int) -> Callable[[], object]:
        """Return a call of the layers above the exit and the choice of tokens, over n tokens."""
        target, layer, tree = self.target, self.exit_layer, tree_of([-1] * (n - 1))
        return lambda: (
            target.logits(
                target.run_layers(self.x[:, :n], tree.places(self.position, target.device), self.cache, layer)[0]
            )
            .argmax(-1)
            .tolist()
        )

    def vanilla(self) -> None:
        """Run a vanilla step."""
        self.shallow()
        self.verify(1)()


def _measure_passes(target: Decoder, exit_layer: int) -> _Measured:
    bench = Passes(target, exit_layer)
    widths = _affordable([n for n in _WIDTHS if n < target.max_len], bench.verify, target.device)
    narrow = [bench.verify(n) for n in widths if n <= _ALWAYS]
    shallow_s, *verify_s = least_s([bench.shallow, *narrow], _REPEATS, target.device)
    verify_s += least_s([bench.verify(n) for n in widths if n > _ALWAYS], _FEWER, target.device)
    step_s = shallow_s + verify_s[0]
    # More tokens never cost less. Where they seem to, it is noise, which would make verifying more drafts look free.
    rising = np.maximum.accumulate(verify_s)
    verify = {n: float(call_s) / step_s for n, call_s in zip(widths, rising, strict=True)}
    return _Measured(shallow_s / step_s, verify)


def _affordable(
    widths: Sequence[int], verify: Callable[[int], Callable[[], object]], device: torch.device
) -> list[int]:
    """Return the widths up to the first whose pass costs too much to be useful."""
    verify(1)()  # warms up
    single_s = time_s(verify(1), device)
    taken: list[int] = []
    for n in widths:
        taken.append(n)
        if n < _ALWAYS:
            continue
        verify(n)()  # on CUDA the first call captures the graph, which is not part of the cost
        if time_s(verify(n), device) > _DEAREST * single_s:
            break
    return taken
