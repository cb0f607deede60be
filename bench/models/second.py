"""A second decoder that drafts for a target: found by name, its tokens compared with the target's, and loaded.

Whoever asks for the same one gets the same one, as long as somebody keeps it.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from bench.engine.decoder import Decoder
from bench.engine.quantize import GROUP
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from bench.models import checkpoints
from bench.models.checkpoints import Checkpoint
from bench.models.loading import checkpoint_of, load_decoder

_ON_THE_GRID = 0.01  # rounding that moves weights by less than this, relative to their norm, finds them on its grid

_rounding: WeakKeyDictionary[Decoder, float] = WeakKeyDictionary()
# By checkpoint and all else that makes it what it is: a run with batches has several targets of the same weights.
_loaded: WeakValueDictionary[tuple[Hashable, ...], Decoder] = WeakValueDictionary()


def find(name: str | None, first: Checkpoint) -> Checkpoint:
    """Return the checkpoint called `name` (None: `first`), fetched if need be; its weights are not read yet.

    Raises:
        UserError: no such model, an unsupported one, or its tokens are not those of `first`.

    """
    if name is None:
        return first
    found = checkpoints.resolve(name, log=partial(print, file=sys.stderr))
    DecoderConfig.from_hf(checkpoints.load_config(found))
    if found.folder != first.folder:
        _check_tokens(first, found)
    return found


def load(target: Decoder, name: str | None, quantize: str) -> Decoder:
    """Load a second decoder on the target's device, for as many positions as the target has, or as it was made for.

    `name`: None: the target's own weights again. `quantize`: none, q8 or q4; "": q4 for the target's own weights; for
    others q8 where the engine's kernels can run them (q4 for a target in four bits), else none.

    Raises:
        UserError: as `find`; weights that cannot be loaded or quantised here; out of memory.

    """
    checkpoint = find(name, checkpoint_of(target))
    if name is None and target.quantize != "none":
        raise UserError(f"the target is in {target.quantize} already: leave out --quantize, or name a smaller model")
    config = DecoderConfig.from_hf(checkpoints.load_config(checkpoint))
    quantize = quantize or ("q4" if name is None else _quantize(target, config))
    dtype = target.dtype if quantize == "none" else torch.float32
    most = min(target.max_len, config.context)
    key = (checkpoint, quantize, dtype, target.device, most, target.graphs)
    if (decoder := _loaded.get(key)) is None:
        decoder = load_decoder(checkpoint, target.device, dtype, max_len=most, quantize=quantize)
        decoder.graphs = decoder.graphs and target.graphs  # which are closed before answers are timed
        _loaded[key] = decoder
    return decoder


def _quantize(target: Decoder, config: DecoderConfig) -> str:
    sizes = (config.hidden, config.heads * config.head_dim, config.intermediate)
    if target.layout != "native" or any(size % GROUP for size in sizes):
        return "none"
    return "q4" if target.quantize == "q4" else "q8"


def is_same(target: Decoder, second: Decoder) -> bool:
    """Return whether a second decoder is the target itself in a format on whose grid the weights were before."""
    moved = rounding(target, second)
    return moved is not None and moved < _ON_THE_GRID


def notes(target: Decoder, second: Decoder) -> dict[str, Any]:
    """Return what a record says of a second decoder; a *caution* where it is the target itself."""
    found: dict[str, Any] = {"draft_model": f"{second.name}, {second.precision}"}
    if (moved := rounding(target, second)) is None:
        return found
    found["rounding"] = moved
    if is_same(target, second):
        found["caution"] = (
            f"it drafts with the target's own weights in {second.precision}, and these were on that grid already "
            f"(rounding moves them by {moved:.2%}): nearly every draft is accepted by construction, and a model with "
            "other weights gains less"
        )
    return found


def rounding(target: Decoder, second: Decoder) -> float | None:
    """Return how far the target's own matrices in another format are from the target's, relative to their norm.

    None: the weights are another model's.
    """
    if checkpoint_of(target).sha256 != checkpoint_of(second).sha256:
        return None
    if second in _rounding:
        return _rounding[second]
    moved = total = 0.0
    for ours, theirs in zip(target.products[:-1], second.products[:-1], strict=True):
        weight = ours.weight.float()
        moved += float((theirs.weight.to(weight) - weight).square().sum())
        total += float(weight.square().sum())
    found = _rounding[second] = (moved / total) ** 0.5
    return found


def _check_tokens(first: Checkpoint, second: Checkpoint) -> None:
    """Refuse a tokenizer with other tokens. Added ones, such as a chat format's, may be in only one of the two."""
    tokenizers = [checkpoints.load_tokenizer(one) for one in (first, second)]
    ours, theirs = ({number: token for token, number in one.get_vocab().items()} for one in tokenizers)
    added = tokenizers[0].added_tokens_decoder.keys() | tokenizers[1].added_tokens_decoder.keys()
    for number in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(number), theirs.get(number)
        if a != b and not (number in added and None in (a, b)):
            said = ["missing" if token is None else repr(token) for token in (b, a)]
            raise UserError(
                f"{second.name} has another vocabulary than {first.name}: token {number} is {said[0]} there and "
                f"{said[1]} here; take a draft model with the target's tokenizer"
            )
