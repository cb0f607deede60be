"""How a conversation is spelled for a model, and what ends its answers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.models.chat import ChatFormat, eos_ids

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HISTORY = [("Hi there.", "Hello!")]


@pytest.fixture
def vicuna(tiny_tokenizer):
    """The fallback, on a tokenizer with Vicuna's begin and end tokens."""
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return ChatFormat(tokenizer)


def test_prompt_is_spelled_by_the_tokenizers_own_template(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    assert chat.template == "tokenizer"
    assert tiny_tokenizer.decode(chat.prompt(HISTORY, "And you?")) == (
        "<|im_start|>user\nHi there.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nAnd you?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_prompt_without_a_template_is_vicunas_as_fastchat_writes_it(vicuna):
    assert vicuna.template == "vicuna"
    assert vicuna.tokenizer.decode(vicuna.prompt([], "Hi there.")) == f"<s>{SYSTEM} USER: Hi there. ASSISTANT:"
    assert vicuna.tokenizer.decode(vicuna.prompt(HISTORY, "And you?")) == (
        f"<s>{SYSTEM} USER: Hi there. ASSISTANT: Hello!</s>USER: And you? ASSISTANT:"
    )


def test_special_tokens_of_the_template_are_single_ids_and_none_is_added(tiny_tokenizer):
    ids = ChatFormat(tiny_tokenizer).prompt([], "a")
    start, end = tiny_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end), ids[0]) == (2, 1, start)


def test_begin_token_of_the_template_is_not_doubled_by_the_tokenizer(vicuna):
    from tokenizers.processors import TemplateProcessing

    tokenizer = vicuna.tokenizer
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    assert tokenizer.encode("a")[0] == begin  # it adds one of its own accord
    assert vicuna.prompt([], "a").count(begin) == 1


def test_answer_text_leaves_out_special_tokens_and_outer_space(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    assert chat.answer_text([*chat.encode(" two words\n"), tiny_tokenizer.eos_token_id]) == "two words"


def test_pieces_of_the_template_join_to_its_prompts(tiny_tokenizer, vicuna):
    assert ChatFormat(tiny_tokenizer).pieces() == (
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n",
    )
    assert vicuna.pieces() == (f"<s>{SYSTEM} USER: ", " ASSISTANT:", "</s>USER: ")
    for chat in (ChatFormat(tiny_tokenizer), vicuna):
        before, to_reply, _ = chat.pieces()
        assert chat.encode(before + "Hi" + to_reply) == chat.prompt([], "Hi")


@pytest.mark.parametrize(
    ("listed", "expected"), [({}, {258}), ({"eos_token_id": 7}, {7, 258}), ({"eos_token_id": [7, 8]}, {7, 8, 258})]
)
def test_every_end_token_of_tokenizer_and_generation_config_counts(tiny_tokenizer, listed, expected):
    assert eos_ids(tiny_tokenizer, listed) == expected
    assert eos_ids(SimpleNamespace(eos_token_id=None), listed) == expected - {258}
