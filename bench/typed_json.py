"""JSON from a disk or a pipe, decoded strictly into the dataclasses and TypedDicts that the program declares.

Bounds are declared with the type: `Annotated[int, Field(ge=0)]`. A value of another type is never converted, NaN and
infinite numbers are refused, and so are fields that nobody declared.
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]*[^/\\\x00.][^/\\\x00]*$")]  # a name and never a path
_SHOWN_CHARS = 60


class MismatchError(ValueError):
    """JSON that is not what was declared; the message names the field."""


def decode(kind: type[T], text: str | bytes, *, lenient: bool = False) -> T:
    """A JSON text as a `kind`. `lenient`: fields that `kind` does not have are left out.

    Raises:
        MismatchError: not JSON, another type, out of bounds, a field is missing, or nobody declared it.

    """
    try:
        from_json(text, allow_inf_nan=False)  # validation would take NaN where `Any` is declared
        adapter = _adapter(typing.cast(Hashable, kind))
        found: T = adapter.validate_json(text, strict=True, extra="ignore" if lenient else "forbid")
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        is_scalar = isinstance(first["input"], str | int | float | None) and first["loc"]
        shown = f", not {first['input']!r}"[:_SHOWN_CHARS] if is_scalar else ""
        said = "missing" if "missing" in first["type"] else f"{first['msg']}{shown}"
        raise MismatchError(f"{field.removeprefix('.') or 'the text'}: {said}") from None
    except ValueError as error:
        raise MismatchError(str(error)) from None


def decode_value(kind: type[T], value: Any, *, lenient: bool = False) -> T:
    """The same for what `json` has read before."""
    return decode(kind, json.dumps(value), lenient=lenient)


def read(kind: type[T], path: Path) -> T:
    """A JSON file as a `kind`.

    Raises:
        OSError: it cannot be read.
        MismatchError: as `decode`.

    """
    return decode(kind, path.read_bytes())


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
