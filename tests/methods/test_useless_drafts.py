"""What draft models cost that promise much and keep nothing: random weights that claim to be right in 90%."""

from __future__ import annotations

import pytest
import torch

from bench.drafting.knobs import Costs
from bench.drafting.loop import decode
from methods.kangaroo.method import Kangaroo, KangarooConfig
from methods.layer_skip import LayerSkip, LayerSkipConfig
from methods.medusa.method import Medusa, MedusaConfig

LIMIT = 128
SHARED = Costs.parse("0.250/0.100/1:0.750/2:0.780/4:0.840/8:0.960/16:1.200")  # a quarter of the layers drafts
HEADS = Costs.parse("0/0.060+0.080+0.100/1:1.000/2:1.030/4:1.090/8:1.210/16:1.450")


@pytest.fixture
def target(tiny_model, tiny_decoder):
    """(hf_model, our decoder of 4 layers)."""
    config, model = tiny_model("tied")
    return model, tiny_decoder(config, model)


def kangaroo(target, tiny_adapter, **knobs):
    model, decoder = target
    claimed = {"calibration": {"accepted": [0.9] * 21, "following": [0.9] * 21}}
    weights = str(tiny_adapter(model, useful=False, changes=claimed))
    return Kangaroo(decoder, KangarooConfig(weights=weights, stop="gain", costs=str(SHARED), **knobs))


def medusa(target, tiny_heads, **knobs):
    model, decoder = target
    claimed = (torch.zeros(40, 3), [40], [0])  # every first choice was right
    weights = str(tiny_heads(model, useful=False, ranks=claimed))
    return Medusa(decoder, MedusaConfig(weights=weights, costs=str(HEADS), **knobs))


def passes_cost(method, steps):
    """The forward passes of an answer, in vanilla steps."""
    costs = method.costs
    return sum(
        costs.shallow * (1 + step.drafted) + method.draft_cost(costs) * step.calls + costs.verifying(1 + step.drafted)
        for step in steps
    )


@pytest.mark.parametrize("name", ["kangaroo", "kangaroo of a beam", "medusa", "layer-skip"])
def test_a_useless_draft_model_costs_at_most_three_percent(
    name, target, tiny_adapter, tiny_heads, random_ids, hf_greedy
):
    method = {
        "kangaroo": lambda: kangaroo(target, tiny_adapter),
        "kangaroo of a beam": lambda: kangaroo(target, tiny_adapter, beam=3),
        "medusa": lambda: medusa(target, tiny_heads),
        "layer-skip": lambda: LayerSkip(target[1], LayerSkipConfig(costs=str(SHARED))),
    }[name]()
    prompt = random_ids(9, seed=4)
    answer = decode(method, prompt, LIMIT, frozenset())
    assert answer.token_ids == hf_greedy(target[0], prompt, LIMIT)
    calls = [step.calls for step in answer.steps]
    assert sum(step.accepted for step in answer.steps) < 8  # they are useless
    assert passes_cost(method, answer.steps) <= 1.03 * (LIMIT - 1)
    assert calls[0] > 0
    assert 0 < sum(calls[LIMIT // 2 :]) < 8  # tried again, though rarely


def test_a_tree_that_is_named_is_verified_in_every_step_unless_told_otherwise(target, tiny_heads, random_ids):
    def drafting(method):
        steps = decode(method, random_ids(9, seed=4), LIMIT, frozenset()).steps
        return [bool(step.drafted) for step in steps[:-1]]  # the last one has no budget for drafts

    named = medusa(target, tiny_heads, tree="0/0-0")
    assert (named.config.stop, all(drafting(named))) == ("never", True)
    stopping = medusa(target, tiny_heads, tree="0/0-0", stop="gain")
    assert (stopping.config.stop, sum(drafting(stopping)) < 30) == ("gain", True)
    chosen = medusa(target, tiny_heads, stop="never")
    assert (chosen.config.stop, all(drafting(chosen))) == ("never", True)


def test_a_run_repeated_with_the_tree_it_recorded_decides_the_same(target, tiny_heads, random_ids):
    method = medusa(target, tiny_heads)
    recorded = method.knobs() | method.measured
    again = Medusa(target[1], Medusa.repeated(MedusaConfig(), recorded))
    first, second = (decode(one, random_ids(9, seed=4), LIMIT, frozenset()).steps for one in (method, again))
    assert [step.drafted for step in first] == [step.drafted for step in second]
    assert again.probing(2)[0].stop == "never"
