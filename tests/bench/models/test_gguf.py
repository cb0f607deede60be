"""GGUF files as models: converted weights are the tensors, answers are transformers', and the rest is refused by name.

The files are written by llama.cpp's own package. Quantised tensors are held against transformers' reader, which has
dequantisers of its own.
"""

from __future__ import annotations

import json
import shutil
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
