"""llama.cpp's tokens of 500 mixed strings, a table for tests: `python -m tests.gguf_table DEFAULT.gguf SECOND.gguf`.

The table has the token ids by two real models, and digests of them by small vocabularies of every supported kind of
tokenizer. It needs llama-cpp-python; reading it does not.
"""

# ruff: noqa: RUF001 - these signs are meant
from __future__ import annotations

import functools
import gzip
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.gguf_files import BYTE, CONTROL, NORMAL, SPECIAL, UNKNOWN, USER_DEFINED, write_parts

TABLE = Path(__file__).with_name("gguf_table.json.gz")
COUNT = 500
_TEXT = r"""
the of kangaroo hops don't I'll WE'RE they'd O'Brien naïve café déjà vu Ångström fiancée über señor ﬁne
東京タワー 你好，世界 한국어 사과 Привет мир Ελλάδα مرحبا שלום हिन्दी ไทย 🦘 🇩🇪 ✈️ 😀😀
0 7 42 1987 3.14159 1,000,000 2024-11-28 0x1F ½ ² ٣ ४२ Ⅷ 12345678901234567890
def f(x): return {'a': [1, 2], "b": None} for (i = 0; i < n; ++i) <div class='x'> --flag=3 a_b c->d x!=y //:
https://a.example/b?c=d&e=%20 user@example.org $5.00 €3 50% #tag ... … — – ‘quoted’ “so” !!! ??? `code` ~/x
CamelCaseWord SHOUTING mixedCASE iPhone 't 'S 'RE n't \n \u00e9
"""
_WORDS = [*_TEXT.split(), "e\u0301", "o\u0308", "\U0001f469\u200d\U0001f469\u200d\U0001f467"]
_GAPS = (*[" "] * 3, "", "  ", "   ", "\n", "\n\n", "\t", "\t\t", " \n", "\n  ", "\r\n", " " * 8)
_GAPS += ("\u00a0", "\u3000", "\u200b")


@functools.cache
def strings(special: tuple[str, ...] = SPECIAL) -> tuple[str, ...]:
    """The same ones every time: words of all kinds, some of them special tokens, with gaps of all kinds."""
    rng, words = random.Random(500), [*_WORDS, *special, *special]
    made = ["", " ", "\n", "a", " a", special[1] + "user\nHi" + special[2] + "\n"]
    while len(made) < COUNT:
        made.append("".join(rng.choice(words) + rng.choice(_GAPS) for _ in range(rng.randint(1, 14))))
        if rng.random() < 0.3:
            made[-1] = rng.choice(_GAPS) + made[-1]
    return tuple(made)


def digest(ids: Iterable[list[int]]) -> str:
    """One digest for all strings' tokens."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def read_table() -> dict[str, Any]:
    """The committed table."""
    return json.loads(gzip.decompress(TABLE.read_bytes()))


def byte_level() -> dict[str, Any]:
    """Settings of a small byte-level vocabulary, trained on the strings."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(strings(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), *SPECIAL, "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*[NORMAL] * (len(tokens) - 4), *[CONTROL] * 3, USER_DEFINED],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }


def sentencepiece() -> dict[str, Any]:
    """Settings of a small SentencePiece vocabulary, trained on the strings."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "made")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(strings()), model_prefix=prefix, model_type="bpe", vocab_size=900,
            byte_fallback=True, character_coverage=0.98, remove_extra_whitespaces=False, split_digits=True,
            normalization_rule_name="identity", user_defined_symbols=["<tool>"], minloglevel=2,
            control_symbols=list(SPECIAL), allow_whitespace_only_pieces=True,
        )  # fmt: skip
        made = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    types = [
        BYTE if made.IsByte(i) else UNKNOWN if made.IsUnknown(i) else CONTROL if made.IsControl(i) else NORMAL
        for i in range(len(made))
    ]
    tokens = [made.IdToPiece(i) for i in range(len(made))]
    types[tokens.index("<tool>")] = USER_DEFINED
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [float(made.GetScore(i)) for i in range(len(made))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write_vocabulary(path: Path, settings: dict[str, Any]) -> Path:
    """A file with a tokenizer and nothing else."""
    return write_parts(path, {"general.architecture": "llama", **settings}, {})


def by_llama_cpp(path: Path) -> Callable[[str], list[int]]:
    """llama.cpp's own tokenizer of a file."""
    import llama_cpp

    model = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=True)


def main(default: str, second: str) -> None:
    """Write the table."""
    from bench.models.gguf_tokenizer import KINDS

    table: dict[str, Any] = {"strings": strings(), "models": {}, "kinds": {}}
    table["vocabularies"] = {"gpt2": byte_level(), "llama": sentencepiece()}
    for path in (default, second):
        encode = by_llama_cpp(Path(path))
        table["models"][Path(path).stem] = [encode(text) for text in strings()]
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("llama", *sorted(KINDS)):
            settings = table["vocabularies"]["llama" if kind == "llama" else "gpt2"]
            path = write_vocabulary(Path(folder, "v.gguf"), settings | {"tokenizer.ggml.pre": kind})
            table["kinds"][kind] = digest(map(by_llama_cpp(path), strings()))
    TABLE.write_bytes(gzip.compress(json.dumps(table).encode(), mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
