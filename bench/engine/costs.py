"""What passes cost on this device, in vanilla steps: what a method needs to know before it spends time on a draft."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench.engine.decoder import Decoder
from bench.engine.execute import now_s
from bench.engine.tree import tree_of

_REPEATS = 11
_FEWER = 3  # repeats of passes over more than _ALWAYS positions, which take long and decide little
_DEAREST = 2.5  # vanilla steps: no wider pass is timed than one that costs so much, as no draft would be worth it
_ALWAYS = 8  # positions that the table has in any case, where there are so many
_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)  # positions of the passes that are timed


@dataclass(frozen=True)
class Costs:
    """Times in units of a vanilla step (all layers and the LM head over one position)."""

    shallow: float  # the layers below the exit, over one position; 0 where a method has no exit
    draft: tuple[float, ...]  # one call of what drafts: of an adapter and its head; of 1, 2, .. Medusa heads
    verify: tuple[tuple[int, float], ...]  # positions -> the layers above the exit and the LM head over so many

    def __str__(self) -> str:
        draft = "+".join(f"{cost:.3f}" for cost in self.draft)
        return "/".join([f"{self.shallow:.3f}", draft, *(f"{n}:{cost:.3f}" for n, cost in self.verify)])

    @classmethod
    def parse(cls, text: str) -> Costs:
        """The costs that `str` wrote.

        Raises:
            ValueError: not of that form.

        """
        try:
            shallow, draft, *rest = text.split("/")
            pairs = [item.split(":") for item in rest]
            verify = tuple((int(n), float(cost)) for n, cost in pairs)
            found = cls(float(shallow), tuple(map(float, draft.split("+"))), verify)
            whole = verify[0][0] == 1 and all(a < b for (a, _), (b, _) in itertools.pairwise(verify))
        except (ValueError, IndexError):
            whole = False
        if not whole or not all(0 <= cost < math.inf for cost in (found.shallow, *found.draft, *dict(verify).values())):
            raise ValueError(f"costs={text!r} must be shallow/draft/1:verify/2:verify/.., in vanilla steps")
        return found

    @property
    def most(self) -> int:
        """The widest verification in the table."""
        return self.verify[-1][0]

    @functools.cached_property
    def _table(self) -> list[float]:
        widths, costs = zip(*self.verify, strict=True)
        return [float(cost) for cost in np.interp(range(self.most + 1), widths, costs)]

    def verifying(self, positions: int) -> float:
        """Verification of so many positions; between the measured ones, linear; beyond them, infinite."""
        return self._table[positions] if positions <= self.most else math.inf


@torch.inference_mode()
def measure(target: Decoder, exit_layer: int, most: int, drafts: Sequence[Callable[[], object]]) -> Costs:
    """Time the passes of a method on `target`: `drafts` as given, and verification over up to `most` positions.

    The table ends early where a pass costs more than any drafts in it could be worth.
    """
    cache = target.new_cache()
    cache.data.zero_()  # in memory of its own, as a text's keys and values are
    position = max(0, target.max_len // 2 - most)  # an ordinary place: attention costs more from further on
    widths = [*(n for n in _WIDTHS if n < most), most]
    x = target.embed([0] * most)

    def shallow() -> object:
        return target.run_layers(x[:, :1], position, cache, 0, exit_layer) if exit_layer else None

    def verify(n: int) -> Callable[[], object]:
        tree = tree_of([-1] * (n - 1))
        return lambda: (
            target.logits(target.run_layers(x[:, :n], position, cache, exit_layer, tree=tree)[0]).argmax(-1).tolist()
        )

    widths = _affordable(widths, verify, target.device)
    narrow = [verify(n) for n in widths if n <= _ALWAYS]
    shallow_s, *rest_s = _times([shallow, *drafts, *narrow], _REPEATS, target.device)
    draft_s, verify_s = rest_s[: len(drafts)], rest_s[len(drafts) :]
    verify_s += _times([verify(n) for n in widths if n > _ALWAYS], _FEWER, target.device)
    step_s = shallow_s + verify_s[0]
    # More positions never cost less: what looks so is noise, and would make a draft seem to earn by being verified.
    rising = np.maximum.accumulate(verify_s)
    pairs = tuple((n, float(cost_s) / step_s) for n, cost_s in zip(widths, rising, strict=True))
    # As read back from a record, so that a run repeated with it decides the very same.
    return Costs.parse(str(Costs(shallow_s / step_s, tuple(cost_s / step_s for cost_s in draft_s), pairs)))


def _affordable(
    widths: Sequence[int], verify: Callable[[int], Callable[[], object]], device: torch.device
) -> list[int]:
    """The widths up to the first whose pass costs too much to be of use."""
    verify(1)()  # warms up
    single_s = _time_s(verify(1), device)
    taken: list[int] = []
    for n in widths:
        taken.append(n)
        if n >= _ALWAYS and _time_s(verify(n), device) > _DEAREST * single_s:
            break
    return taken


def _time_s(call: Callable[[], object], device: torch.device) -> float:
    start_s = now_s(device)
    call()
    return now_s(device) - start_s


def _times(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Least seconds of each call: noise only adds. Interleaved, so that a slow moment hits none alone."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            own.append(_time_s(call, device))
    return [min(own[1:]) for own in times]  # the first round warms up
