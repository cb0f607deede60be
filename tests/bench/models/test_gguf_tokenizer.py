"""Tokens of a GGUF file are llama.cpp's: by a committed table, and by the library itself where it is installed.

`tests/gguf_table.py` makes the table.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest

from bench.files import cache_root
from bench.models import checkpoints, gguf_file
from bench.models.chat import ChatFormat
from bench.models.gguf_tokenizer import KINDS, tokenizer_of
from tests.gguf_table import by_llama_cpp, digest, read_table, strings, write_vocabulary

ALL = ("llama", *sorted(KINDS))
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
table = functools.cache(read_table)


def vocabulary(folder: Path, kind: str, **changes) -> Path:
    """A small vocabulary of the table with a kind of pre-tokenizer, or SentencePiece's."""
    settings = table()["vocabularies"]["llama" if kind == "llama" else "gpt2"]
    return write_vocabulary(folder / "v.gguf", settings | {"tokenizer.ggml.pre": kind} | changes)


def ours(path: Path):
    return ChatFormat(tokenizer_of(gguf_file.read(path))).encode


def test_the_table_has_500_strings_of_every_kind():
    found = table()["strings"]
    assert len(set(found)) > 490
    assert found == list(strings())
    for needed in (
        "1987",
        "c->d",
        "café",
        "e\u0301",
        "東京",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "<|im_start|>",
        "\t\t",
        "        ",
        "\r\n",
    ):
        assert sum(needed in text for text in found) >= 5


@pytest.mark.parametrize("kind", ALL)
def test_tokens_of_every_kind_are_those_of_the_table(tmp_path, kind):
    assert digest(map(ours(vocabulary(tmp_path, kind)), table()["strings"])) == table()["kinds"][kind]


def test_the_kinds_differ():
    differ = {digest for kind, digest in table()["kinds"].items()}
    assert len(differ) >= len(set(KINDS.values()))


@needs_llama_cpp
@pytest.mark.parametrize("kind", ALL)
def test_tokens_of_every_kind_are_llama_cpps(tmp_path, kind):
    path = vocabulary(tmp_path, kind)
    encode, theirs = ours(path), by_llama_cpp(path)
    for text in table()["strings"]:
        assert encode(text) == theirs(text), repr(text)


@needs_llama_cpp
def test_no_space_is_put_first_where_the_file_says_so(tmp_path):
    path = vocabulary(tmp_path, "llama", **{"tokenizer.ggml.add_space_prefix": False})
    encode, theirs = ours(path), by_llama_cpp(path)
    for text in table()["strings"]:
        assert encode(text) == theirs(text), repr(text)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "smollm", "default"])
def test_text_comes_back(tmp_path, kind):
    tokenizer = tokenizer_of(gguf_file.read(vocabulary(tmp_path, kind)))
    for text in table()["strings"]:
        plain = text.replace("<|im_start|>", "").replace("<|im_end|>", "").replace("<|endoftext|>", "")
        assert tokenizer.decode(tokenizer.encode(plain, add_special_tokens=False)) == plain


@pytest.mark.slow
def test_the_default_models_tokens_are_llama_cpps():
    encode = ChatFormat(checkpoints.load_tokenizer(checkpoints.resolve("default"))).encode
    right = table()["models"]["SmolLM2-135M-Instruct.Q4_1"]
    assert [encode(text) for text in table()["strings"]] == right


def test_the_second_models_tokens_are_llama_cpps_where_it_was_converted():
    """It is never fetched for a test."""
    folder = next((cache_root() / "gguf").glob("*-1d9614638d18"), None)
    if folder is None:
        pytest.skip("the second model (scripts/second_model.sh) was not used here")
    from transformers import PreTrainedTokenizerFast

    encode = ChatFormat(PreTrainedTokenizerFast.from_pretrained(folder)).encode
    right = table()["models"]["qwen2.5-coder-0.5b-instruct-q4_k_m"]
    assert [encode(text) for text in table()["strings"]] == right
