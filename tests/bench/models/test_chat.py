"""How a conversation is spelled for a model, and what ends its answers."""

from __future__ import annotations

import copy

import pytest

from bench.errors import UserError
from bench.models.chat import VICUNA_TEMPLATE, ChatFormat, template_digest, tokenizer_digest

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HISTORY = [("Hi there.", "Hello!")]


@pytest.fixture
def vicuna(tiny_tokenizer):
    """The fallback, on a tokenizer with Vicuna's begin and end tokens."""
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


def test_system_message_opens_the_conversation_and_replaces_vicunas_own(tiny_tokenizer, vicuna):
    prompt = ChatFormat(tiny_tokenizer).prompt(HISTORY, "And you?", "Be brief.")
    assert tiny_tokenizer.decode(prompt).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert vicuna.tokenizer.decode(vicuna.prompt(HISTORY, "And you?", "Be brief.")) == (
        "<s>Be brief. USER: Hi there. ASSISTANT: Hello!</s>USER: And you? ASSISTANT:"
    )


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "leaves out a system message"),
        ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}",
         "cannot render a system message .no system."),
    ],
)  # fmt: skip
def test_template_without_system_messages_refuses_them_with_the_remedy(tiny_tokenizer, template, told):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"{told}: remove it from the questions, or correct the template"):
        ChatFormat(tokenizer).prompt([], "Hi there.", "Be brief.")


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


def test_separators_of_the_template_join_to_its_prompts(tiny_tokenizer, vicuna):
    assert ChatFormat(tiny_tokenizer).separators() == (
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n",
    )
    assert vicuna.separators() == (f"<s>{SYSTEM} USER: ", " ASSISTANT:", "</s>USER: ")
    for chat in (ChatFormat(tiny_tokenizer), vicuna):
        before, to_reply, _ = chat.separators()
        assert chat.encode(before + "Hi" + to_reply) == chat.prompt([], "Hi")


def test_a_token_beyond_the_models_vocabulary_is_refused_by_name(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer, vocab=258)
    with pytest.raises(UserError, match=r"token 258 \('<\|im_end\|>'\) .* vocabulary of 258 tokens \(0 to 257\)"):
        chat.encode("what<|im_end|>")
    assert chat.encode("what") == ChatFormat(tiny_tokenizer).encode("what")


def test_a_template_that_does_not_write_every_turn_has_no_separators(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="does not write every turn once"):
        ChatFormat(tokenizer).separators()


# --- digests ---------------------------------------------------------------------------------------------------------


def changed(tokenizer, change):
    other = copy.deepcopy(tokenizer)
    change(other)
    return other


def test_the_templates_digest_is_that_of_the_template_in_use(tiny_tokenizer):
    text = tiny_tokenizer.chat_template
    first = template_digest(tiny_tokenizer)
    named = changed(tiny_tokenizer, lambda t: setattr(t, "chat_template", {"default": text, "tools": "x"}))
    assert template_digest(named) == first
    bare = changed(tiny_tokenizer, lambda t: setattr(t, "chat_template", None))
    vicuna = changed(tiny_tokenizer, lambda t: setattr(t, "chat_template", VICUNA_TEMPLATE))
    assert template_digest(bare) == template_digest(vicuna) != first


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (lambda t: t(["a", "bc"], padding=True, truncation=True, max_length=9), True),  # which leaves settings behind
        (lambda t: setattr(t, "chat_template", None), True),
        (lambda t: t.add_tokens(["zebra"]), False),
        (lambda t: setattr(t, "eos_token", "<|endoftext|>"), False),
        (lambda t: setattr(t.backend_tokenizer, "pre_tokenizer", None), False),
    ],
    ids=["a call", "template", "vocabulary", "end token", "rules"],
)
def test_the_tokenizers_digest_follows_what_makes_token_ids(tiny_tokenizer, change, is_same):
    other = changed(tiny_tokenizer, change)
    assert (tokenizer_digest(other) == tokenizer_digest(tiny_tokenizer)) == is_same
