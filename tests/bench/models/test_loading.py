"""A model by name: its text side alone, and its weights where and as they are asked for."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.config import RunConfig
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.products import Linear
from bench.errors import UserError
from bench.figures.facts import EngineFacts
from bench.models import loading
from bench.models.loading import Compute, engine_facts
from bench.typed_json import decode_value


@pytest.fixture
def found(setting):
    return loading.find(str(setting.model), None, print)


def test_a_model_is_found_without_its_weights(setting, tmp_path):
    folder = shutil.copytree(setting.model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7]}))
    model = loading.find(str(folder), None, print)
    assert model.eos == {7, 258}
    assert model.context == 512
    assert model.chat.prompt([], "Hi") == setting.chat.prompt([], "Hi")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_loaded_as_asked(found, dtype):
    loaded = loading.load(found, Compute(device="cpu", dtype=dtype), 64, print)
    assert (loaded.target.dtype, loaded.target.max_len) == (getattr(torch, dtype), 64)
    assert (loaded.checkpoint, loaded.chat, loaded.eos) == (found.checkpoint, found.chat, found.eos)


def test_a_second_model_joins_the_first_on_its_device(found):
    first = loading.load(found, Compute(), 64, print).target
    second = loading.load_decoder(found.checkpoint, first.device, first.dtype, max_len=first.max_len)
    assert second is not first
    assert (second.device, second.dtype, second.max_len) == (first.device, first.dtype, first.max_len)
    assert torch.equal(second.head_weight, first.head_weight)


@pytest.mark.skipif(bool(native.why_not()), reason="no compiler here")
def test_a_run_records_its_arithmetic(found, tiny_config):
    """What products round their inputs to is found out with inputs that bfloat16 cannot hold."""
    exact = engine_facts(loading.load(found, Compute(dtype="float32"), 64, print).target)
    assert exact["activations"] == "float32"
    assert not exact.keys() & {"activation_scales", "head"}
    target = loading.load(found, Compute(dtype="bfloat16"), 64, print).target
    x = torch.full((1, 32), 1 + 2.0**-10)
    linear = Linear(torch.ones(16, 32, dtype=torch.bfloat16), layout="native")
    rounds = bool((linear(x) == 32).all())
    assert engine_facts(target)["activations"] == ("bfloat16" if rounds else "float32")
    config = tiny_config("tied", hidden_size=96, intermediate_size=160)
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    del weights["lm_head.weight"]
    facts = engine_facts(Decoder.from_weights(config, weights.items(), max_len=32, quantize="q4"))
    assert (facts["activations"], facts["head"]) == ("int8", "int8")
    assert facts["activation_scales"] == "one per token and group of 32"
    assert decode_value(EngineFacts, facts) == facts


def test_without_a_length_a_model_is_as_long_as_it_was_made(found):
    assert loading.load(found, Compute(), None, print).target.max_len == found.context


def test_a_runs_settings_say_what_to_compute_on():
    settings = RunConfig(device="cpu", dtype="bfloat16", threads=3, quantize="none")
    assert dataclasses.astuple(Compute.of(settings)) == ("cpu", "bfloat16", 3, "none")


@pytest.mark.parametrize(("there", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_the_format_is_the_devices_unless_asked_for(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert Compute().torch_dtype == expected
    assert Compute(dtype="float16").torch_dtype == torch.float16
    assert Compute(device="cpu").torch_dtype == torch.float32


@pytest.mark.parametrize(
    "error", [MemoryError("no bytes"), torch.OutOfMemoryError("no bytes"), RuntimeError("can't allocate memory: 9 GB")]
)
def test_lack_of_memory_is_the_users_to_mend(error):
    with pytest.raises(UserError, match="not enough memory for the attic"), loading.memory_errors("the attic"):
        raise error


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), loading.memory_errors("the attic"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("name", ["cuda:1", "cuda:256", "cuda:999"])
def test_a_device_that_is_not_there_is_told_by_its_name(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert loading.choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match=f"device '{name}' is not there"):
        loading.choose_device(name)
