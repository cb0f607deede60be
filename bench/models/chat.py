"""A conversation as token ids, an answer as text: a tokenizer with its chat template. Needs no torch."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

# For checkpoints that carry no template, as FastChat's conversation template vicuna_v1.1 spells it.
VICUNA_TEMPLATE = (
    "{{ bos_token or '' }}A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' ' if loop.first else '' }}USER: {{ message['content'] }}"
    "{% else %} ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


class ChatFormat:
    """A tokenizer with its chat template (Vicuna's where it carries none)."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.template = "tokenizer" if tokenizer.chat_template else "vicuna"
        self._template = tokenizer.chat_template or VICUNA_TEMPLATE

    def prompt(self, history: Iterable[tuple[str, str]], user: str) -> list[int]:
        """Token ids of a conversation up to where the assistant's answer to `user` begins."""
        messages = [
            message
            for asked, answered in history
            for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
        ]
        text = self._render([*messages, {"role": "user", "content": user}], answering=True)
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of text in which the template has already written every special token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def answer_text(self, token_ids: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text.strip()

    def piece(self, token_id: int) -> str:
        """One token's text as it stands within an answer; a part of a character gives a replacement sign."""
        before: str = self.tokenizer.decode([self._letter])
        both: str = self.tokenizer.decode([self._letter, token_id])
        return both.removeprefix(before)

    @functools.cached_property
    def _letter(self) -> int:
        """A token that stands before a piece, because some tokenizers drop the space at a text's beginning."""
        return self.encode("a")[-1]

    def pieces(self) -> tuple[str, str, str]:
        """What the template writes before the first user turn, from user to assistant, and back to the user."""
        first, reply, second = "\x01", "\x02", "\x03"  # no template contains these
        messages = [("user", first), ("assistant", reply), ("user", second)]
        text = self._render([{"role": role, "content": content} for role, content in messages], answering=False)
        before, rest = text.split(first)
        middle, rest = rest.split(reply)
        # A prompt ends before the space of "ASSISTANT: ", which belongs to the answer's first word.
        return before, middle.rstrip(" "), rest.split(second)[0]

    def _render(self, messages: list[dict[str, str]], *, answering: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=answering
        )
        return text


def eos_ids(tokenizer: Any, generation_config: dict[str, Any]) -> frozenset[int]:
    """Every token that ends an answer, from the tokenizer and the checkpoint's generation_config.json."""
    listed = generation_config.get("eos_token_id")
    ids = listed if isinstance(listed, Collection) else [listed]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)
