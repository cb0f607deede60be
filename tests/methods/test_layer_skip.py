"""LayerSkip's steps against a literal reading of the paper, and what drafting costs where early exits are useless."""

from __future__ import annotations

import functools

import pytest
import torch

import methods
from bench.drafting.knobs import Costs
from bench.drafting.loop import decode, open_sequence
from bench.drafting.sampling import Sampler
from bench.errors import UserError
from methods.layer_skip import LayerSkip, LayerSkipConfig
from tests.reference import emitted

NEVER = frozenset()
LIMIT = 30
UNSURE = 0.2  # between the confidences of the drafts below
COSTS = Costs.parse("0.250/0.100/1:0.750/2:0.800/4:0.900/8:1.400/16:2.400")
PAPER = LayerSkip.presets["paper"]


class Reference:
    """Every draft from the whole text: transformers' states after some layers, its final norm and its LM head."""

    def __init__(self, model):
        self.model = model
        self.target = functools.cache(self._target)

    @torch.inference_mode()
    def _target(self, context: tuple[int, ...]):
        return self.model(torch.tensor([context]), output_hidden_states=True)

    @torch.inference_mode()
    def draft(self, context: tuple[int, ...], exit_layer: int) -> tuple[int, float]:
        state = self.target(context).hidden_states[exit_layer][0, -1]
        best = self.model.lm_head(self.model.model.norm(state)).softmax(-1).max(-1)
        return int(best.indices), float(best.values)

    def steps(self, prompt, exit_layer, gamma, threshold) -> list[tuple[list[int], int, int]]:
        """(emitted, drafted, accepted) of each step."""
        context = tuple(prompt)
        context += (int(self.target(context).logits[0, -1].argmax()),)
        steps = []
        while (room := LIMIT - (len(context) - len(prompt))) > 0:
            drafts: list[int] = []
            confidence = 1.0
            while len(drafts) < min(gamma, room - 1) and confidence >= threshold:
                token, confidence = self.draft((*context, *drafts), exit_layer)
                drafts.append(token)
            choices = self.target((*context, *drafts)).logits[0, len(context) - 1 :].argmax(-1).tolist()
            added = emitted(drafts, choices)
            context += tuple(added)
            steps.append((added, len(drafts), len(added) - 1))
        return steps


@pytest.fixture
def scene(tiny_model, tiny_decoder):
    """(kind, faint) -> (hf_model, our decoder of 4 layers)."""

    def make(kind="tied", faint=True):
        config, model = tiny_model(kind, faint=faint)
        return model, tiny_decoder(config, model)

    return make


def counters(answer):
    return [(step.emitted, step.drafted, step.accepted) for step in answer.steps]


def found_steps(decoder, prompt, **knobs):
    return counters(decode(LayerSkip(decoder, LayerSkipConfig(**knobs)), prompt, LIMIT, NEVER))


@pytest.mark.parametrize("exit_layer", [1, 3])
@pytest.mark.parametrize("gamma", [1, 6])
@pytest.mark.parametrize("threshold", [0.0, UNSURE, 1.0])
def test_every_step_is_the_papers(exit_layer, gamma, threshold, scene, random_ids):
    model, decoder = scene()
    prompt = random_ids(11, seed=2)
    expected = Reference(model).steps(prompt, exit_layer, gamma, threshold)
    knobs = {"exit_layer": exit_layer, "gamma": gamma, "threshold": threshold, "stop": "threshold"}
    assert found_steps(decoder, prompt, **knobs) == expected


def test_every_step_is_the_papers_on_every_kind_of_model(kind, scene, random_ids):
    model, decoder = scene(kind)
    prompt = random_ids(17, seed=8)
    assert found_steps(decoder, prompt, **PAPER) == Reference(model).steps(prompt, 1, 6, 0.0)  # a quarter of 4 layers


def test_the_settings_above_meet_every_case(scene, random_ids):
    model, _ = scene()
    reference, prompt = Reference(model), random_ids(11, seed=2)
    assert {0, 1, 4, 6} <= {accepted for *_, accepted in reference.steps(prompt, 3, 6, 0.0)}
    drafted = {drafted for threshold in (UNSURE, 1.0) for _, drafted, _ in reference.steps(prompt, 3, 6, threshold)}
    assert {1, 2, 3} < drafted
    assert reference.steps(prompt, 1, 1, 0.0) != reference.steps(prompt, 3, 1, 0.0)


@pytest.mark.parametrize("knobs", [PAPER, {"costs": str(COSTS)}])
def test_the_first_layers_never_run_twice(knobs, scene, random_ids, monkeypatch):
    _, decoder = scene()
    prompt, rows = random_ids(11, seed=2), [0] * 4
    run_layer = decoder.run_layer
    numbers = {id(layer): number for number, layer in enumerate(decoder.layers)}

    def counting(layer, x, *rest):
        rows[numbers[id(layer)]] += x.shape[1]
        return run_layer(layer, x, *rest)

    monkeypatch.setattr(decoder, "run_layer", counting)
    monkeypatch.setattr(decoder, "native_layers", None)  # layer by layer
    steps = found_steps(decoder, prompt, **knobs)
    assert rows == [len(prompt) + sum(drafted + 1 for _, drafted, _ in steps)] * 4


def spent(method, prompt, limit):
    """The answer, and what drafting cost, in vanilla steps."""
    answer = decode(method, prompt, limit, NEVER)
    return answer, sum(
        step.calls * COSTS.draft[0] + step.drafted * COSTS.shallow + COSTS.verifying(1 + step.drafted) - 0.75
        for step in answer.steps
    )


def test_it_switches_itself_off_where_hardly_a_draft_is_right(scene, random_ids, hf_greedy):
    model, decoder = scene(faint=False)
    prompt = random_ids(12, seed=1)
    steps = Reference(model).steps(prompt, 1, 1, 0.0)
    assert sum(accepted for *_, accepted in steps) < len(steps) / 5
    method = LayerSkip(decoder, LayerSkipConfig(costs=str(COSTS)))
    answer, cost = spent(method, prompt, 120)
    assert answer.token_ids == hf_greedy(model, prompt, 120)
    assert 0 < cost <= 0.75 + 0.01 * 120 + sum(step.accepted for step in answer.steps)
    assert sum(not step.calls for step in answer.steps) > 100


def test_an_idle_step_is_one_pass_of_all_layers(scene, random_ids):
    _, decoder = scene()
    method = LayerSkip(decoder, LayerSkipConfig(costs=str(COSTS)))
    sequence = open_sequence(method, random_ids(12, seed=1))
    sequence.notes.rule.pace.allowance = 0.0
    (draft,) = method.propose([sequence], [9])
    assert (draft.states, draft.resume_layer, list(draft.tokens)) == (None, 0, [])


def test_it_keeps_drafting_where_drafts_are_right(scene, random_ids):
    _, decoder = scene()
    answer, cost = spent(
        LayerSkip(decoder, LayerSkipConfig(exit_layer=3, costs=str(COSTS))), random_ids(12, seed=1), 120
    )
    assert sum(step.accepted for step in answer.steps) > cost
    assert sum(step.drafted for step in answer.steps) > 60


def test_samples_near_temperature_0_are_the_greedy_answer(scene, hf_greedy, random_ids):
    model, decoder = scene()
    prompt = random_ids(12, seed=1)
    for knobs in (PAPER, {"costs": str(COSTS)}):
        method = LayerSkip(decoder, LayerSkipConfig(**knobs))
        assert decode(method, prompt, 30, NEVER, Sampler(1e-4)).token_ids == hf_greedy(model, prompt, 30)


def test_the_default_exit_is_a_quarter_and_costs_repeat_a_run(scene, random_ids):
    _, decoder = scene()
    method = LayerSkip(decoder, LayerSkipConfig())
    assert method.knobs()["exit_layer"] == method.resume_layer == decoder.config.layers // 4
    again = LayerSkip(decoder, LayerSkip.repeated(method.config, method.measured))
    assert again.costs == method.costs
    assert again.measured == {}
    prompt = random_ids(12, seed=1)
    assert counters(decode(again, prompt, LIMIT, NEVER)) == counters(decode(method, prompt, LIMIT, NEVER))
    forced, reach = method.probing(5)
    assert (forced.gamma, forced.stop, reach) == (5, "threshold", 5)


def test_an_exit_after_the_last_layer_is_refused(scene):
    _, decoder = scene()
    with pytest.raises(UserError, match=r"exit_layer=4 leaves no layers to verify: .* has 4, take at most 3"):
        LayerSkip(decoder, LayerSkipConfig(exit_layer=4))


@pytest.mark.parametrize("knob", ["exit_layer=-1", "gamma=0", "gamma=128", "threshold=1.5", "stop=never", "costs=1"])
def test_knobs_out_of_range_are_refused(knob):
    with pytest.raises(UserError, match=knob.partition("=")[0]):
        methods.parse(f"layer-skip:{knob}")
