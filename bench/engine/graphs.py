"""Forward passes captured as CUDA graphs: one launch instead of one per kernel.

A pass over a few tokens is hundreds of kernels of microseconds each, and the host launches them more slowly than the
device runs them. A graph replays the captured kernels on the captured addresses. A captured pass therefore has fixed
buffers and fixed sizes: inputs in buffers, positions in tensors, attention over a fixed length of the cache with a mask
for everything outside the text. Widths and lengths are rounded up, so that a few graphs serve all passes; the added
rows are padding. gpt-fast decodes in the same way (github.com/meta-pytorch/gpt-fast).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.engine import BLOCK
from bench.engine.attention import additive
from bench.engine.cache import KVCache
from bench.engine.places import Places, Span

MOST_POSITIONS = BLOCK  # no tree has more rows; in wider passes every launch has enough work
_SHORTEST = 256  # cache positions that a captured pass attends to, at least; longer ones are powers of two of it
_WARM_UPS = 2  # before a capture: libraries choose and load their kernels
_AGREEMENT = 0.02  # relative to the norm of the states: a larger difference is an error, not rounding

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Fixed:
    """The places of a captured pass, in tensors of fixed sizes: w rows, each attending to L positions."""

    rows: Tensor  # [w], of the cache
    positions: Tensor  # [w], in the text
    mask: Tensor  # [w, L], added to the scores

    @property
    def length(self) -> int:
        """L."""
        return self.mask.shape[1]


# What is captured: inputs [1, w, ...] at their places -> states [1, w, d]. It must not synchronise with the device, and
# no size may depend on a value.
Body = Callable[..., Tensor]


class Graphs:
    """Captures and replays the passes of a decoder and of its draft models on one device."""

    def __init__(self, device: torch.device, record: Callable[[Call], Call] | None = None):
        """`record` makes a call on fixed inputs repeatable (default: as a CUDA graph)."""
        self.device = device
        self.reason = ""  # why nothing can be captured
        self._closed = False
        self._record = record or self._as_graph
        # All graphs share one memory pool, because they run one after another. The first one keeps it alive.
        self._first: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None

    def close(self) -> None:
        """Capture nothing more: answers are timed from now on, and a capture takes as long as many passes."""
        self._closed = True

    def reopen(self) -> None:
        """Capture again: methods are warmed up."""
        self._closed = False

    def run(
        self, cache: KVCache, name: Hashable, body: Body, inputs: Sequence[Tensor], places: Places
    ) -> Tensor | None:
        """Run `body(fixed, *inputs)`, capturing it first if needed; None if it must run without a graph.

        `inputs` [1, n, ...]; `name` identifies `body` among those that use `cache`, which keeps their graphs.
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
        """Capture this width for every length; for chains, whose width varies between steps, all narrower ones too."""
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
        """Capture `call`, and compare the first replay with the call itself.

        Raises:
            RuntimeError: it cannot be captured, or its replay differs.

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
    """A pass of fixed sizes: its buffers, and the call that replays it."""

    repeat: Call

    def __init__(self, inputs: Sequence[Tensor], width: int, length: int, *, tree: bool):
        device, self.length = inputs[0].device, length
        # Zeros: the padding of the first pass must be finite, because masks are added.
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
        """Copy everything into its buffer without waiting for the device."""
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
            # Padding attends to the text before it, because softmax needs at least one position.
            self.mask[:, : max(1, span.base)] = 0
            self.mask[:n, span.base : end] = additive(span.seen[:, : max(0, end - span.base)], self.mask.dtype)

    @torch.inference_mode()
    def call(self, body: Body) -> Tensor:
        """Run the pass on the buffers. `body` is not stored: it refers to the cache, which refers to this object."""
        rows = self.first + torch.arange(self.inputs[0].shape[1], device=self.first.device)
        if self.positions is not None and self.mask is not None:
            return body(Fixed(rows, self.positions, self.mask), *self.inputs)
        seen = torch.arange(self.length, device=rows.device) <= rows[:, None]
        return body(Fixed(rows, rows, additive(seen, self.inputs[0].dtype)), *self.inputs)


def choose_graphs(device: torch.device) -> Graphs | None:
    """Return graphs for a CUDA device, else None."""
    return Graphs(device) if device.type == "cuda" else None


def _width(n: int) -> int:
    """The width at which a pass over n tokens runs: the next power of two."""
    return 1 << (n - 1).bit_length()


def _lengths(max_len: int) -> list[int]:
    """The numbers of cache positions to attend to: doubled up to all of them."""
    lengths = [_SHORTEST]
    while lengths[-1] < max_len:
        lengths.append(2 * lengths[-1])
    return [*lengths[:-1], max_len]
