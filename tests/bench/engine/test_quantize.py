"""Q4_1 and Q8_0: what is on the grid stays there, what is not comes near; a quantised target is one model for all."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.drafting.loop import decode
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.products import Linear
from bench.engine.quantize import GRIDS, GROUP, Q4, Q8
from bench.errors import UserError
from methods.vanilla import Vanilla

NEEDS_KERNELS = pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [Q4, Q8])
def test_a_weight_is_at_most_half_a_step_off(grid):
    weight = drawn(5, 3 * GROUP)
    made = grid.of(weight)
    assert made.codes.shape == (5, 3 * GROUP)
    assert made.scales.shape == (5, 3)
    assert made.scales.dtype == torch.float16
    error = (made.plain() - weight).abs().view(5, 3, GROUP)
    slack = 0.05 if grid is Q4 else 0.08  # the scale is rounded too, and with it 15 or 127 steps
    assert (error <= made.scales[..., None].float() * (0.5 + slack)).all()
    assert error.max() > 0


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_a_q4_file_are_found_again(seed):
    scales, least = drawn(4, 2, 1, seed=seed).abs().half().float(), drawn(4, 2, 1, seed=seed + 9).half().float()
    codes = torch.randint(0, 16, (4, 2, GROUP), generator=torch.Generator().manual_seed(seed)).float()
    codes[..., 0], codes[..., -1] = 0, 15  # the ends of a group are on its grid
    weight = (scales * codes + least).flatten(1)
    torch.testing.assert_close(Q4.of(weight).plain(), weight, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_a_q8_file_are_found_again(seed):
    scales = drawn(4, 2, 1, seed=seed).abs().half().float()
    codes = torch.randint(-127, 128, (4, 2, GROUP), generator=torch.Generator().manual_seed(seed)).float()
    codes[..., 0] = 127
    weight = (scales * codes).flatten(1)
    assert torch.equal(Q8.of(weight).plain(), weight)


@pytest.mark.parametrize("grid", [Q4, Q8])
@pytest.mark.parametrize("value", [0.25, 0.0])
def test_a_group_of_equal_weights_is_kept(grid, value):
    weight = torch.full((1, GROUP), value)
    torch.testing.assert_close(grid.of(weight).plain(), weight, rtol=2**-11, atol=0)


def quantised_inputs(x: torch.Tensor) -> torch.Tensor:
    """What the kernels make of activations: eight-bit codes by groups, in float64."""
    groups = x.unflatten(-1, (-1, GROUP)).double()
    scales = (groups.abs().amax(-1, keepdim=True) / 127).float().double()
    return (torch.where(scales > 0, groups / scales, 0).round() * scales).flatten(-2)


@NEEDS_KERNELS
@pytest.mark.parametrize("quantize", ["q4", "q8"])
@pytest.mark.parametrize("biased", [False, True])
def test_the_kernels_multiply_what_the_codes_stand_for(quantize, biased):
    inputs = 19 * GROUP
    weight = drawn(37, inputs)
    linear = Linear(weight, drawn(37, seed=1) if biased else None, layout="native", quantize=quantize)
    stored = GRIDS[quantize].of(weight).plain()
    assert torch.equal(linear.weight, stored)
    assert torch.equal(linear.rows(torch.tensor([36, 0, 17])), stored[[36, 0, 17]])
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 80):
        x = drawn(rows, inputs, seed=rows)
        exact = quantised_inputs(x) @ stored.double().T + (linear.bias.double() if biased else 0)
        torch.testing.assert_close(linear(x).double(), exact, rtol=0, atol=5e-2)
        assert (linear(x).double() - exact).abs().mean() < 1e-3  # a code may round the other way, once in a while
        assert torch.equal(linear(x)[:1], linear(x[:1]))


@NEEDS_KERNELS
@pytest.mark.parametrize("quantize", ["q4", "q8"])
def test_the_largest_codes_do_not_overflow(quantize):
    weight = torch.ones(16, GROUP)
    weight[:, ::2] = -1.0 if quantize == "q8" else 1.0
    if quantize == "q4":
        weight[:, 0] = 0.0  # code 0; all others 15
    linear = Linear(weight, layout="native", quantize=quantize)
    x = torch.full((5, GROUP), 127.0)
    x[:, ::2] = -127.0 if quantize == "q8" else 127.0
    torch.testing.assert_close(linear(x), x @ linear.weight.T, rtol=1e-3, atol=0)


@NEEDS_KERNELS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(bad):
    linear, x = Linear(drawn(20, 2 * GROUP), layout="native", quantize="q4"), drawn(3, 2 * GROUP)
    x[1, 40] = bad
    assert linear(x)[1].isnan().all()
    assert linear(x)[[0, 2]].isfinite().all()


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
            return Q8.of(weight).plain()
        return Q4.of(weight).plain() if weight.dim() == 2 else weight

    plain = {name: on_the_grid(name, weight) for name, weight in weights.items()}
    return made, Decoder.from_weights(config, plain.items(), max_len=128)


class OfQuantisedInputs(Linear):
    """torch's product of what the kernels make of activations."""

    def __init__(self, linear: Linear):
        self.__dict__ = dict(linear.by_torch().__dict__)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(quantised_inputs(x).float())


def by_operations(decoder: Decoder) -> Decoder:
    """Whole passes in torch, activations quantised before every product."""
    other = decoder.by_operations()
    other.head = OfQuantisedInputs(decoder.head)
    other.layers = [
        dataclasses.replace(
            layer, **{name: OfQuantisedInputs(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")}
        )
        for layer in decoder.layers
    ]
    return other


@NEEDS_KERNELS
def test_a_quantised_target_is_the_model_of_its_plain_weights(quantised, random_ids):
    made, plain = quantised
    ids = random_ids(30)
    found, same, near = (
        d.logits(d.run_layers(d.embed(ids), 0, d.new_cache())[0]) for d in (made, by_operations(made), plain)
    )
    assert (found - same).abs().mean() < 0.02 * same.std()  # a code may round the other way
    assert (found - near).abs().mean() < 0.1 * near.std()  # what eight bits of activations cost
    assert (found - same).abs().mean() < 0.3 * (found - near).abs().mean()
    assert made.precision == "q4"
    assert made.weight_bytes < 0.3 * plain.weight_bytes
    assert made.parameters == plain.parameters
    rows = torch.tensor([3, 1, 200])
    state = drawn(1, 96)
    torch.testing.assert_close(made.cut_head(rows)(state), made.head(state)[:, rows], rtol=0, atol=1e-5)


@NEEDS_KERNELS
def test_its_answers_do_not_depend_on_the_width_of_passes(quantised, random_ids):
    made, _ = quantised
    ids = random_ids(30)
    single, whole = made.new_cache(), made.new_cache()
    states = torch.cat([made.run_layers(made.embed([token]), i, single) for i, token in enumerate(ids)], dim=1)
    assert torch.equal(made.run_layers(made.embed(ids), 0, whole), states)
    assert torch.equal(made.logits(states[0]), torch.cat([made.logits(states[0, i : i + 1]) for i in range(30)]))
    answer = decode(Vanilla(made, Vanilla.Config()), ids, 20, frozenset()).token_ids
    assert len(answer) == 20


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
