"""Passes captured as CUDA graphs: launched at once, not kernel by kernel.

A pass over a few positions is hundreds of kernels of microseconds each, and the host launches them more slowly than the
device runs them. A graph repeats the very kernels of its capture on the very same addresses. So a captured pass has
everything at fixed places and in fixed sizes: inputs in buffers, positions in tensors, attention over a fixed length of
the cache with all masked that does not belong to the text. Widths and lengths are rounded up, so that few graphs serve
all passes; the rows that this adds are padding. (So decodes gpt-fast, github.com/meta-pytorch/gpt-fast.)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.engine.attention import additive
from bench.engine.cache import KVCache
from bench.engine.places import Places, Span

MOST_POSITIONS = 64  # wider passes have work enough for each launch
_SHORTEST = 256  # positions of the cache that a captured pass looks at, at least; then twice as many, and so on
_WARM_UPS = 2  # before a capture: libraries choose and load their kernels
_AGREEMENT = 0.02  # of the states' norm: a replay that is farther from the pass itself is wrong, not rounded

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Fixed:
    """The places of a captured pass, in tensors of fixed sizes: w rows, of which attention looks at L positions."""

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
        self._closed = False
        self._record = record or self._as_graph
        # All graphs share their memory, as one runs after another. The first one keeps it alive.
        self._first: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None

    def close(self) -> None:
        """Capture nothing more: from now on answers are timed, and a capture takes as long as many passes."""
        self._closed = True

    def run(
        self, cache: KVCache, name: Hashable, body: Body, inputs: Sequence[Tensor], places: Places
    ) -> Tensor | None:
        """`body(fixed, *inputs)`, captured where it has not been before; None: it has to be run without.

        `inputs` [1, n, ...]; `name` stands for `body` among those that use `cache`, where their graphs are kept.
        """
        n, span = places.width, places.spans[0]
        if self.reason or places.batch != 1 or not 0 < n <= MOST_POSITIONS or span.first + _width(n) > cache.max_len:
            return None
        made = cache.captured.setdefault((name, span.depths is None), {})
        if _width(n) not in made and not self._closed:
            try:
                self._capture(made, cache.max_len, body, inputs, span)
            except RuntimeError as error:
                self.reason = str(error).splitlines()[0]
                warnings.warn(f"passes run kernel by kernel, as none can be captured: {self.reason}", stacklevel=2)
                return None
        width = min((width for width in made if width >= n), default=0)
        end = span.first + width
        if not width or end > cache.max_len:
            return None
        captured = next(one for one in made[width] if one.length >= end)
        return captured(inputs, span)[:, :n]

    def _capture(
        self, made: dict[int, list[_Captured]], max_len: int, body: Body, inputs: Sequence[Tensor], span: Span
    ) -> None:
        """This width, and of chains, whose widths vary from step to step, all narrower ones; each for every length."""
        n, tree = inputs[0].shape[1], span.depths is not None
        widths = [_width(n)] if tree else [1 << i for i in range(_width(n).bit_length())]
        for width in widths:
            if width in made:
                continue
            shorter = [x[:, :width] for x in inputs]
            captured = [_Captured(shorter, width, length, tree=tree) for length in _lengths(max_len)]
            for one in captured:
                one.fill(shorter, span)
                one.repeat = self._record(functools.partial(one.call, body))
            made[width] = captured

    @torch.inference_mode()
    def _as_graph(self, call: Call) -> Call:
        """Capture `call`, and hold the first replay against the call itself.

        Raises:
            RuntimeError: it cannot be captured, or its replay is not what it gave.

        """
        with torch.cuda.device(self.device):
            self._stream = self._stream or torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    expected = call()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            pool: Any = None if self._first is None else self._first.pool()
            with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                found = call()
        self._first = self._first or graph
        graph.replay()
        error, size = (found.float() - expected.float()).norm(), expected.float().norm()
        if not error <= _AGREEMENT * size:
            raise RuntimeError(f"a replay is {float(error / size):.1%} off the pass that was captured")

        def repeat() -> Tensor:
            graph.replay()
            return found

        return repeat


class _Captured:
    """A pass at fixed sizes: its buffers, and how it is repeated."""

    repeat: Call

    def __init__(self, inputs: Sequence[Tensor], width: int, length: int, *, tree: bool):
        device, self.length = inputs[0].device, length
        # Zeros: what pads the first pass must be finite, as it is masked by adding.
        self.inputs = [x.new_zeros((1, width, *x.shape[2:])) for x in inputs]
        self.first = torch.zeros((), dtype=torch.long, device=device)
        self.positions = self.mask = None
        if tree:
            self.positions = torch.zeros(width, dtype=torch.long, device=device)
            self.mask = inputs[0].new_zeros(width, length)

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Tensor], span: Span) -> Tensor:
        self.fill(inputs, span)
        return self.repeat().clone()  # the next replay writes where this one did

    @torch.inference_mode()
    def fill(self, inputs: Sequence[Tensor], span: Span) -> None:
        """Put everything in its buffer; none of it waits for the device."""
        for buffer, given in zip(self.inputs, inputs, strict=True):
            buffer[:, : given.shape[1]] = given
        self.first.fill_(span.first)
        if self.positions is not None and self.mask is not None:
            assert span.depths is not None
            assert span.seen is not None
            n, end = len(span.depths), min(span.first + len(span.depths), self.length)  # shorter ones are only captured
            self.positions.fill_(span.base)
            self.positions[:n] += span.depths
            self.mask.fill_(-torch.inf)
            # What is padded sees the text before, as softmax needs something to look at.
            self.mask[:, : max(1, span.base)] = 0
            self.mask[:n, span.base : end] = additive(span.seen[:, : max(0, end - span.base)], self.mask.dtype)

    @torch.inference_mode()
    def call(self, body: Body) -> Tensor:
        """The pass itself, on what is in the buffers. It is not kept: whoever holds the cache would hold itself."""
        rows = self.first + torch.arange(self.inputs[0].shape[1], device=self.first.device)
        if self.positions is not None and self.mask is not None:
            return body(Fixed(rows, self.positions, self.mask), *self.inputs)
        seen = torch.arange(self.length, device=rows.device) <= rows[:, None]
        return body(Fixed(rows, rows, additive(seen, self.inputs[0].dtype)), *self.inputs)


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
