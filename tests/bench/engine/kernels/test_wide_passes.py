"""Passes over hundreds of tokens, as of prompts: what torch and transformers compute, in parts or whole."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.drafting.tree import tree_of
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.places import Places, Span
from bench.engine.products import Linear
from bench.engine.quantize import GROUP

pytestmark = pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")
CPU = torch.device("cpu")
KINDS = [("none", torch.float32), ("none", torch.bfloat16), ("q4", torch.float32), ("q8", torch.float32)]
PRECISIONS = pytest.mark.parametrize(("quantize", "dtype"), KINDS, ids=["float32", "bfloat16", "q4", "q8"])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@PRECISIONS
@pytest.mark.parametrize("rows", [64, 65, 131, 200])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("outputs", [38, 640])
def test_a_wide_product_is_its_rows_products_bit_for_bit(quantize, dtype, rows, paired, outputs):
    """With 640 rows of W, its panels are more than are kept in the processor's cache at a time."""
    inputs = 19 * GROUP
    weight, bias = drawn(outputs, inputs).to(dtype), drawn(outputs, seed=1).to(dtype)
    linear = Linear(weight, bias, layout="native", quantize=quantize, paired=paired)
    x, residual = drawn(rows, inputs, seed=2).to(dtype), drawn(rows, outputs, seed=3).to(dtype)
    assert torch.equal(linear(x), torch.cat([linear(x[i : i + 1]) for i in range(rows)]))
    one_by_one = [linear.plus(residual[i : i + 1], x[i : i + 1]) for i in range(rows)]
    assert torch.equal(linear.plus(residual, x), torch.cat(one_by_one))


def model_of(kind, head_dim, tiny_config, **options):
    """A decoder whose matrices have whole groups of 32 columns; argmaxes vary."""
    config = tiny_config(kind, hidden_size=96, intermediate_size=160, head_dim=head_dim)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = model.state_dict()
    for name, weight in weights.items():
        if weight.dim() == 2:
            weight.copy_(drawn(*weight.shape, seed=len(name)) * (0.3 if "embed" in name else weight.shape[1] ** -0.5))
    return Decoder.from_weights(config, weights.items(), max_len=256, **options)


TOLERANCES = {"float32": 1e-5, "bfloat16": 0.02, "q4": 0.02}  # of the mean; a code may round the other way


@pytest.mark.parametrize("kind", ["llama3", "qwen3"])
@pytest.mark.parametrize(("quantize", "dtype"), KINDS[:3], ids=TOLERANCES)
@pytest.mark.parametrize("head_dim", [20, 24, 64])
def test_wide_passes_are_those_of_operations(kind, quantize, dtype, head_dim, tiny_config, random_ids):
    """Heads of whole panels of outputs, and of rests."""
    if quantize == "q4" and head_dim == 20:
        pytest.skip("4 heads of 20 are no whole groups of 32")
    decoder = model_of(kind, head_dim, tiny_config, quantize=quantize, dtype=dtype)
    tolerance = TOLERANCES[decoder.precision]
    for start, width in ((0, 65), (0, 150), (7, 140), (100, 70)):
        ids = random_ids(start + width, seed=width)
        found = []
        for one in (decoder, decoder.by_operations(own_products=True)):
            cache = one.new_cache()
            cache.data.fill_(torch.nan)
            if start:
                one.run_layers(one.embed(ids[:start]), 0, cache)
            states = one.run_layers(one.embed(ids[start:]), start, cache)
            assert states.dtype == dtype
            assert cache.data[..., : len(ids), :].isfinite().all()
            assert cache.data[..., len(ids) :, :].isnan().all()
            found.append((states.float(), cache.data[..., : len(ids), :].float()))
        for ours, theirs in zip(*found, strict=True):
            assert theirs.std() > 0.2
            assert (ours - theirs).abs().mean() < tolerance * theirs.std()
            assert (ours - theirs).abs().max() < 20 * tolerance * theirs.std()


def test_parts_of_a_prompt_are_the_prompt(kind, monkeypatch, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder, ids = tiny_decoder(config, model), random_ids(230)
    expected = hf_logits(model, ids)
    for most in (65, 100, 229, 230):
        monkeypatch.setattr(native, "MOST_ROWS", most)
        found = decoder.logits(decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache())[0])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_part_begins_where_the_one_before_ended():
    places = Places((Span(10, slot=3), Span(4, slot=1, before=2)), 7)
    parts = list(places.in_parts(3))
    assert [part.width for part in parts] == [3, 3, 1]
    assert [[span.first for span in part.spans] for part in parts] == [[10, 6], [13, 9], [16, 12]]
    assert all([span.slot for span in part.spans] == [3, 1] for part in parts)
    assert torch.equal(torch.cat([part.positions(CPU) for part in parts], dim=1), places.positions(CPU))
    assert list(places.in_parts(7)) == [places]
    tree = tree_of([-1, -1, 0]).places(5, CPU)
    assert list(tree.in_parts(2)) == [tree]


def test_wide_texts_of_different_lengths_do_not_see_each_other(kind, tiny_model, tiny_decoder, random_ids):
    decoder, width = tiny_decoder(*tiny_model(kind)), 80
    texts = [random_ids(n, seed=n) for n in (93, 80, 131)]
    together = decoder.new_cache(batch=len(texts))
    spans, expected = [], []
    for slot, text in enumerate(texts):
        alone, start = decoder.new_cache(), len(text) - width
        if start:
            decoder.run_layers(decoder.embed(text[:start]), 0, alone)
        expected.append(decoder.run_layers(decoder.embed(text[start:]), start, alone))
        together.data[:, :, slot] = alone.data[:, :, 0]
        together.data[:, :, slot, :, start:] = torch.nan  # to be written, or not to be looked at
        spans.append(Span(start, slot))
    x = decoder.embed(torch.tensor([text[-width:] for text in texts]))
    assert torch.equal(decoder.run_layers(x, Places(tuple(spans), width), together), torch.cat(expected))


def test_what_is_no_number_stays_with_the_rows_that_see_it(tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model("tied"))
    x = decoder.embed(random_ids(120))
    x[0, 90, 5] = torch.nan
    out = decoder.run_layers(x, 0, decoder.new_cache())
    assert out[0, 90:].isnan().all()
    assert out[0, : 90 - 11].isfinite().all()  # up to twelve rows are multiplied with the values that the last one sees
