"""Q4_1: what is on the grid stays there, what is not comes near, and a quantised target is one model for all."""

from __future__ import annotations

import pytest
import torch

from bench.drafting.loop import decode
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.products import Linear
from bench.engine.quantize import GROUP, Q4
from bench.errors import UserError
from methods.vanilla import Vanilla

NEEDS_KERNELS = pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_weight_is_at_most_half_a_step_off():
    weight = drawn(5, 3 * GROUP)
    made = Q4.of(weight)
    assert made.codes.shape == (5, 3 * GROUP // 2)
    assert made.scales.shape == made.least.shape == (5, 3)
    error = (made.plain() - weight).abs().view(5, 3, GROUP)
    assert (error <= made.scales[..., None] * 0.5001).all()
    assert error.max() > 0


def test_the_order_of_codes_is_that_of_gguf():
    weight = torch.arange(16.0).repeat(2)[None]  # codes 0..15, twice
    made = Q4.of(weight)
    assert made.codes[0].tolist() == [code | code << 4 for code in range(16)]
    assert torch.equal(made.plain(), weight)


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_a_q4_file_are_found_again(seed):
    scales, least = drawn(4, 2, 1, seed=seed).abs().half().float(), drawn(4, 2, 1, seed=seed + 9).half().float()
    codes = torch.randint(0, 16, (4, 2, GROUP), generator=torch.Generator().manual_seed(seed)).float()
    codes[..., 0], codes[..., -1] = 0, 15  # the ends of a group are on its grid
    weight = (scales * codes + least).flatten(1)
    torch.testing.assert_close(Q4.of(weight).plain(), weight, rtol=0, atol=2e-6)


def test_a_group_of_equal_weights_is_kept():
    weight = torch.full((1, GROUP), 0.25)
    assert torch.equal(Q4.of(weight).plain(), weight)


@NEEDS_KERNELS
@pytest.mark.parametrize("biased", [False, True])
def test_the_kernels_multiply_by_what_the_codes_stand_for(biased):
    inputs = 19 * GROUP  # whole vectors of groups, and a rest
    linear = Linear(drawn(19, inputs), drawn(19, seed=1) if biased else None, layout="native", quantize="q4")
    for rows in (1, 2, 3, 4, 5, 6, 7, 13):
        x = drawn(rows, inputs, seed=rows)
        exact = x.double() @ linear.weight.double().T + (linear.bias.double() if biased else 0)
        torch.testing.assert_close(linear(x).double(), exact, rtol=0, atol=2e-4)
        assert torch.equal(linear(x)[:1], linear(x[:1]))
    wide = drawn(native.MOST_POSITIONS + 1, inputs)
    torch.testing.assert_close(linear(wide)[:4], linear(wide[:4]), rtol=0, atol=2e-4)


@pytest.fixture
def quantised(tiny_config):
    """A tiny model of whole groups, quantised, and the same weights plain."""
    from transformers import AutoModelForCausalLM

    config = tiny_config("tied", hidden_size=96, intermediate_size=160)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    made = Decoder.from_weights(config, weights.items(), max_len=128, quantize="q4")

    def on_the_grid(name, weight):
        if "embed" in name:  # and head
            return weight.bfloat16().float()
        return Q4.of(weight).plain() if weight.dim() == 2 else weight

    plain = {name: on_the_grid(name, weight) for name, weight in weights.items()}
    return made, Decoder.from_weights(config, plain.items(), max_len=128)


@NEEDS_KERNELS
def test_a_quantised_target_is_the_model_of_its_plain_weights(quantised, random_ids):
    made, plain = quantised
    ids = random_ids(30)
    found, expected = (d.logits(d.run_layers(d.embed(ids), 0, d.new_cache())[0]) for d in quantised)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert made.precision == "q4"
    assert made.weight_bytes < 0.35 * plain.weight_bytes
    assert made.parameters == plain.parameters
    rows = torch.tensor([3, 1, 200])
    state = drawn(1, 96)
    torch.testing.assert_close(made.cut_head(rows)(state), made.head(state)[:, rows])


@NEEDS_KERNELS
def test_its_answers_are_those_of_its_plain_weights(quantised, random_ids):
    answers = [decode(Vanilla(d, Vanilla.Config()), random_ids(90), 20, frozenset()).token_ids for d in quantised]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": torch.bfloat16}, "float32 states"),
        ({}, "48 columns, which"),
    ],
)
def test_what_cannot_be_quantised_is_told(options, reason, tiny_model, tiny_decoder, monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda: "")
    with pytest.raises(UserError, match=reason):
        tiny_decoder(*tiny_model("tied"), quantize="q4", **options)


def test_without_kernels_the_reason_is_told(tiny_model, tiny_decoder, monkeypatch):
    monkeypatch.setattr(native, "kernels", lambda: None)
    monkeypatch.setattr(native, "why_not", lambda: "there is no compiler")
    with pytest.raises(UserError, match="own kernels, and there is no compiler"):
        tiny_decoder(*tiny_model("tied"), quantize="q4")
