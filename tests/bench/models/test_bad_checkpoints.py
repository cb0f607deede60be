"""Checkpoints that must be refused: by name, with the reason, before the weights are read where it can be known."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.errors import UserError
from bench.models import loading, weight_files
from tests.tiny import ONE_TURN, run_bench, write_questions

CPU = torch.device("cpu")
DEEP = "[" * 100_000
GATE = "model.layers.1.mlp.gate_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"
Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path, cache, tiny_checkpoint) -> Path:
    return shutil.copytree(tiny_checkpoint("vicuna").folder, tmp_path / "model")


def edited(name: str, **changes: Any) -> Damage:
    """Set fields of a JSON file; `...` removes one."""

    def damage(folder: Path) -> None:
        path = folder / name
        found = (json.loads(path.read_text()) if path.exists() else {}) | changes
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

    return damage


def config(**changes: Any) -> Damage:
    return edited("config.json", **changes)


def written(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def template(text: str) -> Damage:
    return written("chat_template.jinja", text)


def sharded(weight_map: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder.parent / "outside.safetensors").write_bytes(b"")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def only_an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def two_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": "{{ messages[0].content }}"} for name in ("tools", "plain")]
    edited("tokenizer_config.json", chat_template=named)(folder)


def quantised(**scheme: Any) -> Damage:
    return config(quantization_config=scheme)


KNOWN_EARLY: dict[str, tuple[Damage, list[str]]] = {
    "no layers": (config(num_hidden_layers=0), ["config.json", "num_hidden_layers", "not 0"]),
    "layers as text": (config(num_hidden_layers="4"), ["config.json", "num_hidden_layers", "not '4'"]),
    "layers as a float": (config(num_hidden_layers=4.5), ["config.json", "num_hidden_layers"]),
    "countless layers": (config(num_hidden_layers=10**9), ["config.json", "num_hidden_layers", "not 1000000000"]),
    "no vocabulary": (config(vocab_size=None), ["config.json", "vocab_size"]),
    "negative width": (config(hidden_size=-48), ["config.json", "hidden_size", "not -48"]),
    "width beyond all bounds": (config(hidden_size=10**30), ["config.json", "hidden_size"]),
    "width that heads do not divide": (config(hidden_size=50), ["cannot load the configuration", "50", "heads"]),
    "heads that groups do not divide": (config(num_key_value_heads=3), ["num_attention_heads=4", "heads=3"]),
    "odd heads": (config(head_dim=15), ["head", "15"]),
    "epsilon of zero": (config(rms_norm_eps=0), ["config.json", "rms_norm_eps", "not 0"]),
    "epsilon that is no number": (config(rms_norm_eps=float("nan")), ["config.json is malformed"]),
    "tied as text": (config(tie_word_embeddings="yes"), ["config.json", "tie_word_embeddings", "'yes'"]),
    "negative window": (config(sliding_window=-1), ["config.json", "sliding_window", "not -1"]),
    "base of zero": (config(rope_theta=0), ["config.json", "rope_theta", "not 0"]),
    "scaling as text": (config(rope_parameters={"rope_type": "linear", "factor": "2"}), ["rope_parameters.factor"]),
    "scaling without a factor": (config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}), ["factor"]),
    "scaling that is unknown": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), ["'spiral'"]),
    "activation that is unknown": (config(hidden_act="gelu"), ["'gelu'", "silu"]),
    "model type that is missing": (config(model_type=...), ["config.json", "model_type: missing"]),
    "model type that is unsupported": (config(model_type="gpt2"), ["'gpt2' is not supported"]),
    "end token of config as text": (config(eos_token_id="</s>"), ["config.json", "eos_token_id", "'</s>'"]),
    "config that is nested": (written("config.json", DEEP), ["config.json is malformed"]),
    "config that is a list": (written("config.json", "[]"), ["config.json is malformed"]),
    "config that is cut": (written("config.json", '{"model_type": "ll'), ["config.json is malformed"]),
    "gptq": (quantised(quant_method="gptq", bits=4), ["(gptq)", "only fp8"]),
    "awq": (quantised(quant_method="awq", bits=4), ["(awq)", "only fp8"]),
    "bitsandbytes": (quantised(load_in_4bit=True), ["(bitsandbytes)", "only fp8"]),
    "compressed": (config(compression_config={"quant_method": "compressed-tensors"}), ["(compressed-tensors)"]),
    "quantised somehow": (quantised(bits=4), ["an unnamed scheme"]),
    "block of no rows": (quantised(quant_method="fp8", weight_block_size=[0, 128]), ["weight_block_size[0]"]),
    "end token as text": (
        edited("generation_config.json", eos_token_id="<end>"),
        ["generation_config.json", "'<end>'"],
    ),
    "end token below zero": (edited("generation_config.json", eos_token_id=-1), ["generation_config.json", "not -1"]),
    "end token as a float": (edited("generation_config.json", eos_token_id=2.5), ["generation_config.json", "2.5"]),
    "end token as a truth": (edited("generation_config.json", eos_token_id=True), ["generation_config.json", "True"]),
    "end tokens in part as text": (edited("generation_config.json", eos_token_id=[2, "x"]), ["eos_token_id[1]", "'x'"]),
    "end token beyond the vocabulary": (
        edited("generation_config.json", eos_token_id=[2, 272]),
        ["generation_config.json", "272", "0 to 271"],
    ),
    "generation config that is a list": (written("generation_config.json", "[]"), ["generation_config.json"]),
    "generation config that is nested": (written("generation_config.json", DEEP), ["generation_config.json"]),
    "tokenizer that is cut": (written("tokenizer.json", "{"), ["cannot load the tokenizer"]),
    "tokenizer that is missing": (without_a_tokenizer, ["has no tokenizer", "tokenizer.json"]),
    "tokenizer of another model": (config(vocab_size=200), ["up to id 258", "200 tokens (0 to 199)"]),
    "template that raises": (
        template("{{ raise_exception('no such role') }}"),
        ["chat_template.jinja", "no such role"],
    ),
    "template that does not parse": (template("{% if %}"), ["chat_template.jinja", "Expected an expression"]),
    "template that divides by zero": (template("{{ 1 // 0 }}"), ["chat_template.jinja", "zero"]),
    "template that forgets the user": (template("Hi!"), ["chat_template.jinja", "leaves out what the user says"]),
    "templates without a default": (two_templates, ["'tools', 'plain'", "'default'"]),
    "shards that are missing": (sharded({"a": "model-1.safetensors", "b": "gone.safetensors"}), ["1 of 2", "gone"]),
    "shards outside the folder": (sharded({"a": "../outside.safetensors"}), ["index.json", "../outside.safetensors"]),
    "shards by a number": (sharded({"a": 3}), ["index.json", "weight_map.a"]),
    "index that is no table": (sharded([1]), ["index.json", "weight_map"]),
    "an adapter alone": (only_an_adapter, ["no weights in", "model.safetensors"]),
}


def assert_plain(error: UserError, words: list[str]) -> None:
    """One line of ours that has all the words; no library's advice."""
    text = str(error)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert len(text) < 700
    for advice in (
        "weights_only",
        "trust_remote_code",
        "ignore_mismatched",
        "https://",
        "raise an issue",
        "pip install",
    ):
        assert advice not in text


@pytest.mark.parametrize(("damage", "words"), KNOWN_EARLY.values(), ids=KNOWN_EARLY)
def test_what_can_be_known_is_refused_before_the_weights_are_read(folder, damage, words, monkeypatch):
    damage(folder)
    monkeypatch.setattr(weight_files, "tensors", lambda path: pytest.fail("the weights were read"))
    with pytest.raises(UserError) as refusal:
        loading.find(str(folder), None, print)
    assert_plain(refusal.value, words)


def test_the_sound_checkpoint_is_found(folder):
    assert loading.find(str(folder), None, print).eos == {258}


# --- the weights themselves ------------------------------------------------------------------------------------------


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        change(stored)
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def filled(name: str, value: float) -> Damage:
    def change(stored: dict[str, Tensor]) -> None:
        stored[name].view(-1)[-1] = value  # the last value alone

    return tensors(change)


def cast(name: str, dtype: torch.dtype) -> Damage:
    return tensors(lambda stored: stored.update({name: stored[name].to(dtype)}))


def pickled(make: Callable[[dict[str, Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(make(stored), folder / "pytorch_model.bin")

    return damage


def binary(content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return damage


def cut(name: str) -> Damage:
    def damage(folder: Path) -> None:
        if name.endswith(".bin"):
            pickled(dict)(folder)
        os.truncate(folder / name, (folder / name).stat().st_size // 2)

    return damage


def fp8(scale: Tensor | None, *, block: Any = (128, 128), described: bool = True) -> Damage:
    """One matrix [80, 48] in eight bits; `block` is None for one scale a matrix."""

    def damage(folder: Path) -> None:
        def change(stored: dict[str, Tensor]) -> None:
            stored[GATE] = stored[GATE].to(torch.float8_e4m3fn)
            if scale is not None:
                stored[f"{GATE}_scale_inv"] = scale

        tensors(change)(folder)
        if described:
            quantised(quant_method="fp8", weight_block_size=block)(folder)

    return damage


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


BAD_WEIGHTS: dict[str, tuple[Damage, list[str]]] = {
    "NaN in a matrix": (filled(GATE, float("nan")), [GATE, "NaN or infinite"]),
    "infinity in a matrix": (filled(GATE, float("inf")), [GATE, "NaN or infinite"]),
    "minus infinity in a norm": (filled(NORM, float("-inf")), [NORM, "NaN or infinite"]),
    "NaN in the embedding": (filled("model.embed_tokens.weight", float("nan")), ["model.embed_tokens.weight"]),
    "NaN in the head": (filled("lm_head.weight", float("nan")), ["'lm_head.weight'"]),
    "int8 codes": (cast(GATE, torch.int8), [GATE, "int8", "float32, bfloat16 or float16"]),
    "uint8 codes": (cast(GATE, torch.uint8), [GATE, "uint8"]),
    "truths": (cast(NORM, torch.bool), [NORM, "bool"]),
    "a weight too few": (tensors(lambda stored: stored.pop(GATE)), ["no weight", GATE, "incomplete"]),
    "a matrix of another size": (tensors(lambda s: s.update({GATE: s[GATE][:-1]})), [GATE, "(79, 48)", "(80, 48)"]),
    "a bias that the config lacks": (
        tensors(lambda stored: stored.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)})),
        ["model.layers.0.self_attn.q_proj.bias", "config.json does not have"],
    ),
    "biases that the config promises": (config(mlp_bias=True), ["no weight", "mlp.gate_proj.bias", "11 more"]),
    "a layer that the config lacks": (config(num_hidden_layers=3), ["layers.3.", "8 more", "does not have"]),
    "codes of a scheme that nobody names": (
        tensors(lambda stored: stored.update({GATE.replace("weight", "qzeros"): torch.zeros(3, dtype=torch.int32)})),
        ["gate_proj.qzeros", "does not have"],
    ),
    "fp8 that the config does not explain": (fp8(torch.ones(1, 1), described=False), [GATE, "float8_e4m3fn"]),
    "fp8 without scales": (fp8(None), [GATE, "scales (none)"]),
    "fp8 with scales of other blocks": (fp8(torch.ones(2, 1)), [GATE, "(2, 1)", "(128, 128)"]),
    "fp8 in blocks that do not divide": (fp8(torch.ones(3, 2), block=(32, 32)), [GATE, "(3, 2)", "(32, 32)"]),
    "fp8 with scales in bytes": (fp8(torch.ones(1, 1, dtype=torch.uint8)), [GATE, "in uint8"]),
    "fp8 with a scale that is NaN": (fp8(torch.tensor([[float("nan")]])), [GATE, "NaN or infinite"]),
    "a scale of nothing": (
        tensors(lambda stored: stored.update({f"{GATE}_scale_inv": torch.ones(1, 1)})),
        [f"{GATE}_scale_inv", "does not have"],
    ),
    "safetensors cut in half": (cut("model.safetensors"), ["model.safetensors", "incomplete or damaged"]),
    "safetensors of nothing": (written("model.safetensors", ""), ["model.safetensors", "incomplete or damaged"]),
    "safetensors of text": (written("model.safetensors", "x" * 999), ["model.safetensors", "incomplete or damaged"]),
    "a pickle cut in half": (cut("pytorch_model.bin"), ["pytorch_model.bin", "damaged"]),
    "a pickle of nothing": (binary(b""), ["pytorch_model.bin", "damaged"]),
    "a pickle of text": (binary(b"hello" * 99), ["pytorch_model.bin", "damaged"]),
    "a pickled list": (pickled(list), ["of type list", "state_dict()"]),
    "a pickled tensor": (pickled(lambda stored: stored[GATE]), ["of type Tensor", "state_dict()"]),
    "a pickle of state and more": (pickled(lambda s: {"model": s}), ["of type dict called 'model'", "state_dict()"]),
    "a pickle with a step count": (pickled(lambda s: s | {"step": 7}), ["of type int called 'step'", "state_dict()"]),
    "a sparse tensor": (pickled(lambda s: s | {GATE: s[GATE].to_sparse()}), [GATE, "no dense tensor"]),
    "code in a pickle": (pickled(lambda stored: stored | {"x": Bomb()}), ["could run code", "safetensors"]),
}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return loading.load_decoder(loading.find(str(folder), None, print).checkpoint, CPU, dtype, max_len=16)


@pytest.mark.parametrize(("damage", "words"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_that_are_not_the_models_are_refused_by_name(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError) as refusal:
        load(folder)
    assert_plain(refusal.value, words)


def test_weights_beyond_a_dtype_are_refused_with_one_that_holds_them(folder):
    filled(GATE, 1e6)(folder)
    with pytest.raises(UserError, match=f"{GATE}' is too large for float16: take --dtype float32 or bfloat16"):
        load(folder, torch.float16)
    for dtype in (torch.float32, torch.bfloat16):  # the remedy
        assert load(folder, dtype).dtype == dtype


@pytest.mark.parametrize(
    "damage",
    [config(num_hidden_layers=0), template("{% if %}"), filled(GATE, float("nan")), pickled(list)],
    ids=["config", "template", "weights", "pickle"],
)
def test_a_run_with_a_bad_checkpoint_ends_with_one_sentence_and_writes_nothing(folder, damage, tmp_path, capsys):
    damage(folder)
    source = write_questions(tmp_path / "q.jsonl", ONE_TURN)
    assert run_bench(folder, source, tmp_path / "out", "--method", "vanilla") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out" / "run.json").exists()


def test_what_the_messages_advise_on_templates_works(folder):
    template("{% if %}")(folder)
    with pytest.raises(UserError, match=r"chat_template\.jinja .*delete it to use Vicuna's format"):
        loading.find(str(folder), None, print)
    (folder / "chat_template.jinja").unlink()
    assert loading.find(str(folder), None, print).chat.template == "vicuna"


def test_what_torch_advises_on_a_pickle_is_not_passed_on(tmp_path, recwarn):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps([1], protocol=4))
    with contextlib.suppress(Exception):
        weight_files.unpickled(tmp_path / "pytorch_model.bin")
    assert not recwarn.list
