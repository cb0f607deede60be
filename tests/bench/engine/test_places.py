"""Places of rows: sequences that stand apart are read as if each were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.drafting.tree import chain_of, tree_of
from bench.engine.places import Places, Span

CPU = torch.device("cpu")
PARENTS = [-1, -1, 0, 1, 1, 3]


def test_rows_of_a_text_stand_one_behind_the_other_and_see_all_before():
    places = Places.after(3, 2, batch=2)
    assert places.positions(CPU).tolist() == [[3, 4]] * 2
    assert places.seen(CPU).long().tolist() == [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]] * 2
    assert (places.batch, places.width, places.end, places.together) == (2, 2, 5, places.spans[0])


def test_rows_of_a_tree_stand_at_their_depth_and_see_their_ancestors():
    tree = tree_of(PARENTS)
    whole = tree.places(2, CPU)
    assert whole.positions(CPU).tolist() == [[2, 3, 3, 4, 4, 4, 5]]
    last = tree.places(2, CPU, row=5)
    assert (last.width, last.spans[0].first, last.end) == (2, 7, 9)
    assert torch.equal(last.seen(CPU)[0], whole.seen(CPU)[0, 5:])
    assert last.seen(CPU)[0].long().tolist() == [[1, 1, 1, 0, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0, 1, 0, 1]]


def test_a_chain_is_a_text_that_goes_on():
    places = chain_of(4).places(7, CPU, row=2)
    assert places.positions(CPU).tolist() == [[9, 10, 11]]
    assert places.spans[0].depths is None


def side_by_side(parts: list[Places]) -> Places:
    """Sequences of one width each, in one pass: the first in slot 0, and so on."""
    return Places(tuple(replace(part.spans[0], slot=slot) for slot, part in enumerate(parts)), parts[0].width)


def test_sequences_side_by_side_have_slots_of_their_own():
    places = side_by_side([Places.after(5, 7), tree_of(PARENTS).places(2, CPU)])
    assert [span.slot for span in places.spans] == [0, 1]
    assert (places.end, places.together) == (12, None)
    assert places.positions(CPU).tolist() == [[5, 6, 7, 8, 9, 10, 11], [2, 3, 3, 4, 4, 4, 5]]
    assert not places.seen(CPU)[1, :, 9:].any()


@pytest.mark.parametrize("kind", ["tied", "qwen3"])
def test_sequences_that_stand_apart_are_read_as_if_alone(kind, tiny_model, tiny_decoder, hf_logits, random_ids):
    """A text, a tree and a later text in one pass; slots in another order than the sequences."""
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    texts = [random_ids(length, seed) for seed, length in enumerate((9, 4, 15))]
    rows = [random_ids(7, seed) for seed in (7, 8, 9)]
    alone, cache = [], decoder.new_cache(batch=3)
    trees = [chain_of(6), tree_of(PARENTS), chain_of(6)]
    for text, own, tree in zip(texts, rows, trees, strict=True):
        single = decoder.new_cache()
        decoder.run_layers(decoder.embed(text), 0, single)
        alone.append(decoder.run_layers(decoder.embed(own), tree.places(len(text), CPU), single))
        slot = len(alone) - 1
        cache.data[:, :, slot, :, : len(text)] = single.data[:, :, 0, :, : len(text)]
    parts = [tree.places(len(text), CPU) for text, tree in zip(texts, trees, strict=True)]
    found = decoder.run_layers(decoder.embed(torch.tensor(rows)), side_by_side(parts), cache)
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-4)
    logits = decoder.logits(found[0])
    torch.testing.assert_close(logits, hf_logits(model, [*texts[0], *rows[0]])[9:], rtol=0, atol=1e-3)
    swapped = Places((Span(15, slot=2), Span(9, slot=0)), 7)
    again = decoder.run_layers(decoder.embed(torch.tensor([rows[2], rows[0]])), swapped, cache)
    torch.testing.assert_close(again, found[[2, 0]], rtol=0, atol=1e-4)
