"""Passes captured as CUDA graphs: launched at once, not kernel by kernel.

A pass over a few positions is hundreds of kernels of microseconds each, and the host launches them more slowly than the
device runs them. A graph repeats the very kernels of its capture on the very same addresses. So a captured pass has
everything at fixed places and in fixed sizes: inputs in buffers, positions in tensors, attention over a fixed length of
the cache with all masked that does not belong to the text. Widths and lengths are rounded up, so that few graphs serve
all passes; the rows that this adds are padding. (So decodes gpt-fast, github.com/meta-pytorch/gpt-fast.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.attention import additive, tree_places
from bench.engine.kv_cache import KVCache
from bench.engine.tree import Tree

MOST_POSITIONS = 64  # wider passes have work enough for each launch
_SHORTEST = 256  # positions of the cache that a captured pass looks at, at least; then twice as many, and so on
_WARM_UPS = 2  # before a capture: libraries choose and load their kernels
_AGREEMENT = 0.02  # of the states' norm: a replay that is farther from the pass itself is wrong, not rounded

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Places:
    """Where the w rows of a pass stand, of which attention looks at L positions."""

    rows: Tensor  # [w], of the cache
    positions: Tensor  # [w], in the text
    mask: Tensor  # [w, L], added to the scores

    @property
    def length(self) -> int:
        """L."""
        return self.mask.shape[1]


# What is captured: some inputs [1, w, ...] at their places -> states [1, w, d]. No waiting for the device, and no sizes
# that depend on values.
Body = Callable[..., Tensor]


class Graphs:
    """Captures and repeats the passes of a decoder, and of draft models beside it, on one device."""

    def __init__(self, device: torch.device, record: Callable[[Call], Call] | None = None):
        """`record`: makes a call repeatable, its inputs staying where they are; default: as a CUDA graph."""
        self.device = device
        self.reason = ""  # why nothing is captured any more
        self._record = record or self._as_graph
        self._pool: Any = None  # memory that all graphs share, as one runs after another

    def run(
        self,
        cache: KVCache,
        name: Hashable,
        body: Body,
        inputs: Sequence[Tensor],
        start: int,
        tree: Tree | None = None,
        row: int = 0,
    ) -> Tensor | None:
        """`body(places, *inputs)`, captured where it has not been before; None: it has to be run without.

        `inputs` [1, n, ...]; `start`, `tree`, `row` as for `Decoder.run_layers`. `name` stands for `body` among those
        that use `cache`, where their graphs are kept.
        """
        batch, n = inputs[0].shape[:2]
        if tree is not None and tree.is_chain:
            start, tree, row = start + row, None, 0
        if self.reason or batch != 1 or not 0 < n <= MOST_POSITIONS:
            return None
        end = start + row + _width(n)
        assert end <= cache.max_len, f"cache of {cache.max_len} positions written up to {end}"
        places = None if tree is None else tree_places(tree, row, n, _width(n), start, self.device)
        key = (name, _width(n), tree is None)
        if key not in cache.captured:
            try:
                cache.captured[key] = self._capture(cache, body, inputs, start + row, places)
            except RuntimeError as error:
                self.reason = str(error).splitlines()[0]
                warnings.warn(f"passes run kernel by kernel, as none can be captured: {self.reason}", stacklevel=2)
                return None
        captured = next(one for one in cache.captured[key] if one.length >= end)
        return captured(inputs, start + row, places)[:, :n]

    def _capture(
        self, cache: KVCache, body: Body, inputs: Sequence[Tensor], first: int, places: tuple[Tensor, Tensor] | None
    ) -> list[_Captured]:
        """A pass of this width for every length, shortest first: at once, so that no answer is held up by it later."""
        made = []
        for length in _lengths(cache.max_len):
            captured = _Captured(body, inputs, length, tree=places is not None)
            captured.fill(inputs, first, places)
            captured.repeat = self._record(captured.call)
            made.append(captured)
        return made

    @torch.inference_mode()
    def _as_graph(self, call: Call) -> Call:
        """Capture `call`, and hold the first replay against the call itself.

        Raises:
            RuntimeError: it cannot be captured, or its replay is not what it gave.

        """
        with torch.cuda.device(self.device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    expected = call()
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                found = call()
        self._pool = graph.pool()
        graph.replay()
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        if not error <= _AGREEMENT:
            raise RuntimeError(f"a replay is {float(error):.1%} off the pass that was captured")

        def repeat() -> Tensor:
            graph.replay()
            return found

        return repeat


class _Captured:
    """A pass at fixed sizes: its buffers, and how it is repeated."""

    repeat: Call

    def __init__(self, body: Body, inputs: Sequence[Tensor], length: int, *, tree: bool):
        device, width = inputs[0].device, _width(inputs[0].shape[1])
        self.body, self.length = body, length
        # Zeros: what pads the first pass must be finite, as it is masked by adding.
        self.inputs = [x.new_zeros((1, width, *x.shape[2:])) for x in inputs]
        self.first = torch.zeros((), dtype=torch.long, device=device)
        self.positions = self.mask = None
        if tree:
            self.positions = torch.zeros(width, dtype=torch.long, device=device)
            self.mask = inputs[0].new_zeros(width, length)

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Tensor], first: int, places: tuple[Tensor, Tensor] | None) -> Tensor:
        self.fill(inputs, first, places)
        return self.repeat().clone()  # the next replay writes where this one did

    @torch.inference_mode()
    def fill(self, inputs: Sequence[Tensor], first: int, places: tuple[Tensor, Tensor] | None) -> None:
        """Put everything in its buffer; none of it waits for the device."""
        for buffer, given in zip(self.inputs, inputs, strict=True):
            buffer[:, : given.shape[1]] = given
        self.first.fill_(first)
        if places is not None:
            assert self.positions is not None
            assert self.mask is not None
            self.positions.copy_(places[0])
            added = additive(places[1], self.mask.dtype)
            self.mask.copy_(F.pad(added, (0, self.length - added.shape[1]), value=-torch.inf))

    @torch.inference_mode()
    def call(self) -> Tensor:
        """The pass itself, on what is in the buffers."""
        rows = self.first + torch.arange(self.inputs[0].shape[1], device=self.first.device)
        if self.positions is not None and self.mask is not None:
            return self.body(Places(rows, self.positions, self.mask), *self.inputs)
        seen = torch.arange(self.length, device=rows.device) <= rows[:, None]
        return self.body(Places(rows, rows, additive(seen, self.inputs[0].dtype)), *self.inputs)


def choose_graphs(device: torch.device) -> Graphs | None:
    """Graphs where the device has them."""
    return Graphs(device) if device.type == "cuda" else None


def _width(n: int) -> int:
    """Positions at which a pass over n is run: the next power of two."""
    return 1 << (n - 1).bit_length()


def _lengths(max_len: int) -> list[int]:
    """Numbers of positions that attention looks at: doubled up to all there are."""
    lengths = [_SHORTEST]
    while lengths[-1] < max_len:
        lengths.append(2 * lengths[-1])
    return [*lengths[:-1], max_len]
