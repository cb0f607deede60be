"""Conversations as token ids and answers as text: a tokenizer with its chat template. Needs no torch."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.files import first_line

# For checkpoints that carry no template, as FastChat's conversation template vicuna_v1.1 spells it.
VICUNA_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' ' if loop.first else '' }}USER: {{ message['content'] }}"
    "{% else %} ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


class ChatFormat:
    """A tokenizer with its chat template: the one called `default` if it has several, Vicuna's if it has none."""

    def __init__(self, tokenizer: Any, vocab: int | None = None):
        """`vocab`: the rows of the model's embedding, so that token ids beyond them are refused.

        Raises:
            UserError: the tokenizer has several chat templates, and none is called `default`.

        """
        self.tokenizer, self.vocab = tokenizer, vocab
        self.template = "tokenizer" if tokenizer.chat_template else "vicuna"
        self._template = template_of(tokenizer)

    def prompt(self, history: Iterable[tuple[str, str]], user: str, system: str = "") -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer to `user` begins.

        `system`: the message that opens it; "": none, or the template's own.

        Raises:
            UserError: the template cannot render it or leaves out `system`, or a token id is beyond the model's
                vocabulary.

        """
        messages = [
            message
            for asked, answered in history
            for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
        ]
        opening = [{"role": "system", "content": system}] if system else []
        text = self._render([*opening, *messages, {"role": "user", "content": user}], answering=True)
        if system.strip() not in text:
            what, remedy = _NEEDED["system"]
            raise UserError(f"the chat template in {self._source()} leaves out {what}: {remedy}")
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of text that already contains every special token.

        Raises:
            UserError: a token id is beyond the model's vocabulary.

        """
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if self.vocab is not None and (largest := max(ids, default=0)) >= self.vocab:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"token {largest} ({token!r}) of a prompt is beyond the model's vocabulary of {self.vocab} "
                f"tokens (0 to {self.vocab - 1}): remove it from the question"
            )
        return ids

    def answer_text(self, token_ids: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text.strip()

    def token_text(self, token_id: int) -> str:
        """One token's text within an answer; part of a character gives a replacement sign."""
        before: str = self.tokenizer.decode([self._letter])
        both: str = self.tokenizer.decode([self._letter, token_id])
        return both.removeprefix(before)

    @functools.cached_property
    def _letter(self) -> int:
        """A token to put before another, because some tokenizers drop the space at the beginning of a text."""
        return self.encode("a")[-1]

    def separators(self) -> tuple[str, str, str]:
        """What the template writes before the first user turn, from user to assistant, and back to the user.

        Raises:
            UserError: the template cannot render two turns.

        """
        first, reply, second = "\x01", "\x02", "\x03"  # no template contains these
        messages = [("user", first), ("assistant", reply), ("user", second)]
        text = self._render([{"role": role, "content": content} for role, content in messages], answering=False)
        if [text.count(sign) for sign in (first, reply, second)] != [1, 1, 1]:
            raise UserError(f"the chat template in {self._source()} does not write every turn once: {_REMEDY}")
        before, rest = text.split(first)
        middle, rest = rest.split(reply)
        # A prompt ends before the space of "ASSISTANT: ", which belongs to the answer's first word.
        return before, middle.rstrip(" "), rest.split(second)[0]

    def check(self) -> None:
        """Render a one-turn prompt, so that a broken template is reported before anything long begins.

        Raises:
            UserError: the template cannot be rendered, or leaves out what the user says.

        """
        probe = "Hello"
        if probe not in self._render([{"role": "user", "content": probe}], answering=True):
            raise UserError(f"the chat template in {self._source()} leaves out what the user says: {_REMEDY}")

    def _render(self, messages: list[dict[str, str]], *, answering: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=answering
            )
        except Exception as error:  # Jinja's errors, and whatever an expression in the template raises
            roles = {message["role"] for message in messages}
            what, remedy = next(needed for role, needed in _NEEDED.items() if role in roles)
            reason = f"the chat template in {self._source()} cannot render {what} ({first_line(error)})"
            raise UserError(f"{reason}: {remedy}") from error
        return text

    def _source(self) -> str:
        """The file that the template was read from."""
        folder = Path(self.tokenizer.name_or_path)
        name = "chat_template.jinja" if (folder / "chat_template.jinja").is_file() else "tokenizer_config.json"
        return str(folder / name)


_REMEDY = "correct it, or delete it to use Vicuna's format"
_NEEDED = {  # what a template must render where a role speaks, and what to do if it cannot
    "assistant": ("a second turn", "ask one-turn questions only, or correct the template"),
    "system": ("a system message", "remove it from the questions, or correct the template"),
    "user": ("a prompt", _REMEDY),
}


def template_of(tokenizer: Any) -> str:
    """The chat template that prompts are written with; see `ChatFormat`."""
    found: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(found, dict):
        if "default" not in found:
            named = ", ".join(map(repr, found)) or "none"
            raise UserError(
                f"the tokenizer in {tokenizer.name_or_path} has several chat templates ({named}), and none is called "
                "'default': rename the one to use"
            )
        found = found["default"]
    return found or VICUNA_TEMPLATE


def template_digest(tokenizer: Any) -> str:
    """The SHA-256 of the chat template that prompts are written with."""
    return _sha256(template_of(tokenizer))


def tokenizer_digest(tokenizer: Any) -> str:
    """The SHA-256 of what turns text into token ids and back: vocabulary, merges, rules and special tokens."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        rules = tokenizer.get_vocab()
    else:
        rules = json.loads(backend.to_str()) | {"truncation": None, "padding": None}  # settings of the last call
    return _sha256(json.dumps([rules, tokenizer.special_tokens_map], sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
