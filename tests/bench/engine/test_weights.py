"""What a decoder is made of: what the engine supports of a configuration, and weights that fit it."""

from __future__ import annotations

import itertools

import pytest
from transformers import AutoConfig

from bench.engine.decoder import Decoder
from bench.engine.weights import DecoderConfig
from bench.errors import UserError


def test_a_sliding_window_bounds_the_context(tiny_config):
    assert DecoderConfig.from_hf(tiny_config("mistral", sliding_window=64)).context == 64
    assert DecoderConfig.from_hf(tiny_config("mistral", sliding_window=None)).context == 512
    asleep = tiny_config("qwen2", sliding_window=64, use_sliding_window=False)
    assert DecoderConfig.from_hf(asleep).context == 512


@pytest.mark.parametrize(
    ("window", "limit"), [(64, "the sliding window of 64 tokens"), (512, "the context of 512 tokens")]
)
def test_what_bounds_a_text_is_named(window, limit, tiny_config):
    assert DecoderConfig.from_hf(tiny_config("mistral", sliding_window=window)).limit == limit


def test_the_shapes_are_those_of_transformers(kind, tiny_model):
    config, model = tiny_model(kind)
    shapes = {name.removeprefix("model."): tuple(weight.shape) for name, weight in model.named_parameters()}
    assert DecoderConfig.from_hf(config).shapes() == shapes  # a tied head is not among them


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, ["'dynamic'", "yarn"]),
        ({"hidden_act": "gelu"}, ["'gelu'", "silu"]),
    ],
    ids=["rope", "activation"],
)
def test_an_unsupported_feature_is_refused_by_name(changes, named, tiny_config):
    with pytest.raises(UserError) as refusal:
        DecoderConfig.from_hf(tiny_config("vicuna", **changes))
    assert all(word in str(refusal.value) for word in named)


def test_an_unsupported_model_is_refused_by_name():
    with pytest.raises(UserError, match=r"'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3"):
        Decoder.from_weights(AutoConfig.for_model("gpt2"), [])


BROKEN = [
    ("vicuna", "model.embed_tokens.weight"),
    ("vicuna", "model.norm.weight"),
    ("vicuna", "lm_head.weight"),
    ("vicuna", "model.layers.0.input_layernorm.weight"),
    ("vicuna", "model.layers.2.self_attn.k_proj.weight"),
    ("vicuna", "model.layers.3.mlp.down_proj.weight"),
    ("qwen3", "model.layers.1.self_attn.k_norm.weight"),
    *itertools.product(["qwen2"], [f"model.layers.1.self_attn.{n}_proj.bias" for n in "qkv"]),
]


@pytest.mark.parametrize(("kind", "name"), BROKEN)
def test_a_missing_weight_is_named(kind, name, tiny_model):
    config, model = tiny_model(kind)
    weights = model.state_dict()
    del weights[name]
    with pytest.raises(UserError, match=name.removeprefix("model.")):
        Decoder.from_weights(config, weights.items(), max_len=16)


@pytest.mark.parametrize(("kind", "name"), BROKEN)
def test_a_weight_of_the_wrong_shape_is_named_with_both_shapes(kind, name, tiny_model):
    config, model = tiny_model(kind)
    weights = model.state_dict()
    right, wrong = weights[name], weights[name][:-2]
    with pytest.raises(UserError) as refusal:
        Decoder.from_weights(config, {**weights, name: wrong}.items(), max_len=16)
    for said in (name.removeprefix("model."), str(tuple(wrong.shape)), str(tuple(right.shape))):
        assert said in str(refusal.value)
