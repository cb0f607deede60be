"""DFlash and DSpark: the network against a literal reading of the official forward, their files, and their rule."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import methods
from bench.drafting.knobs import Costs
from bench.drafting.loop import decode, open_sequence
from bench.drafting.sampling import Sampler
from bench.drafting.stopping import BlockRule
from bench.errors import UserError
from bench.models import checkpoints
from methods.dflash.method import DFlash, DFlashConfig
from methods.dflash.network import Drafter, read_form, read_weights
from methods.dspark.method import DSpark, DSparkConfig
from tests.methods.tiny_weights import dflash as official

NEVER = frozenset()
CLASSES = {"dflash": (DFlash, DFlashConfig), "dspark": (DSpark, DSparkConfig)}
WHOLE = {"stop": "threshold"}
COSTS = Costs.parse("0.000/0.150/1:1.000/2:1.050/4:1.100/8:1.200/16:1.600")
MARKOV = "markov_head.markov_w1.weight"


@pytest.fixture
def scene(tiny_model, tiny_decoder, tiny_weights):
    """(method's name, kind, options of the weights) -> (hf_model, our decoder, the checkpoint's folder)."""

    def make(name="dflash", kind="tied", **options):
        config, model = tiny_model(kind, faint=True)
        return model, tiny_decoder(config, model), tiny_weights(name, model, **options)

    return make


def build(name, decoder, folder, **knobs):
    method, config = CLASSES[name]
    return method(decoder, config(weights=str(folder), **knobs))


def read(folder):
    """The checkpoint's config.json and float64 weights."""
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    return json.loads((folder / "config.json").read_text()), weights


def watch(method, monkeypatch):
    """What the method drafts: (context, draft) of each step."""
    seen, propose = [], method.propose

    def watched(sequences, budgets):
        (context,) = (list(sequence.context) for sequence in sequences)
        drafts = propose(sequences, budgets)
        seen.append((context, drafts[0]))
        return drafts

    monkeypatch.setattr(method, "propose", watched)
    return seen


@pytest.mark.parametrize(
    ("options", "double"),
    [
        ({}, True),
        ({"anchor": True}, True),
        ({"changes": {"attention_bias": True}}, True),
        ({}, False),
    ],
    ids=["z-lab", "deepspec", "biased", "kernels"],
)
def test_the_network_is_the_official_one(options, double, tiny_model, tiny_decoder, tiny_weights):
    """The context added at once and step by step, and blocks in between that leave nothing behind.

    Tables of RoPE are float32 in transformers, here and there.
    """
    config, model = tiny_model("tied", faint=True)
    dtype = torch.float64 if double else torch.float32
    decoder = tiny_decoder(config, copy.deepcopy(model).to(dtype), dtype=dtype)
    folder = tiny_weights("dflash", model, useful=False, **options)
    form = read_form(folder, decoder)
    drafter = Drafter(form, read_weights(folder, form.shapes()), decoder, "none")
    values, weights = read(folder)
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(23, 2 * config.hidden_size, generator=generator, dtype=torch.float64)
    model = copy.deepcopy(model).double()
    at_once, by_steps = drafter.decoder.new_cache(), drafter.decoder.new_cache()
    with torch.inference_mode():
        drafter.read(context.to(dtype)[None], 0, at_once)
        drafter.read(context.to(dtype)[None, :9], 0, by_steps)
        for start in range(9, 23, 2):
            block = drafter.block(start, start, by_steps)
            x = official.embed_block(model, values, start)
            expected = official.forward(weights, values, context[:start], x, torch.tensor(float(start)))[form.first :]
            assert block.shape == (values["block_size"] - form.first, config.hidden_size)
            torch.testing.assert_close(block.double(), expected, atol=1e-6 if double else 2e-4, rtol=0)
            drafter.read(context.to(dtype)[None, start : start + 2], start, by_steps)
        found = [drafter.block(7, 23, cache) for cache in (at_once, by_steps)]
        expected = official.forward(
            weights, values, context, official.embed_block(model, values, 7), torch.tensor(23.0)
        )[form.first :]
    for states in found:
        torch.testing.assert_close(states.double(), expected, atol=1e-6 if double else 2e-4, rtol=0)


def literal(model, values, weights, context):
    """The drafts after a context as published: greedy, and DSpark's confidences, by float64."""
    rows = official.features(model, values, context[:-1])
    x = official.embed_block(model, values, context[-1])
    first = int("dflash_config" in values)
    states = official.forward(weights, values, rows, x, torch.tensor(float(len(context) - 1)))[first:]
    newest, tokens, confidences = context[-1], [], []
    for state, logits in zip(states, F.linear(states, model.lm_head.weight), strict=True):
        if MARKOV in weights:
            latent = weights[MARKOV][newest]
            logits = logits + weights["markov_head.markov_w2.weight"] @ latent
        if "confidence_head.proj.weight" in weights:
            both = torch.cat((state, latent)) if values["confidence_head_with_markov"] else state
            head, bias = weights["confidence_head.proj.weight"][0], weights["confidence_head.proj.bias"][0]
            confidences.append(float(torch.sigmoid(head @ both + bias)))
        else:
            confidences.append(float(logits.softmax(-1).max()))
        newest = int(logits.argmax())
        tokens.append(newest)
    return tokens, confidences


@pytest.mark.parametrize("kind", ["tied", "qwen3"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dflash", {}),
        ("dflash", {"anchor": True}),
        ("dspark", {"useful": False}),
        ("dspark", {"heads": {"confidence_head_with_markov": False}}),
        ("dspark", {"heads": {"enable_confidence_head": False}}),
    ],
)
@pytest.mark.parametrize("knobs", [WHOLE, {"costs": str(COSTS)}], ids=["whole", "gain"])
def test_every_draft_is_the_official_one(name, options, knobs, kind, scene, random_ids, monkeypatch):
    """From transformers' hidden states after id + 1 layers, also behind steps that drafted nothing."""
    model, decoder, folder = scene(name, kind, **options)
    method = build(name, decoder, folder, **knobs)
    steps = watch(method, monkeypatch)
    decode(method, random_ids(12, seed=1), 30, NEVER)
    model, (values, weights) = copy.deepcopy(model).double(), read(folder)
    with torch.inference_mode():
        for context, draft in steps:
            tokens, confidences = literal(model, values, weights, context)
            count = len(draft.tokens)
            assert list(draft.tokens) == tokens[:count]
            assert draft.confidences is None or draft.confidences == pytest.approx(confidences[:count], abs=1e-4)
            if knobs == WHOLE:
                assert count == min(len(tokens), 12 + 30 - len(context) - 1)
    assert any(draft.tokens for _, draft in steps)


@pytest.mark.parametrize("name", CLASSES)
def test_a_threshold_cuts_before_the_first_confidence_below_it(name, scene, random_ids, monkeypatch):
    model, decoder, folder = scene(name)
    method = build(name, decoder, folder, stop="threshold", threshold=0.6)
    steps = watch(method, monkeypatch)
    decode(method, random_ids(12, seed=1), 30, NEVER)
    model, (values, weights) = copy.deepcopy(model).double(), read(folder)
    counts = set()
    with torch.inference_mode():
        for context, draft in steps:
            _, said = literal(model, values, weights, context)
            wanted = next((i for i, one in enumerate(said) if one < 0.6), len(said))
            assert len(draft.tokens) == min(wanted, 12 + 30 - len(context) - 1)
            counts.add(len(draft.tokens))
    assert len(counts) > 1


@pytest.mark.parametrize("name", CLASSES)
def test_samples_near_temperature_0_are_the_greedy_answer(name, scene, random_ids, hf_greedy):
    model, decoder, folder = scene(name)
    prompt = random_ids(12, seed=1)
    for knobs in ({"costs": str(COSTS)}, WHOLE, WHOLE | {"drafts": "sampled"}):
        answer = decode(build(name, decoder, folder, **knobs), prompt, 30, NEVER, Sampler(1e-4))
        assert answer.token_ids == hf_greedy(model, prompt, 30)
        assert max(step.accepted for step in answer.steps) > 1


def test_the_network_in_eight_bits_drafts_nearly_the_same(tiny_config, tiny_decoder, tiny_weights, random_ids):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    config = tiny_config("vicuna", hidden_size=64, intermediate_size=96)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    decoder = tiny_decoder(config, model)
    if decoder.layout != "native":
        pytest.skip("eight-bit matrices need the engine's kernels")
    folder = tiny_weights("dflash", model, useful=False)
    first, second = (build("dflash", decoder, folder, draft_weights=kind, **WHOLE) for kind in ("q8", "plain"))
    assert (first.quantize, second.quantize) == ("q8", "none")
    states = []
    for method in (first, second):
        sequence = open_sequence(method, random_ids(12, seed=1))
        with torch.inference_mode():
            states.append(method.drafter.block(5, sequence.length, sequence.notes.cache))
    error = (states[0] - states[1]).norm() / states[1].norm()
    assert 0 < error < 0.05
    assert first.extra_parameters == sum(t.numel() for t in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize("name", CLASSES)
def test_useless_drafts_cost_little(name, scene, random_ids, hf_greedy):
    model, decoder, folder = scene(name, useful=False)
    prompt = random_ids(12, seed=1)
    answer = decode(build(name, decoder, folder, costs=str(COSTS)), prompt, 200, NEVER)
    assert answer.token_ids == hf_greedy(model, prompt, 200)
    spent = sum(step.calls * 0.15 + COSTS.verifying(1 + step.drafted) - 1 for step in answer.steps)
    assert sum(step.accepted for step in answer.steps) < 5
    assert 0 < spent <= 0.75 + 0.01 * 200 + sum(step.accepted for step in answer.steps)
    assert spent < 0.03 * 200


def test_the_rule_goes_on_while_blocks_pay_and_learns_what_confidences_are_worth():
    rule = BlockRule(COSTS)
    for _ in range(30):
        assert rule.goes_on()
        count = rule.keep([1, 2, 3, 4], [0.95, 0.95, 0.1, 0.1])
        assert count >= 2
        rule.end([1, 2, 3, 4, 9][: count + 1])
        rule.begin()
    assert count == 4  # sure or not, all have been right
    called = []
    for _ in range(70):
        called.append(rule.goes_on())
        if called[-1]:
            rule.keep([1, 2, 3, 4], [0.95, 0.95, 0.1, 0.1])
        rule.end([7])
        rule.begin()
    assert called[0]
    assert 1 <= sum(called[-34:]) <= 2  # tried again every 16 steps


def test_weights_are_fetched_by_hub_id_and_shards_are_read(scene, monkeypatch, random_ids, tmp_path):
    _, decoder, folder = scene()
    weights = load_file(folder / "model.safetensors")
    names = list(weights)
    index = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(index.values()):
        save_file({name: weights[name] for name in names if index[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    asked = []
    monkeypatch.setattr(checkpoints, "fetch_folder", lambda name, files: asked.append(name) or tmp_path)
    prompt = random_ids(12, seed=1)
    found = [
        [step.emitted for step in decode(build("dflash", decoder, one, **WHOLE), prompt, 20, NEVER).steps]
        for one in ("z-lab/tiny", folder)
    ]
    assert asked == ["z-lab/tiny"]
    assert found[0] == found[1]


def test_newer_files_have_the_block_size_in_dflash_config(scene):
    _, decoder, folder = scene()
    values = json.loads((folder / "config.json").read_text())
    values["dflash_config"]["block_size"] = values.pop("block_size") - 1
    (folder / "config.json").write_text(json.dumps(values))
    assert read_form(folder, decoder).block == official.BLOCK - 1


OUT, MORE = "layers.1.self_attn.o_proj.weight", "layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dflash", {"tensors": {OUT: None}}, f"{OUT} is missing"),
        ("dflash", {"tensors": {MORE: torch.zeros(2)}}, f"also has {MORE}"),
        ("dflash", {"tensors": {"fc.weight": torch.zeros(48, 48)}}, r"fc.weight has shape \(48, 48\), expected"),
        ("dflash", {"tensors": {"norm.weight": torch.full((48,), torch.nan)}}, "norm.weight has NaN"),
        ("dflash", {"changes": {"hidden_size": 32}, "useful": False}, "its hidden size is 32, but tiny's is 48"),
        ("dflash", {"changes": {"num_target_layers": 36}}, "reads layer 2 of 36, .* but tiny has 4"),
        ("dflash", {"anchor": True, "changes": {"target_layer_ids": [0, 3]}}, "reads layer 3 of 4, .* the last cannot"),
        ("dflash", {"changes": {"vocab_size": 300}}, "300 tokens and mask_token_id=270, but tiny has 272"),
        ("dflash", {"changes": {"block_size": 1}}, "block_size: .* greater than or equal to 2, not 1"),
        ("dflash", {"changes": {"dflash_config": {"mask_token_id": 5}}}, "lacks block_size, mask_token_id or"),
        ("dflash", {"changes": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}}, "RoPE scaling 'dynamic'"),
        (
            "dflash",
            {"changes": {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention"] * 2}},
            "sliding windows, which are not supported",
        ),
        ("dspark", {"tensors": {MARKOV: None}}, f"{MARKOV} is missing"),
        ("dspark", {"heads": {"markov_head_type": "rnn"}}, "of type 'rnn': only 'vanilla'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(name, options, said, scene):
    _, decoder, folder = scene(name, **options)
    with pytest.raises(UserError, match=said):
        build(name, decoder, folder, **WHOLE)


def test_each_method_names_the_other_ones_checkpoints(scene):
    _, decoder, folder = scene("dspark")
    with pytest.raises(UserError, match="take dspark:weights="):
        build("dflash", decoder, folder, **WHOLE)
    _, decoder, folder = scene("dflash", anchor=True)
    with pytest.raises(UserError, match="it is for dflash:weights="):
        DSpark.check_weights(DSparkConfig(weights=str(folder)), decoder)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("dflash", "dflash comes without weights: name a folder or Hugging Face id .* for tiny, as z-lab/"),
        ("dspark", "dspark comes without weights: .* deepseek-ai/dspark_qwen3_4b_block7 is for Qwen/Qwen3-4B"),
        ("dflash:weights=/no/such/folder", "/no/such/folder is no folder"),
    ],
)
def test_missing_weights_are_reported_before_the_model_is_loaded(label, said):
    with pytest.raises(UserError, match=said):
        methods.parse(label).check_files("tiny")


@pytest.mark.parametrize(
    "knob", ["threshold=1.5", "drafts=all", "drafts=sampled", "draft_weights=q4", "stop=never", "costs=1"]
)
def test_knobs_out_of_range_are_refused(knob):
    with pytest.raises(UserError, match=knob.partition("=")[0]):
        methods.parse(f"dspark:{knob}")


def test_costs_repeat_a_run_and_a_probe_takes_whole_blocks(scene):
    _, decoder, folder = scene()
    method = build("dflash", decoder, folder)
    again = DFlash(decoder, DFlash.repeated(method.config, method.measured))
    assert again.costs == method.costs
    assert again.measured == {}
    forced, reach = method.probing(3)
    assert (forced.stop, forced.threshold, reach) == ("threshold", 0.0, 3)
    assert method.probing(64)[1] == official.BLOCK - 1
