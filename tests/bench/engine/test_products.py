"""Our kernels where they are, plain torch elsewhere: the same products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.engine.kernels import native
from bench.engine.products import Linear, choose_layout

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 17, 65])
@pytest.mark.parametrize("biased", [False, True])
def test_a_plain_product_is_torchs(rows, biased):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(37, 24, generator=generator)
    bias = torch.randn(37, generator=generator) if biased else None
    x, residual = torch.randn(2, rows, 24, generator=generator), torch.randn(2, rows, 37, generator=generator)
    plain = Linear(weight, bias)
    assert (plain.out_features, plain.in_features) == (37, 24)
    assert torch.equal(plain(x), F.linear(x, weight, bias))
    assert torch.equal(plain.plus(residual, x), residual + F.linear(x, weight, bias))


@pytest.mark.skipif(bool(native.why_not()), reason="no compiler here")
def test_a_long_sum_rounds_no_more_than_torchs():
    """One running sum over the inputs would be five times as far off."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 6144, generator=generator), torch.randn(8, 6144, generator=generator)
    exact = F.linear(x.double(), weight.double())
    ours, torchs = (
        (found.double() - exact).pow(2).mean().sqrt()
        for found in (Linear(weight, layout="native")(x), F.linear(x, weight))
    )
    assert 0 < ours < 1.5 * torchs


def test_without_kernels_passes_are_plain_torch(monkeypatch, tiny_model, tiny_decoder, hf_logits, random_ids):
    monkeypatch.setattr(native, "kernels", lambda: None)
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    assert decoder.layout == "plain"
    ids = random_ids(5)
    found = decoder.logits(decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache())[0])
    torch.testing.assert_close(found, hf_logits(model, ids), rtol=0, atol=1e-4)


def test_the_layout_is_the_fastest_that_there_is(monkeypatch):
    there = object()
    monkeypatch.setattr(native, "kernels", lambda: there)
    assert choose_layout(torch.float32, CPU) == "native"
    assert choose_layout(torch.float64, CPU) == "plain"
    assert choose_layout(torch.float32, torch.device("cuda")) == "plain"
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert choose_layout(torch.float32, CPU) == "plain"
