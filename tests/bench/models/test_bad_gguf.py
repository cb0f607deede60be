"""GGUF files that cannot be run, are damaged, or are named wrongly are refused in a sentence."""

from __future__ import annotations

import math
import random
import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from bench.errors import UserError
from bench.models import checkpoints, gguf_convert, gguf_file
from bench.models.checkpoints import resolve
from tests import gguf_files
from tests.bench.models.test_gguf import found
from tests.bench.models.test_gguf import tied as tied
from tests.fakes import leftovers
from tests.gguf_files import write


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
