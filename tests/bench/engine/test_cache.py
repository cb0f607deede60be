"""Sequences that are dropped from a batch leave no trace in those that go on."""

from __future__ import annotations

import pytest
import torch

LENGTH = 40


@pytest.fixture(scope="module")
def target(tiny_model, tiny_decoder):
    return tiny_decoder(*tiny_model("tied"))


def fresh_cache(target, batch: int):
    """Rows hold NaN until they are written: reading a stale one cannot go unseen."""
    cache = target.new_cache(batch, LENGTH)
    cache.data.fill_(torch.nan)
    return cache


def read(target, ids, cache, start: int):
    return target.logits(target.run_layers(target.embed(ids), start, cache))


@pytest.mark.parametrize("kept", [[0, 1, 2], [1, 3, 4], [0, 4], [2], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("widths", [[1, 1, 1], [5, 1, 3]])
def test_sequences_that_are_kept_go_on_as_before(target, random_ids, kept, widths):
    ids = torch.tensor(random_ids(5 * 20)).view(5, 20)
    whole, cut = (fresh_cache(target, 5) for _ in range(2))
    for cache in (whole, cut):
        read(target, ids[:, :9], cache, 0)
    cut.keep(kept, 9)
    start = 9
    for width in widths:
        block = ids[:, start : start + width]
        found, expected = read(target, block[kept], cut, start), read(target, block, whole, start)
        assert expected.std() > 0.5
        torch.testing.assert_close(found, expected[kept], rtol=0, atol=1e-4)
        start += width
    assert cut.keys.shape[1] == cut.values.shape[1] == len(kept)


def test_sequences_are_dropped_again_and_again(target, random_ids, hf_logits, tiny_model):
    ids = torch.tensor(random_ids(6 * 12)).view(6, 12)
    cache, rows = fresh_cache(target, 6), list(range(6))
    for start, kept in ((4, [0, 2, 3, 5]), (6, [1, 2, 3]), (9, [0, 2])):
        begin = {4: 0, 6: 4, 9: 6}[start]
        read(target, ids[rows, begin:start], cache, begin)
        cache.keep(kept, start)
        rows = [rows[i] for i in kept]
    assert rows == [2, 5]
    found = read(target, ids[rows, 9:], cache, 9)
    for row, logits in zip(rows, found, strict=True):
        expected = hf_logits(tiny_model("tied")[1], ids[row].tolist())[9:]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_only_the_positions_asked_for_are_moved(target):
    cache = fresh_cache(target, 3)
    cache.data[:, :, 2] = 7.0
    cache.keep([0, 2], 5)
    assert (cache.keys[:, 1, :, :5] == 7).all()
    assert cache.keys[:, 1, :, 5:].isnan().all()
    assert cache.values[:, 0].isnan().all()


def test_sequences_out_of_order_are_refused(target):
    with pytest.raises(AssertionError, match="rising order"):
        fresh_cache(target, 3).keep([1, 0], 5)
