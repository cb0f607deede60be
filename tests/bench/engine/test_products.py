"""Packed weights are only another layout, and padding is only taken where it is cheaper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.engine import products as execute
from bench.engine.kernels import native
from bench.engine.products import MAX_PADDED_WIDTH, Linear, can_pack, choose_layout, measure_widths

CPU = torch.device("cpu")
NEEDS_PACKING = pytest.mark.skipif(not can_pack(torch.float32, CPU), reason="weights cannot be packed here")


@NEEDS_PACKING
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 17, 65])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_product_is_the_plain_one(rows, biased):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(37, 24, generator=generator)
    bias = torch.randn(37, generator=generator) if biased else None
    x = torch.randn(2, rows, 24, generator=generator)
    packed, plain = Linear(weight, bias, layout="packed"), Linear(weight, bias)
    assert (packed.out_features, packed.in_features) == (37, 24)
    torch.testing.assert_close(packed(x), F.linear(x, weight, bias), rtol=0, atol=1e-5)
    torch.testing.assert_close(plain(x), F.linear(x, weight, bias), rtol=0, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, NotImplementedError])
@pytest.mark.parametrize("operator", ["_reorder_linear_weight", "_linear_pointwise"])
def test_weights_stay_plain_where_an_operator_is_missing(
    operator, error, monkeypatch, tiny_model, tiny_decoder, hf_logits, random_ids
):
    def missing(*_):
        raise error("not in this build")

    monkeypatch.setattr(torch.ops.mkldnn, operator, missing, raising=False)
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert not can_pack(torch.float32, CPU)
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    assert decoder.layout == "plain"
    ids = random_ids(5)
    found = decoder.logits(decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache())[0])
    torch.testing.assert_close(found, hf_logits(model, ids), rtol=0, atol=1e-4)


def test_weights_stay_plain_where_the_operator_computes_wrongly(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, _: weight, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *_: x * 0.5, raising=False)
    assert not can_pack(torch.float32, CPU)


def test_only_a_processor_packs():
    assert not can_pack(torch.float32, torch.device("cuda"))


def test_the_layout_is_the_fastest_that_there_is(monkeypatch):
    there = object()
    monkeypatch.setattr(execute, "can_pack", lambda dtype, device: dtype == torch.float32)
    monkeypatch.setattr(native, "kernels", lambda: there)
    assert choose_layout(torch.float32, CPU) == "native"
    assert choose_layout(torch.float64, CPU) == "plain"
    assert choose_layout(torch.float32, torch.device("cuda")) == "packed"  # as far as `can_pack` says so
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert choose_layout(torch.float32, CPU) == "packed"


def measured(cost_s: list[float], monkeypatch) -> dict[int, int]:
    """The widths chosen where passes over 1, 2, ... positions cost `cost_s`, each one slow in one of seven rounds."""
    calls = iter(range(10**6))

    def fake(*_) -> float:
        turn, width = divmod(next(calls), MAX_PADDED_WIDTH)
        return cost_s[width] * (9 if turn == width % 7 else 1)

    monkeypatch.setattr("bench.engine.timing.time_s", fake)
    return measure_widths([Linear(torch.ones(4, 4))], torch.float32)


@pytest.mark.parametrize(
    ("cost_s", "widths"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]),  # narrower is cheaper: as asked
        ([22, 25, 21, 16, 17, 18, 20, 26], [4, 4, 4, 4, 5, 6, 7, 8]),  # four positions cost less than one
        ([9, 9, 9, 9, 9, 9, 9, 5], [8, 8, 8, 8, 8, 8, 8, 8]),
        ([10, 9.6, 10, 10, 10, 10, 10, 10], [1, 2, 3, 4, 5, 6, 7, 8]),  # 4 % less is within the noise
        ([10, 9.4, 10, 9, 8.4, 8.2, 7.8, 7.6], [8, 8, 8, 8, 8, 8, 7, 8]),
    ],
)
def test_a_pass_is_padded_only_where_wider_is_clearly_cheaper(cost_s, widths, monkeypatch):
    assert measured(cost_s, monkeypatch) == dict(enumerate(widths, start=1))


def test_no_pass_is_made_narrower():
    widths = measure_widths([Linear(torch.ones(8, 8)), Linear(torch.ones(4, 8))], torch.float32, repeats=1)
    assert list(widths) == list(range(1, MAX_PADDED_WIDTH + 1))
    assert all(n <= width <= MAX_PADDED_WIDTH for n, width in widths.items())
