"""Text for terminals: how wide it may be, and how text from models, questions and files is made harmless; and the
numbers in text from there."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from typing import TypeVar

Number = TypeVar("Number", int, float)
MOST_COLUMNS = 110
# Control characters, escape codes among them, those that turn text around, and halves of characters, which no stream
# takes; line breaks and tabs are text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LONG = re.compile(r"\S{4097,}")
_CREDENTIALS = re.compile(r"://\S*@")


def visible(text: str) -> str:
    """`text` with control characters spelled out, so that no page and no terminal obeys them."""
    return _CONTROL.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def shortened(text: str) -> str:
    """`text` with the longest words cut, such as a number of thousands of digits; no path is as long."""
    return _LONG.sub(lambda found: f"{found[0][:60]}..", text)


def without_credentials(text: str) -> str:
    """`text` with what stands before the @ of a URL, name and password, made unreadable."""
    return _CREDENTIALS.sub("://***@", text)


def columns() -> int:
    """Return the width for text: the terminal's, at most 110; 110 where the output is not a terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else MOST_COLUMNS
    return min(width, MOST_COLUMNS)


def numbers(text: str) -> tuple[float, ...]:
    """What argparse reads numbers separated by commas with: `0,0.5,1`."""
    return _each_once(tuple(map(float, text.split(","))), text)


def counts(text: str) -> tuple[int, ...]:
    """The same for whole numbers: `1,2,4`, `256,1k,2k`, where 1k is 1,024."""
    parts = [part.strip().lower() for part in text.split(",")]
    return _each_once(tuple(1024 * int(part[:-1]) if part.endswith("k") else int(part) for part in parts), text)


def _each_once(values: tuple[Number, ...], text: str) -> tuple[Number, ...]:
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} has a value twice: give each once")
    return values
