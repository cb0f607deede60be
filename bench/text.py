"""Text from models, questions and files, made harmless for terminals and pages."""

from __future__ import annotations

import re

# Control characters, escape codes among them, those that turn text around, and halves of characters, which no stream
# takes; line breaks and tabs are text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with control characters spelled out, so that no page and no terminal obeys them."""
    return _CONTROL.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)
