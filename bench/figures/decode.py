"""Dataclasses from JSON: the inverse of `dataclasses.asdict`, by the types that the fields declare."""

from __future__ import annotations

import types
from dataclasses import is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_NOUNS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", dict: "an object"}


def decode(kind: type[T], value: Any) -> T:
    """`value`, as JSON holds it, as an instance of the dataclass `kind`; keys of dictionaries stay strings.

    Raises:
        TypeError: a field is missing, unknown or of another type.

    """
    found: T = _decode(kind, value)
    return found


def _decode(kind: Any, value: Any) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        (kind,) = (each for each in args if each is not types.NoneType)
        return _decode(kind, value)
    if kind is Any:
        return value
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        given = _checked(dict, value)
        fields = {key: _decode(hints.get(key, Any), item) for key, item in given.items()}
        try:
            return kind(**fields)  # type: ignore[operator]
        except TypeError as error:
            raise TypeError(f"{str(value)[:60]}: {error}") from error
    if origin is dict:
        return {key: _decode(args[1], item) for key, item in _checked(dict, value).items()}
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise TypeError(f"{value!r}, not a list")
        return origin(_decode(args[0], item) for item in value)
    return _checked(kind, value)


def _checked(kind: Any, value: Any) -> Any:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r}, not {_NOUNS[kind]}")
    return value
