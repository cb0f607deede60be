"""One pass over the rows of several sequences gives each what it gets alone."""

from __future__ import annotations

import pytest
import torch

from bench.drafting.tree import chain_of, tree_of
from bench.engine.joined import Part, run_joined
from bench.engine.kernels import native

TREE = tree_of([-1, -1, 0, 0, 1, 3])
# (tokens before, tree of drafts): a chain, a tree, the newest token alone, a chain at a text's start, a wide one.
ROWS = ((11, chain_of(3)), (30, TREE), (7, chain_of(0)), (0, chain_of(2)), (5, chain_of(69)))
BY_KERNELS = pytest.param(True, marks=pytest.mark.skipif(native.kernels() is None, reason="no kernels here"))


def sequences(decoder, random_ids):
    """Of each sequence, the rows [1, n, d] of its pass, and twice its part, with caches that know its text."""
    found = []
    for number, (before, tree) in enumerate(ROWS):
        parts = []
        for _ in range(2):
            cache = decoder.new_cache()
            if before:
                decoder.run_layers(decoder.embed(random_ids(before, seed=number)), 0, cache)
            parts.append(Part(tree.places(before, decoder.device), cache))
        found.append((decoder.embed(random_ids(parts[0].width, seed=90 + number)), *parts))
    return found


@pytest.mark.parametrize("by_kernels", [BY_KERNELS, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_gets_what_it_gets_alone(kind, dtype, by_kernels, tiny_model, tiny_decoder, random_ids):
    layout = None if by_kernels else "plain"
    decoder = tiny_decoder(*tiny_model(kind), dtype=dtype, layout=layout)
    with torch.inference_mode():
        of = sequences(decoder, random_ids)
        alone = [decoder.run_layers(x, one.places, one.cache) for x, one, _ in of]
        parts = [part for *_, part in of]
        together = run_joined(decoder, torch.cat([x for x, *_ in of], dim=1), parts)
        for (before, _), expected, found in zip(ROWS, alone, together.split([p.width for p in parts], 1), strict=True):
            if by_kernels:
                assert torch.equal(found, expected), before
            else:  # torch's products may sum in another order where a matrix has more rows
                near = {"rtol": 0, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.2}
                torch.testing.assert_close(found, expected, **near)
        for (before, _), (_, one, other) in zip(ROWS, of, strict=True):
            end = before + one.width
            if by_kernels:
                assert torch.equal(one.cache.data[..., :end, :], other.cache.data[..., :end, :])


@pytest.mark.parametrize("by_kernels", [BY_KERNELS, False])
def test_some_layers_of_it(by_kernels, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model("qwen3"), layout=None if by_kernels else "plain")
    with torch.inference_mode():
        of = sequences(decoder, random_ids)
        x, parts = torch.cat([x for x, *_ in of], dim=1), [part for *_, part in of]
        whole = run_joined(decoder, x, [part for _, part, _ in of])
        two = run_joined(decoder, run_joined(decoder, x, parts, 0, 1), parts, 1)
        torch.testing.assert_close(two, whole, rtol=0, atol=0 if by_kernels else 1e-4)
