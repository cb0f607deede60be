"""Beyond the paper: an adapter that reads the target's final states, against a reference without caches; and the rule
that stops drafting where it no longer pays."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from bench.drafting.costs import Costs, measure
from bench.drafting.loop import decode
from bench.drafting.stopping import CALIBRATED_AT, Calibration, Candidate, GainRule
from methods.kangaroo.adapter import load_adapter
from methods.kangaroo.method import Kangaroo, KangarooConfig
from tests.reference import emitted

LIMIT = 30
D, FFN, EXIT = 48, 40, 2


class Reference:
    """The adapter from transformers' modules, over whole sequences, nothing kept from one draft to the next."""

    def __init__(self, model, folder):
        self.model = model
        weights = load_file(folder / "adapter.safetensors")
        config = json.loads((folder / "config.json").read_text())
        llama = LlamaConfig(
            hidden_size=D,
            intermediate_size=FFN,
            num_attention_heads=4,
            num_key_value_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attn_implementation="eager",
        )
        self.input = weights["input_proj.weight"]
        self.rotary = LlamaRotaryEmbedding(llama)
        self.attention, self.norm = LlamaAttention(llama, layer_idx=0), LlamaRMSNorm(D, 1e-6)
        self.input_norm, self.ffn_norm = LlamaRMSNorm(D, 1e-6), LlamaRMSNorm(D, 1e-6)
        self.mlp = LlamaMLP(llama) if config.get("ffn") else None
        layer = "layers.0."
        for module, prefix in (
            (self.attention, layer + "self_attn."),
            (self.norm, "norm."),
            (self.input_norm, layer + "input_layernorm."),
            *(((self.mlp, layer + "mlp."), (self.ffn_norm, layer + "post_attention_layernorm.")) if self.mlp else ()),
        ):
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            module.load_state_dict(own)

    @torch.inference_mode()
    def states(self, h: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        x = F.linear(torch.cat((h, before), dim=-1), self.input)
        n = x.shape[1]
        mask = torch.full((1, 1, n, n), -torch.inf).triu(1)
        rope = self.rotary(x, torch.arange(n)[None])
        x = x + self.attention(self.input_norm(x), position_embeddings=rope, attention_mask=mask)[0]
        if self.mlp:
            x = x + self.mlp(self.ffn_norm(x))
        return self.norm(x)

    @torch.inference_mode()
    def chain(self, context: list[int], newest: int, drafts: int) -> list[tuple[torch.Tensor, int]]:
        """(state, token) of each draft after context[:newest + 1], whose final states are known before `newest`.

        Drafts follow the text of `context` where it goes on, else themselves.
        """
        found = []
        tokens = context[: newest + 1]
        own: list[torch.Tensor] = []
        for i in range(drafts):
            out = self.model(torch.tensor([tokens]), output_hidden_states=True)
            finals = out.hidden_states[-1][:, :newest]
            before = torch.cat((torch.zeros(1, 1, D), finals, *own), dim=1)
            state = self.states(out.hidden_states[EXIT], before)[:, -1:]
            own.append(state)
            token = int(self.model.lm_head(state)[0, -1].argmax())
            found.append((state[0, 0], token))
            following = newest + 1 + i
            tokens = [*tokens, context[following] if following < len(context) else token]
        return found

    def steps(self, prompt: list[int], gamma: int) -> list[tuple[list[int], int]]:
        """(emitted, drafted) of each step, drafting always to the end."""
        context = [*prompt, self.choices(prompt)[-1]]
        steps = []
        while len(context) - len(prompt) < LIMIT:
            room = LIMIT - (len(context) - len(prompt))
            drafts = [token for _, token in self.chain(context, len(context) - 1, min(gamma, room - 1))]
            choices = self.choices(context + drafts)[len(context) - 1 :]
            steps.append((emitted(drafts, choices), len(drafts)))
            context += steps[-1][0]
        return steps

    @torch.inference_mode()
    def choices(self, tokens: list[int]) -> list[int]:
        return self.model(torch.tensor([tokens])).logits[0].argmax(-1).tolist()


@pytest.fixture(scope="module", params=[0, FFN], ids=["attention only", "with FFN"])
def scene(request, tiny_model, tiny_decoder, tiny_adapter):
    """(decoder, adapter's folder, reference); the projection passes on most of the exit state, so some drafts hit."""
    config, model = tiny_model("tied", faint=True)
    generator = torch.Generator().manual_seed(11)

    def small(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.035

    tensors = {"input_proj.weight": torch.cat((torch.eye(D), torch.zeros(D, D)), dim=1) + small(D, 2 * D)}
    if request.param:
        tensors |= {
            "layers.0.mlp.gate_proj.weight": small(FFN, D),
            "layers.0.mlp.up_proj.weight": small(FFN, D),
            "layers.0.mlp.down_proj.weight": small(D, FFN),
            "layers.0.post_attention_layernorm.weight": 1 + small(D),
        }
    curve = list(CALIBRATED_AT)
    changes = {
        "exit_layer": EXIT,
        "feedback": True,
        "ffn": request.param,
        "calibration": {"accepted": curve, "following": curve},
    }
    folder = tiny_adapter(model, changes=changes, tensors=tensors)
    return tiny_decoder(config, model), folder, Reference(model, folder)


def steps_of(decoder, folder, prompt, **knobs):
    method = Kangaroo(decoder, KangarooConfig(weights=str(folder), **knobs))
    return decode(method, prompt, LIMIT, frozenset()).steps


@pytest.mark.parametrize("gamma", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 13])
def test_every_step_is_the_references(scene, random_ids, gamma, length):
    decoder, folder, reference = scene
    prompt = random_ids(length, seed=length)
    expected = reference.steps(prompt, gamma)
    found = steps_of(decoder, folder, prompt, gamma=gamma, threshold=0.0, stop="threshold")
    assert [(step.emitted, step.drafted) for step in found] == expected
    assert len({len(emitted) for emitted, _ in expected}) > 1  # rejections, and acceptance that is read again


@pytest.mark.parametrize("threshold", [0.15, 1.0])
def test_early_stops_change_the_drafts_but_not_what_is_emitted(scene, random_ids, threshold):
    decoder, folder, reference = scene
    prompt = random_ids(9, seed=3)
    found = steps_of(decoder, folder, prompt, gamma=4, threshold=threshold, stop="threshold")
    whole = [token for emitted, _ in reference.steps(prompt, 4) for token in emitted]
    assert [token for step in found for token in step.emitted] == whole
    assert any(step.drafted < 4 for step in found[:-4])


def test_unrolled_states_are_those_of_drafting(scene, random_ids):
    decoder, folder, reference = scene
    tokens = random_ids(12, seed=6)
    with torch.inference_mode():
        out = reference.model(torch.tensor([tokens]), output_hidden_states=True)
    adapter, _ = load_adapter(folder, decoder)
    adapter.prepare(64, torch.device("cpu"))
    passes = list(adapter.unrolled(out.hidden_states[EXIT], out.hidden_states[-1], 3))
    for begin in (0, 4, 9):
        for w, (state, _) in enumerate(reference.chain(tokens, begin, min(3, len(tokens) - begin))):
            torch.testing.assert_close(passes[w][0, begin + w], state, rtol=0, atol=1e-4)


# --- stopping by gain ------------------------------------------------------------------------------------------------

FREE = Costs(0.0, (0.0,), ((1, 1.0), (9, 1.0)))
DEAR = Costs(0.2, (0.1,), ((1, 0.8), (2, 1.5), (3, 2.2), (9, 8.0)))
IDENTITY = Calibration(CALIBRATED_AT, CALIBRATED_AT)


@pytest.mark.parametrize(("costs", "drafted"), [(FREE, {5}), (DEAR, {0})])
def test_drafts_that_cost_nothing_are_all_made_and_dear_ones_not_at_all(scene, random_ids, costs, drafted):
    decoder, folder, reference = scene
    prompt = random_ids(9, seed=3)
    found = steps_of(decoder, folder, prompt, gamma=5, stop="gain", costs=str(costs))
    assert {step.drafted for step in found[:-5]} == drafted
    whole = [token for emitted, _ in reference.steps(prompt, 5) for token in emitted]
    assert [token for step in found for token in step.emitted] == whole


def test_some_drafts_are_dropped_unverified_and_the_adapter_still_reads_what_it_should(scene, random_ids):
    decoder, folder, reference = scene
    prompt = random_ids(9, seed=3)
    costs = Costs(0.05, (0.01,), ((1, 0.95), (7, 1.07)))
    method = Kangaroo(decoder, KangarooConfig(weights=str(folder), gamma=4, stop="gain", costs=str(costs)))
    found = decode(method, prompt, LIMIT, frozenset()).steps
    assert len({step.drafted for step in found[:-4]}) > 1
    context = [*prompt, reference.choices(prompt)[-1]]
    for step in found:
        tokens = [token for _, token in reference.chain(context, len(context) - 1, step.drafted)]
        assert tokens[: step.accepted] == step.emitted[: step.accepted]
        if step.accepted < step.drafted:
            assert tokens[step.accepted] != step.emitted[step.accepted]
        context += step.emitted


def kept_by(rule: GainRule, most: int, *offers: tuple[int, float]) -> list[tuple[int, float]]:
    """What `rule` keeps of candidates given as (parent, confidence)."""
    kept = rule.keep([Candidate(parent, 7, confidence) for parent, confidence in offers], most)
    return [(candidate.parent, candidate.confidence) for candidate in kept]


def test_gain_rule_worked_out_by_hand():
    costs = Costs(0.1, (0.05,), ((1, 0.9), (2, 1.0), (3, 1.2), (4, 1.3)))
    rule = GainRule(IDENTITY, costs)
    rule.begin()
    assert rule.goes_on()  # a first draft: chance 1 against 0.05 + 0.1 + 0.1
    assert kept_by(rule, 1, (-1, 0.15)) == []  # 0.15 against 0.1 + (1.0 - 0.9)
    assert not rule.goes_on()
    rule.end([8])  # a draft was made, though none verified: 0.1 + 0.05 + 0.9
    assert rule.pace.tokens / rule.pace.time == pytest.approx(9 / 9.05)
    assert rule.pace.rate == 1  # at least vanilla's
    rule = GainRule(IDENTITY, costs)
    rule.begin()
    assert kept_by(rule, 1, (-1, 0.8)) == [(-1, 0.8)]
    assert rule.goes_on()  # 0.8 * 0.8 against 0.05 + 0.1 + 0.2
    assert kept_by(rule, 1, (0, 0.5)) == [(0, 0.5)]  # 0.4 against 0.1 + (1.2 - 1.0)
    assert not rule.goes_on()  # 0.4 * 0.5 against 0.05 + 0.1 + 0.1
    rule.end([7, 7, 8])  # 3 tokens in 0.1 * 3 + 0.05 * 2 + 1.2 = 1.6 steps, after 8 in 8
    assert rule.pace.rate == pytest.approx(11 / 9.6)


def test_gain_rule_of_a_beam_worked_out_by_hand():
    costs = Costs(0.1, (0.05,), ((1, 0.9), (2, 1.0), (4, 1.1), (8, 1.9)))
    halves = Calibration(CALIBRATED_AT, tuple(at / 2 for at in CALIBRATED_AT))
    rule = GainRule(halves, costs)
    rule.begin()
    # Best first: 0.5 against 0.1 + 0.1, then 0.3 against 0.05, then 0.04 against 0.05.
    assert kept_by(rule, 3, (-1, 0.3), (-1, 0.04), (-1, 0.5)) == [(-1, 0.5), (-1, 0.3)]
    assert not rule.goes_on()  # 0.5 * 0.25 + 0.3 * 0.15 = 0.17 against 0.05 + 0.1 + 0.05
    rule = GainRule(halves, costs)
    rule.begin()
    assert kept_by(rule, 2, (-1, 0.4), (-1, 0.2), (-1, 0.6)) == [(-1, 0.6), (-1, 0.4)]  # 2 at most
    assert rule.goes_on()  # 0.6 * 0.3 + 0.4 * 0.2 = 0.26 against the same
    # 0.4 * 0.9 = 0.36 against 0.1 + 0.05, 0.6 * 0.5 = 0.3 against 0.2, 0.4 * 0.4 = 0.16 against 0.2.
    assert kept_by(rule, 4, (0, 0.5), (1, 0.4), (1, 0.9)) == [(1, 0.9), (0, 0.5)]
    rule.end([7, 8])  # 2 tokens in 0.1 * 3 + 0.05 * 2 + 1.3 = 1.7 steps, after 8 in 8
    assert rule.pace.rate == pytest.approx(10 / 9.7)


def test_at_a_better_rate_a_draft_has_to_earn_more():
    costs = Costs(0.0, (0.0,), ((1, 1.0), (2, 1.2)))
    rule = GainRule(IDENTITY, costs)
    rule.begin()
    assert kept_by(rule, 1, (-1, 0.21)) == [(-1, 0.21)]
    for _ in range(100):
        rule.begin()
        kept_by(rule, 1, (-1, 1.0))
        rule.end([7, 8])  # 2 tokens in 1.2 steps
    rule.begin()
    assert kept_by(rule, 1, (-1, 0.3)) == []  # 0.3 against 0.2 at 208 tokens in 128 steps
    assert kept_by(rule, 1, (-1, 0.35)) == [(-1, 0.35)]


def test_measured_costs_are_recorded_and_repeat_a_run(scene, random_ids):
    decoder, folder, _ = scene
    prompt = random_ids(9, seed=3)
    method = Kangaroo(decoder, KangarooConfig(weights=str(folder), gamma=3, stop="gain"))
    first = decode(method, prompt, LIMIT, frozenset()).steps
    assert method.config.costs == ""  # as asked
    costs = Costs.parse(method.measured["costs"])
    assert [positions for positions, _ in costs.verify][:8] == list(range(1, 9))
    assert costs.shallow + costs.verify[0][1] == pytest.approx(1, abs=2e-3)
    assert [cost for _, cost in costs.verify] == sorted(cost for _, cost in costs.verify)
    again = steps_of(decoder, folder, prompt, gamma=3, stop="gain", costs=method.measured["costs"])
    assert [(step.emitted, step.drafted) for step in again] == [(step.emitted, step.drafted) for step in first]


def test_no_more_is_drafted_than_the_costs_say_anything_of(scene, random_ids):
    decoder, folder, _ = scene
    prompt = random_ids(9, seed=3)
    for knobs, most in (({"gamma": 6}, 3), ({"gamma": 4, "beam": 2, "nodes": 20}, 6), ({"gamma": 6}, 1)):
        costs = f"0/0/1:1/{most}:1" if most > 1 else "0/0/1:1"
        found = steps_of(decoder, folder, prompt, stop="gain", costs=costs, **knobs)
        assert {step.drafted for step in found[:-6]} == {most - 1}


def test_without_a_calibration_the_question_tells_what_drafts_are_worth(
    scene, tiny_adapter, tiny_model, hf_greedy, random_ids
):
    model, prompt = tiny_model("tied", faint=True)[1], random_ids(9, seed=3)
    drafted = []
    for useful in (True, False):
        folder = tiny_adapter(model, useful=useful)
        steps = steps_of(scene[0], folder, prompt, gamma=3, stop="gain", costs="0.1/0.1/1:0.9/2:1.1/4:1.4")
        assert [token for step in steps for token in step.emitted] == hf_greedy(model, prompt, LIMIT)[1:]
        drafted.append(sum(step.drafted for step in steps))
    assert drafted[0] > drafted[1]


def test_costs_are_read_back_as_written():
    assert str(DEAR) == "0.200/0.100/1:0.800/2:1.500/3:2.200/9:8.000"
    several = Costs(0.0, (0.1, 0.15), ((1, 1.0), (5, 1.5)))
    assert str(several) == "0.000/0.100+0.150/1:1.000/5:1.500"
    for costs in (DEAR, several):
        assert Costs.parse(str(costs)) == costs


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.1/0.2",
        "0.1/x/1:1.0",
        "0.1/0.2+x/1:1.0",
        "0.1//1:1.0",
        "0.1/0.2+-0.1/1:0.9",
        "0.1/0.2/1.0/1.1",  # as records had them once
        "0.1/0.2/1:0.9/2:x",
        "0.1/0.2/1:0.9/1.5:1",
        "0.1/0.2/2:0.9/3:1.0",  # nothing said of one position
        "0.1/0.2/1:0.9/3:1.1/2:1.0",
        "0.1/0.2/1:0.9/1:1.0",
        "-0.1/0.2/1:0.9",
        "0.1/0.2/1:0.9/2:-1",
    ],
)
def test_costs_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"costs={text!r} must be shallow/draft/1:verify/2:")):
        Costs.parse(text)


def test_between_measured_widths_verification_costs_what_lies_between():
    costs = Costs.parse("0/0/1:1/2:1.5/6:3.5/7:5")
    assert [costs.verifying(n) for n in range(1, 8)] == pytest.approx([1, 1.5, 2, 2.5, 3, 3.5, 5])
    assert costs.most == 7
    assert costs.verifying(8) == math.inf


def test_knobs_stored_with_the_weights_are_used_until_others_are_asked_for(scene, tmp_path):
    decoder, folder, _ = scene
    config = json.loads((folder / "config.json").read_text())
    for name in ("adapter.safetensors",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config["knobs"] = {"gamma": 3, "stop": "gain", "threshold": 0.25}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = Kangaroo(decoder, KangarooConfig(weights=str(tmp_path))).config
    assert (ran.gamma, ran.stop, ran.threshold) == (3, "gain", 0.25)
    ran = Kangaroo(decoder, KangarooConfig(weights=str(tmp_path), gamma=2, threshold=0)).config
    assert (ran.gamma, ran.stop, ran.threshold, ran.costs) == (2, "threshold", 0, "")


def test_measure_gives_one_cost_a_width_and_one_a_draft(scene):
    decoder, *_ = scene
    calls = []
    costs = measure(decoder, EXIT, [lambda: calls.append("one"), lambda: calls.append("two")])
    assert [positions for positions, _ in costs.verify][:8] == list(range(1, 9))  # dear passes end the table after 8
    assert len(costs.draft) == 2
    assert set(calls) == {"one", "two"}


def test_passes_are_measured_once_for_all_methods_that_leave_at_one_layer(scene, monkeypatch):
    decoder, *_ = scene
    first = measure(decoder, EXIT, [lambda: None])
    monkeypatch.setattr("bench.drafting.costs._measure_passes", None)
    again = measure(decoder, EXIT, [lambda: None, lambda: None])
    assert (again.shallow, again.verify) == (first.shallow, first.verify)
    assert measure(decoder, EXIT, []).draft == (0.0,)


def test_widest_pass_of_a_method_is_measured_however_dear(scene, monkeypatch):
    decoder, *_ = scene
    monkeypatch.setattr("bench.drafting.costs._affordable", lambda widths, *_: widths[:3])
    fresh = copy.copy(decoder)  # nothing is measured of it yet
    assert measure(fresh, EXIT, []).most == 3
    assert measure(fresh, EXIT, [], widest=64).verify[-1][0] == 64
