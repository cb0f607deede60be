"""JSON from a disk or a pipe, decoded strictly into the dataclasses and TypedDicts that the program declares.

Bounds are declared with the type: `Annotated[int, Field(ge=0)]`. A value of another type is never converted, NaN and
infinite numbers are refused, and so are undeclared fields.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
import typing
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from bench.errors import UserError
from bench.files import read_bounded

T = TypeVar("T")
_SHOWN_CHARS = 60
_SHOWN_BITS = 256
_NO_NUMBER = re.compile(r"NaN|Infinity")  # perhaps within a string


def _moment(text: str) -> str:
    if datetime.datetime.fromisoformat(text).year < 1970:  # raises ValueError itself
        raise ValueError(f"a time before 1970: {text!r}")
    return text


def _plain(value: Any) -> Any:
    """`value`, unless JSON cannot hold it: `Any` takes integers of thousands of digits, and 1e999 as infinity."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict | list):
            left += one.values() if isinstance(one, dict) else one
        elif isinstance(one, int | float) and not (math.isfinite(one) if isinstance(one, float) else _is_short(one)):
            raise ValueError(f"{_shown(one)} is out of range")
    return value


def _is_short(number: int) -> bool:
    return number.bit_length() < _SHOWN_BITS


Count = Annotated[int, Field(ge=0, le=2**53)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Real = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
# A name and never a path.
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]*[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=200)]
Key = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")]  # a count or token id as the key of an object
Moment = Annotated[str, AfterValidator(_moment)]  # ISO 8601
Json = Annotated[Any, AfterValidator(_plain)]  # any value that JSON can hold


class MismatchError(ValueError):
    """JSON that is not what was declared; the message names the field."""


def decode(kind: type[T], text: str | bytes, *, lenient: bool = False) -> T:
    """A JSON text as a `kind`. `lenient`: fields that `kind` does not have are left out.

    Raises:
        MismatchError: not JSON, another type, out of bounds, or a field is missing or undeclared.

    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if text.startswith("\ufeff"):
            raise MismatchError("begins with a byte order mark: save it as UTF-8 without one")
        parsed = from_json(text)
        if _NO_NUMBER.search(text):  # validation would take NaN where `Any` is declared
            _refuse_no_numbers(parsed)
        adapter = _adapter(typing.cast(Hashable, kind))
        found: T = adapter.validate_json(text, strict=True, extra="ignore" if lenient else "forbid")
        return found
    except ValidationError as error:
        raise MismatchError(_first(error)) from None
    except ValueError as error:
        said = re.sub(r"at line 1 column", "at column", str(error))
        if "hex escape" in said:
            said = f"half a character (a lone surrogate) is written as \\u: {said}"
        raise MismatchError(said) from None


def _refuse_no_numbers(value: Any, field: str = "") -> None:
    """Raise MismatchError, with the field's name, if JSON's text has NaN or Infinity for a number."""
    if isinstance(value, float) and not math.isfinite(value):
        raise MismatchError(f"{field.removeprefix('.') or 'the text'}: {json.dumps(value)} is not a number in JSON")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_no_numbers(item, f"{field}{_step(key)}")


def decode_value(kind: type[T], value: Any, *, lenient: bool = False) -> T:
    """The same for what `json` has read before."""
    try:
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise MismatchError(str(error)) from None
    return decode(kind, text, lenient=lenient)


def read(kind: type[T], path: Path, *, lenient: bool = False) -> T:
    """A JSON file as a `kind`.

    Raises:
        FileNotFoundError: there is none.
        MismatchError: it cannot be read, or as `decode`.

    """
    try:
        content = read_bounded(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MismatchError(error.strerror or str(error)) from error
    return decode(kind, content, lenient=lenient)


def decode_lines(
    kind: type[T],
    content: bytes,
    where: Path | str,
    what: str,
    *,
    check: Callable[[T], None] = lambda value: None,
    lenient: bool = False,
) -> list[T]:
    """The JSON texts in `content`, one a line; blank lines are skipped. `check` may raise MismatchError as well.

    Raises:
        UserError: a line is not `what` is expected, with the file (`where`), the line and the field.

    """
    found = []
    # By this one byte alone: a text may hold other characters that end lines, which JSON leaves as they are.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                found.append(decode(kind, line, lenient=lenient))
                check(found[-1])
            except MismatchError as error:
                raise UserError(f"{where}, line {number}: not {what} ({error}); mend or remove the line") from error
    return found


def _first(error: ValidationError) -> str:
    """The first fault: its field, what was expected there, and what was found."""
    first = error.errors(include_url=False)[0]
    field = "".join(map(_step, first["loc"]))
    is_scalar = isinstance(first["input"], str | int | float | None) and first["loc"] and first["type"] != "value_error"
    shown = f", not {_shown(first['input'])}" if is_scalar else ""
    message = first["msg"].removeprefix("Value error, ")
    said = "missing" if "missing" in first["type"] else f"{message}{shown}"
    return f"{field.removeprefix('.') or 'the text'}: {said}"


def _step(key: int | str) -> str:
    """A part of a field's name, for messages."""
    return f"[{key}]" if isinstance(key, int) else f".{key}"


def _shown(value: Any) -> str:
    """A scalar for a message. Python refuses to write out numbers of thousands of digits."""
    if isinstance(value, int) and not _is_short(value):
        return f"an integer of {value.bit_length() * math.log10(2):,.0f} digits"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}.."


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
