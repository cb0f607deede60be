"""Layers on several devices: where they go, and that a pass over them is the same pass.

Here both devices are the processor: what is left on the wrong one is found by `tests/test_cuda.py` alone.
"""

from __future__ import annotations

import pytest
import torch

import methods
from bench.drafting.loop import decode
from bench.engine.placement import choose_homes, place
from bench.errors import UserError

# Two devices to the engine, one to torch.
HERE, THERE = torch.device("cpu"), torch.device("cpu", 0)
GIB = 2**30


@pytest.mark.parametrize(
    ("free", "homes"),
    [
        ([100], [0] * 8),  # one device is given all, whatever it has
        ([1], [0] * 8),
        ([13, 100], [0] * 8),  # 8 layers and 3 besides are 11 of 13 * 0.85
        ([12, 100], [0] * 7 + [1]),
        ([8, 4, 4], [0, 0, 0, 1, 1, 1, 2, 2]),
        ([8, 1, 10], [0, 0, 0, 2, 2, 2, 2, 2]),
        ([12, 1], [0] * 8),  # tight on the first, but the second has no room for what is left
    ],
)
def test_layers_fill_one_device_after_another(free, homes):
    assert place(GIB, 8, 3 * GIB, [size * GIB for size in free]) == homes


@pytest.mark.parametrize(
    "free", [[6, 5], [2, 100]], ids=["too small together", "no room for what must be on the first"]
)
def test_what_fits_nowhere_is_refused_with_sizes(free):
    with pytest.raises(UserError, match=rf"11\.0 GiB does not fit into 2 devices with {free[0]}\.0, {free[1]}\.0 GiB"):
        place(GIB, 8, 3 * GIB, [size * GIB for size in free])


def test_without_cuda_there_is_one_device():
    assert choose_homes(HERE, 1, 3, 1) == [HERE] * 3


def test_all_cuda_devices_are_used_from_the_one_asked_for_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device.index) or (4 * GIB, 80 * GIB))
    homes = choose_homes(torch.device("cuda", 1), GIB, 5, 0)
    assert [home.index for home in homes] == [1, 1, 1, 0, 0]
    asked.clear()
    assert [home.index for home in choose_homes(torch.device("cuda", 1), GIB, 3, 0)] == [1, 1, 1]
    assert asked == [1]  # the others are left alone where the first has room


@pytest.mark.parametrize("split", [[20, 1, 1, 5], [3, 130, 2]], ids=str)
def test_logits_are_transformers(kind, split, tiny_model, tiny_decoder, hf_logits, random_ids, monkeypatch):
    monkeypatch.setattr("bench.engine.decoder.choose_layout", lambda dtype, device: "plain")
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model, homes=[HERE, THERE, THERE, HERE])
    cache = decoder.new_cache()
    ids, start, found = random_ids(sum(split)), 0, []
    for width in split:
        states = decoder.run_layers(decoder.embed(ids[start : start + width]), start, cache)
        found.append(decoder.logits(states[0]))
        start += width
    torch.testing.assert_close(torch.cat(found), hf_logits(model, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_answers_are_transformers_own(beam, tiny_model, tiny_decoder, tiny_adapter, hf_greedy, random_ids, monkeypatch):
    monkeypatch.setattr("bench.engine.decoder.choose_layout", lambda dtype, device: "plain")
    config, model = tiny_model("tied", faint=True)
    made = methods.load("kangaroo")
    target = tiny_decoder(config, model, homes=[HERE, HERE, THERE, THERE])
    method = made(target, made.Config(weights=str(tiny_adapter(model)), threshold=0.0, gamma=3, beam=beam))
    prompt = random_ids(12, seed=1)
    answer = decode(method, prompt, 40, frozenset())
    assert answer.token_ids == hf_greedy(model, prompt, 40)
    assert sum(step.accepted for step in answer.steps) > 0
