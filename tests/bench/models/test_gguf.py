"""GGUF files as models: converted weights are the tensors, answers are transformers', and the rest is refused by name.

The files are written by llama.cpp's own package. Quantised tensors are held against transformers' reader, which has
dequantisers of its own.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
import tracemalloc
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bench.drafting.loop import decode
from bench.errors import UserError
from bench.models import checkpoints, gguf_convert, gguf_file, loading
from bench.models.chat import VICUNA_TEMPLATE
from bench.models.checkpoints import iter_weights, list_cache, resolve
from bench.models.hf_peer import shared_model
from methods.vanilla import Vanilla
from tests import gguf_files
from tests.fakes import leftovers
from tests.gguf_files import SCALES, quantized, write
from tests.tiny import ONE_TURN, records, run_bench, write_questions

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
KINDS = ("tied", "biased", "vicuna", "mistral", "qwen2", "qwen3")


@pytest.fixture
def tied(tiny_model):
    return tiny_model("tied", True)[1]


def factors_of(rope: dict, head_dim: int = 12) -> np.ndarray:
    """What llama.cpp's converter stores for Llama 3: how much longer each wavelength becomes, by transformers."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model("llama", hidden_size=head_dim, num_attention_heads=1, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2) / head_dim)
    return (plain / scaled).float().numpy()


def stored_weights(hf):
    state = hf.state_dict()
    return {k: v for k, v in state.items() if not (k == "lm_head.weight" and hf.config.tie_word_embeddings)}


def found(path: Path) -> loading.Model:
    return loading.find(str(path), None, print)


def answer(model: loading.Model, prompt: list[int], limit: int) -> list[int]:
    target = loading.load_decoder(model.checkpoint, torch.device("cpu"), torch.float32, max_len=256)
    return decode(Vanilla(target, Vanilla.Config()), prompt, limit, frozenset()).token_ids


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_models_and_so_are_answers(cache, tmp_path, tiny_model, hf_greedy, random_ids, kind):
    _, hf = tiny_model(kind)
    model = found(write(tmp_path / f"{kind}.gguf", hf))
    weights, right = dict(iter_weights(model.checkpoint)), stored_weights(hf)
    assert weights.keys() == right.keys()
    assert all(torch.equal(weights[name], right[name]) for name in right)
    prompt = random_ids(20, seed=3)
    assert answer(model, prompt, 16) == hf_greedy(hf, prompt, 16)
    ids = torch.tensor([prompt])
    peer = shared_model(model.checkpoint, torch.float32, torch.device("cpu"))
    assert torch.equal(peer(ids).logits.argmax(-1), hf(ids).logits.argmax(-1))


@pytest.mark.parametrize(
    ("given", "rope"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.type": "none"}, {"rope_type": "default"}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
        ("factors", LLAMA3),
    ],
)
def test_rope_is_scaled_as_the_file_says(cache, tmp_path, tiny_config, hf_greedy, random_ids, given, rope):
    config = tiny_config("vicuna", rope_parameters={"rope_theta": 1e4} | rope)
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    factors = {"rope_freqs.weight": (factors_of(LLAMA3), None)} if given == "factors" else {}
    settings = {} if factors else {f"llama.{key}": value for key, value in given.items()}
    model = found(write(tmp_path / "a.gguf", hf, settings, lambda stored: stored | factors))
    parameters = checkpoints.load_config(model.checkpoint).rope_parameters
    assert {key: parameters[key] for key in rope} == rope
    prompt = random_ids(40, seed=5)
    assert answer(model, prompt, 24) == hf_greedy(hf, prompt, 24)


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, *SCALES], ids=lambda k: k.name
)
def test_quantised_tensors_are_what_transformers_reads(cache, tmp_path, kind):
    config = AutoConfig.for_model(
        "llama", vocab_size=272, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(1)
    path = write(tmp_path / "a.gguf", AutoModelForCausalLM.from_config(config), change=quantized(kind))
    right = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).state_dict()
    weights = dict(iter_weights(resolve(str(path))))
    assert weights.keys() == right.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.float(), right[name], rtol=0, atol=0)
    narrow = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}.get(kind, torch.float32)
    assert weights["lm_head.weight"].dtype == narrow


def test_the_file_of_weights_is_the_one_that_safetensors_writes_whatever_the_pieces(cache, tmp_path, tied, monkeypatch):
    path = write(tmp_path / "a.gguf", tied)
    save_file({k: v.contiguous() for k, v in stored_weights(tied).items()}, tmp_path / "right", {"format": "pt"})
    right = (tmp_path / "right").read_bytes()
    assert (resolve(str(path)).folder / "model.safetensors").read_bytes() == right
    checkpoints.clean_cache()
    monkeypatch.setattr(gguf_convert, "_CHUNK_BYTES", 4 * 48 * 13)
    assert (resolve(str(path)).folder / "model.safetensors").read_bytes() == right


def test_the_folder_is_a_whole_one_for_transformers(cache, tmp_path, tied):
    folder = resolve(str(write(tmp_path / "a.gguf", tied))).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the<|im_end|>")["input_ids"][-1] == 258
    assert tokenizer.decode(tokenizer("the thé")["input_ids"]) == "the thé"
    model, problems = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(problems[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generation_config.eos_token_id == [258]


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, {258}),
        ({"tokenizer.ggml.eot_token_id": 256}, {256, 258}),
        ({"tokenizer.ggml.eos_token_id": 256}, {256, 258}),  # a known end of a turn, though the file does not say so
        ({"tokenizer.ggml.eom_token_id": 7, "tokenizer.ggml.eos_token_id": None}, {7, 258}),
    ],
)
def test_answers_end_where_the_file_says(cache, tmp_path, tied, settings, ends):
    assert found(write(tmp_path / "a.gguf", tied, settings)).eos == ends


def test_chat_template_is_the_files_or_vicunas(cache, tmp_path, tied):
    with_one = found(write(tmp_path / "a.gguf", tied)).chat
    assert with_one.prompt([], "Hi")[0] == 257
    without = loading.find(str(write(tmp_path / "b.gguf", tied, {"tokenizer.chat_template": None})), None, print).chat
    assert without.template == "vicuna"
    assert without.tokenizer.chat_template is None
    assert "USER: Hi" in without.tokenizer.decode(without.prompt([], "Hi"))
    assert VICUNA_TEMPLATE


def test_a_conversion_holds_some_rows_at_a_time(tmp_path, monkeypatch):
    config = AutoConfig.for_model(
        "llama", vocab_size=8192, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4
    )
    write(tmp_path / "a.gguf", AutoModelForCausalLM.from_config(config), change=quantized(Kind.Q8_0))
    planned = gguf_convert.plan(gguf_file.read(tmp_path / "a.gguf"))
    monkeypatch.setattr(gguf_convert, "_CHUNK_BYTES", 200_000)
    tracemalloc.start()
    try:
        with (tmp_path / "out").open("wb") as out:
            gguf_convert._write_weights(planned, out)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size > 17_000_000  # embedding and LM head have 8 MB each
    assert peak_bytes < 2_000_000


# --- the cache and the records ---------------------------------------------------------------------------------------


def test_a_run_names_the_file_and_its_digest_and_no_path(cache, tmp_path, tied, capsys):
    path = write(tmp_path / "Tiny-Model-Q8_0.gguf", tied)
    questions, out = write_questions(tmp_path / "q.jsonl", ONE_TURN), tmp_path / "out"
    assert run_bench(path, questions, out, "--method", "vanilla", "--peer", "hf-generate") == 0
    run, turns = records(out)
    assert run.model["name"] == "Tiny-Model-Q8_0"
    assert run.model["revision"] == f"Tiny-Model-Q8_0.gguf sha256:{checkpoints.sha256(path)}"
    assert str(tmp_path) not in json.dumps(run.model)
    assert {turn.method for turn in turns} == {"vanilla", "hf-generate"}
    assert len({tuple(turn.token_ids) for turn in turns}) == 1


def test_a_file_is_converted_once_whatever_it_is_called(cache, tmp_path, tied, monkeypatch):
    path = write(tmp_path / "a.gguf", tied)
    first, lines = resolve(str(path), log=print), []
    monkeypatch.setattr(gguf_convert, "convert", None)
    copy = Path(shutil.copy(path, tmp_path / "b.gguf"))
    second = resolve(str(copy), log=lines.append)
    assert (second.folder, second.sha256) == (first.folder, first.sha256)
    assert (first.name, second.name, second.gguf) == ("a", "b", copy)
    assert lines == []
    assert [entry.name for entry in list_cache()] == [first.folder.name]
    assert checkpoints.clean_cache([first.folder.name]) > 0
    assert leftovers(cache) == []


def test_what_another_version_converted_is_converted_again(cache, tmp_path, tied, monkeypatch):
    path, lines = str(write(tmp_path / "a.gguf", tied)), []
    folder = resolve(path).folder
    monkeypatch.setattr(checkpoints, "_CONVERTER", 0)
    assert resolve(path, log=lines.append).folder == folder
    assert lines[0].startswith("converting a.gguf (once, ")


def test_a_full_disk_is_seen_before_anything_is_written(cache, tmp_path, tied, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 20_000_000))
    with pytest.raises(UserError, match=r"gguf \(0\.02 GB free, 0\.05 GB needed\).*ROOBENCH_CACHE"):
        resolve(str(write(tmp_path / "a.gguf", tied)))
    assert leftovers(cache) == []


def test_an_interrupted_conversion_leaves_nothing_that_counts(cache, tmp_path, tied, monkeypatch):
    path = write(tmp_path / "a.gguf", tied)

    def interrupted(planned, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(gguf_convert, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resolve(str(path))
    assert leftovers(cache) == []
    assert resolve(str(path)).folder.is_dir()


def test_a_conversion_shows_how_far_it_is(cache, tmp_path, tied, monkeypatch, capsys):
    monkeypatch.setattr("bench.progress.LINE_EVERY_S", 0)
    resolve(str(write(tmp_path / "a.gguf", tied)))
    assert "converting " in (said := capsys.readouterr().err)
    assert "left" in said


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_file_of_the_hub_is_fetched_alone_and_found_again_offline(cache, tmp_path, tied, monkeypatch, revision):
    from huggingface_hub import errors

    source, calls = write(tmp_path / "tiny-q8_0.gguf", tied), []

    def download(repository, *, cache_dir, allow_patterns, local_files_only=False, revision="main"):
        calls.append((repository, allow_patterns, local_files_only, revision))
        snapshot = Path(cache_dir) / "models--org--tiny-GGUF" / "snapshots" / "c0ffee"
        if not local_files_only:
            (snapshot / "sub").mkdir(parents=True)
            shutil.copy(source, snapshot / "sub" / "tiny-q8_0.gguf")
        elif not snapshot.exists():
            raise errors.LocalEntryNotFoundError("not cached")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    name = "org/tiny-GGUF:sub/tiny-q8_0.gguf"
    assert checkpoints.name_of(name, revision) == "tiny-q8_0"
    first = resolve(name, revision)
    assert first.revision == f"org/tiny-GGUF@c0ffee tiny-q8_0.gguf sha256:{checkpoints.sha256(source)}"
    assert resolve(name, revision) == first
    asked = ("org/tiny-GGUF", ["sub/tiny-q8_0.gguf"])
    at = revision or "main"
    assert calls == [(*asked, True, at), (*asked, False, at), (*asked, True, at)]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=r"org/tiny-GGUF has no file absent\.gguf"):
        resolve("org/tiny-GGUF:absent.gguf")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen2.5-Coder-0.5B-Instruct-Q4_K_M", "qwen2.5-coder-0.5b-instruct"),
        ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct"),
        ("llama-3.2-1b-instruct-IQ4_XS", "llama-3.2-1b-instruct"),
        ("model-f16", "model"),
        ("mistral-7b.BF16", "mistral-7b"),
        ("Q8_0", "Q8_0"),
        ("org/Model-7B", "org/Model-7B"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
    ],
)
def test_weights_of_methods_are_found_whatever_the_number_format(name, model):
    assert gguf_file.model_of(name) == model


# --- what is refused -------------------------------------------------------------------------------------------------


def settings(**values):
    """Settings of the file, by names in which __ stands for a dot."""
    return {"settings": {key.replace("__", "."): value for key, value in values.items()}}


def without(name):
    return {"change": lambda stored: {key: value for key, value in stored.items() if key != name}}


def with_tensor(name, shape=(3,), kind=None):
    values = np.ones(shape, np.uint8 if kind else np.float32)
    return {"change": lambda stored: stored | {name: (values, kind)}}


REFUSED = {
    "architecture": (settings(general__architecture="gemma2"), "its architecture is 'gemma2'; supported: llama, qwen2"),
    "experts": (settings(llama__expert_count=8), "mixture of experts"),
    "adapter": (settings(general__type="adapter"), "it holds a adapter"),
    "no setting": (settings(llama__block_count=None), "it has no llama.block_count"),
    "setting of another type": (settings(llama__context_length="many"), "llama.context_length is a str"),
    "settings by layer": (settings(llama__feed_forward_length=[80, 80, 96, 80]), "feed_forward_length is a list"),
    "no layers": (settings(llama__block_count=0), "out of bounds .*num_hidden_layers"),
    "too many layers": (settings(llama__block_count=2**31), "out of bounds .*num_hidden_layers"),
    "no heads": (settings(llama__attention__head_count=0), "out of bounds .*num_attention_heads"),
    "heads in no groups": (settings(llama__attention__head_count_kv=4), "no multiple of num_key_value_heads"),
    "sizes that do not fit": (
        settings(llama__attention__head_count=7),
        r"its sizes do not fit .*48.* multiple .* \(7\)",
    ),
    "norm": (settings(llama__attention__layer_norm_rms_epsilon=math.nan), "out of bounds"),
    "rope theta": (settings(llama__rope__freq_base=-1.0), "out of bounds"),
    "rope kind": (
        settings(llama__rope__scaling__type="longrope", llama__rope__scaling__factor=4.0),
        "RoPE scaling is 'longrope'; supported: linear, yarn",
    ),
    "rope over parts": (settings(llama__rope__dimension_count=4), "rope.dimension_count is 4 for heads of 8"),
    "yarn's details": (
        settings(
            llama__rope__scaling__type="yarn",
            llama__rope__scaling__factor=4.0,
            llama__rope__scaling__original_context_length=64,
            llama__rope__scaling__yarn_beta_fast=16.0,
        ),
        "its YaRN has llama.rope.scaling.yarn_beta_fast",
    ),
    "rope factors": (with_tensor("rope_freqs.weight", (4,)), None),  # ones: no scaling, which Llama 3's formula gives
    "other rope factors": (
        {"change": lambda stored: stored | {"rope_freqs.weight": (np.arange(1, 5, dtype=np.float32), None)}},
        "does not hold the RoPE scaling of Llama 3",
    ),
    "no embedding": (without("token_embd.weight"), "it has no tensor token_embd.weight"),
    "missing tensor": (without("blk.2.ffn_up.weight"), "it has no tensor blk.2.ffn_up.weight, which a llama needs"),
    "unread tensor": (with_tensor("blk.0.attn_sinks.weight"), "it has tensor blk.0.attn_sinks.weight, which a llama"),
    "biases of some": (with_tensor("blk.0.attn_q.bias", (48,)), "it has tensor blk.0.attn_q.bias"),
    "shape": (with_tensor("output_norm.weight", (47,)), r"output_norm.weight has shape \(47,\), .* ask for \(48,\)"),
    "codes": (with_tensor("output_norm.weight", (48,), Kind.I8), "output_norm.weight is stored as I8, which cannot"),
    "pre-tokenizer": (
        settings(tokenizer__ggml__pre="jais"),
        "its pre-tokenizer 'jais' is unknown; supported: codeshell, d",
    ),
    "tokenizer": (settings(tokenizer__ggml__model="bert"), "its tokenizer is of the kind 'bert'; supported: gpt2"),
    "no tokens": (settings(tokenizer__ggml__tokens=None), "it has no tokenizer.ggml.tokens"),
    "no merges": (settings(tokenizer__ggml__merges=None), "it has no tokenizer.ggml.merges"),
    "merges of no tokens": (settings(tokenizer__ggml__merges=["x yz"]), "its vocabulary is damaged"),
    "tokens that are no text": (settings(tokenizer__ggml__tokens=[1] * 272), "its vocabulary is damaged"),
    "types of few": (settings(tokenizer__ggml__token_type=[1] * 5), "272 tokens and 5 types"),
    "equal tokens": (settings(tokenizer__ggml__tokens=["a"] * 272), "two tokens have the same text"),
    "end beyond": (settings(tokenizer__ggml__eos_token_id=300), "eos_token_id is 300, beyond its vocabulary of 272"),
    "split": (settings(split__count=3), "one of several parts; join all parts"),
    "alignment": (settings(general__alignment=0), "general.alignment is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(cache, tmp_path, tied, case):
    damage, told = REFUSED[case]
    path = write(tmp_path / "a.gguf", tied, **damage)
    if told is None:
        assert found(path).config.layers == 4
        return
    with pytest.raises(UserError, match=told) as caught:
        resolve(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert leftovers(cache) == []


def test_a_larger_vocabulary_than_the_embedding_is_refused(cache, tmp_path, tied):
    tokens = [*gguf_files.vocabulary(272)["tokenizer.ggml.tokens"], "more"]
    path = write(tmp_path / "a.gguf", tied, {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * 273})
    with pytest.raises(UserError, match="goes up to id 272"):
        found(path)


@pytest.mark.parametrize(
    ("begin", "told"),
    [
        (b"PK\x03\x04", "a.gguf is not a GGUF file (it begins with b'PK"),
        (b"", "a.gguf is not a GGUF file (it begins with b''"),
        (b"GGUF", "it is incomplete"),
        (b"GGUF\x01\x00\x00\x00", "it is of version 1, and only"),
        (b"GGUF\x00\x00\x00\x03", "in big-endian order"),
        (b"GGUF\x09\x00\x00\x00", "of version 9"),
        (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQQ", 0, 1, 2**60), "it is incomplete"),
        (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQQ", 2**60, 0, 0), "it is incomplete"),
        (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 2**60), "it is incomplete"),
        (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 8, 2**60), "it is incomplete"),
        (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQQ1sI", 0, 1, 1, b"k", 99), "a value of type 99"),
        (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQQ1sI", 0, 1, 1, b"\xff", 4), "UnicodeDecodeError"),
    ],
)
def test_what_is_no_gguf_is_refused(cache, tmp_path, begin, told):
    path = tmp_path / "a.gguf"
    path.write_bytes(begin)
    with pytest.raises(UserError) as caught:
        resolve(str(path))
    assert told in str(caught.value)


def test_every_truncated_file_is_refused(cache, tmp_path, tied):
    whole, path = write(tmp_path / "whole.gguf", tied).read_bytes(), tmp_path / "cut.gguf"
    begin = min(tensor.begin for tensor in gguf_file.read(tmp_path / "whole.gguf").tensors.values())
    for size in [*range(0, begin, 97), begin, begin + 1, len(whole) // 2, len(whole) - 33]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"incomplete|is not a GGUF file"):
            gguf_file.read(path)


def test_flipped_bytes_never_end_in_anything_but_an_error_of_ours(cache, tmp_path, tied):
    whole, path, rng = write(tmp_path / "whole.gguf", tied).read_bytes(), tmp_path / "a.gguf", random.Random(0)
    begin = min(tensor.begin for tensor in gguf_file.read(tmp_path / "whole.gguf").tensors.values())
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(begin)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            gguf_convert.plan(gguf_file.read(path))
        except UserError:
            refused += 1
    assert refused > 20


def test_a_file_that_shrinks_meanwhile_is_refused(cache, tmp_path, tied):
    path = write(tmp_path / "a.gguf", tied)
    planned = gguf_convert.plan(gguf_file.read(path))
    path.write_bytes(path.read_bytes()[:-1000])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="it became shorter"):
        gguf_convert.convert(planned, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("models/absent.gguf", "there is no file 'models/absent.gguf': give the path of a GGUF file, or ORG/NAME:FILE"),
        ("{}/a-00001-of-00003.gguf", "it is one of several parts; join all parts"),
        ("{}/inside", r"it has no config.json; name one of its files \(a.gguf\)"),
        ("{}/notes.txt", "notes.txt is not a GGUF file .* give one, or a folder"),
    ],
)
def test_mistaken_names_are_refused_before_torch_is_loaded(cache, tmp_path, name, told):
    (tmp_path / "inside").mkdir()
    (tmp_path / "notes.txt").write_text("Hello")
    for file in ("inside/a.gguf", "a-00001-of-00003.gguf"):
        (tmp_path / file).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=told):
        checkpoints.name_of(name.format(tmp_path))


def test_a_local_file_takes_no_revision(cache, tmp_path, tied):
    with pytest.raises(UserError, match="takes no revision"):
        checkpoints.name_of(str(write(tmp_path / "a.gguf", tied)), "v1")
