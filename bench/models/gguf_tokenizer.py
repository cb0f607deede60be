"""The tokenizer of a GGUF file, which gives the tokens that llama.cpp gives: no normalizer, special tokens in text.

Rules of pre-tokenizers: llama.cpp's src/llama-vocab.cpp, where `tokenizer.ggml.pre` names them; the patterns are those
of the models' own tokenizer.json.
"""

from __future__ import annotations

from typing import Any

from bench.files import first_line
from bench.models.gguf_file import Gguf

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
# Tokens that end a turn: llama.cpp takes them for special, and as ends, whatever the file says.
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Cases of ASCII letters, as llama.cpp has it; the models' own tells all cases apart, and takes marks for letters.
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])*(?:(?=\p{L})[^A-Z])+"
    r"|[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])+(?:(?=\p{L})[^A-Z])*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_DIGITS = (r"\p{N}", _GPT2)
# Kind of pre-tokenizer -> patterns that cut text, one after the other.
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("default", ""), _DEFAULT),  # "": of files from before there were kinds
    **dict.fromkeys(("gpt-2", "phi-2", "olmo"), (_GPT2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b"), _DIGITS),
    "tekken": (_TEKKEN,),
    "deepseek-coder": _DEEPSEEK_CODER,
}
# Words that are tokens are taken whole, even if no merges lead there.
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"}
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # transformers' word: the file's
_ENDING = ("eos", "eot", "eom")
_ANOTHER = "take a file of another model"


def tokenizer_of(gguf: Gguf) -> Any:
    """Build transformers' tokenizer, with the file's chat template.

    Raises:
        UserError: another kind of tokenizer or pre-tokenizer, or a vocabulary that is damaged.

    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind := gguf.get("tokenizer.ggml.model", str))
    if build is None:
        listed = "gpt2 (byte-level BPE), llama (SentencePiece's BPE)"
        raise gguf.refused(f"its tokenizer is of the kind {kind!r}; supported: {listed}", _ANOTHER)
    tokens, types = _vocabulary(gguf)
    tokenizer = build(gguf, tokens)
    for is_special, chosen in ((True, (_UNKNOWN, _CONTROL)), (False, (_USER_DEFINED,))):
        added = [text for text, of_type in zip(tokens, types, strict=True) if of_type in chosen]
        add = tokenizer.add_special_tokens if is_special else tokenizer.add_tokens
        add([AddedToken(text, normalized=False, special=is_special) for text in added])
    ids = {word: _token_id(gguf, key, len(tokens)) for word, key in _NAMED.items()}
    named = {f"{word}_token": None if i is None else tokens[i] for word, i in ids.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.chat_template = gguf.get("tokenizer.chat_template", str, "") or None
    return fast


def end_tokens(gguf: Gguf) -> list[int]:
    """Ids of the tokens that end an answer: those that the file names, and known ends of a turn."""
    tokens, _ = _vocabulary(gguf)
    named = [_token_id(gguf, key, len(tokens)) for key in _ENDING]
    return sorted({i for i in named if i is not None} | {i for i, text in enumerate(tokens) if text in _ENDS})


def _vocabulary(gguf: Gguf) -> tuple[list[str], list[int]]:
    """The text and the type of every token.

    Raises:
        UserError: there are none, they are of another type, or two are the same.

    """
    tokens, types = gguf.get("tokenizer.ggml.tokens", list), gguf.get("tokenizer.ggml.token_type", list)
    if not tokens or not isinstance(tokens[0], str) or len(types) != len(tokens) or not isinstance(types[0], int):
        raise gguf.refused(f"its vocabulary is damaged: {len(tokens)} tokens and {len(types)} types")
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]  # as llama.cpp calls them
    if len(set(tokens)) < len(tokens):
        raise gguf.refused("its vocabulary is damaged: two tokens have the same text")
    return tokens, [_CONTROL if text in _ENDS else of_type for text, of_type in zip(tokens, types, strict=True)]


def _token_id(gguf: Gguf, name: str, vocab: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if gguf.settings.get(key) in (None, 2**32 - 1):  # the latter is minus one, for none
        return None
    found = gguf.get(key, int)
    if not 0 <= found < vocab:
        raise gguf.refused(f"{key} is {found}, beyond its vocabulary of {vocab} tokens")
    return found


def _byte_level(gguf: Gguf, tokens: list[str]) -> Any:
    """Byte-level BPE, as in GPT-2."""
    from tokenizers import Regex, decoders, pre_tokenizers

    pre = gguf.get("tokenizer.ggml.pre", str, "")
    if pre not in KINDS:
        listed = ", ".join(sorted(filter(None, KINDS)))
        raise gguf.refused(f"its pre-tokenizer {pre!r} is unknown; supported: {listed}", _ANOTHER)
    merges = [
        (merge[: (cut := merge.find(" ", 1))], merge[cut + 1 :]) for merge in gguf.get("tokenizer.ggml.merges", list)
    ]
    tokenizer = _bpe(gguf, tokens, merges, ignore_merges=pre in _WHOLE_WORDS)
    if KINDS[pre] is _DIGITS:  # in the words of these models' own tokenizer.json
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in KINDS[pre]]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(gguf: Gguf, tokens: list[str]) -> Any:
    """SentencePiece's BPE: pairs that make the piece of the highest score are merged first; unknown text is bytes."""
    from tokenizers import decoders, normalizers

    scores, known = gguf.get("tokenizer.ggml.scores", list), set(tokens)
    if len(scores) != len(tokens) or not isinstance(scores[0], float):
        raise gguf.refused(f"its vocabulary is damaged: {len(tokens)} tokens and {len(scores)} scores")
    order = sorted(range(len(tokens)), key=lambda i: -scores[i])
    merges = [
        (tokens[i][:cut], tokens[i][cut:])
        for i in order
        for cut in range(1, len(tokens[i]))
        if tokens[i][:cut] in known and tokens[i][cut:] in known
    ]
    unknown = _token_id(gguf, "unknown", len(tokens)) or 0
    tokenizer = _bpe(gguf, tokens, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    prefixed = gguf.get("tokenizer.ggml.add_space_prefix", bool, True)
    spaces = [normalizers.Prepend("▁")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _bpe(gguf: Gguf, tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> Any:
    from tokenizers import Tokenizer, models

    try:
        vocabulary = {text: i for i, text in enumerate(tokens)}
        plain = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}  # as transformers writes it
        return Tokenizer(models.BPE(vocabulary, merges, **plain, **options))
    except Exception as error:  # of no type of its own: merges of what is no token
        raise gguf.refused(f"its vocabulary is damaged ({first_line(error)})") from error
