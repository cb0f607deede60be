"""JSON that comes from a disk or a pipe, decoded into the types that the program declares.

`decode(kind, value)` takes dataclasses, TypedDicts, lists, tuples, dictionaries, optional values and scalars. Bounds
are declared with the type: `Annotated[float, Within(0)]`. A value that does not fit raises `MismatchError`, which names
the field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin

from bench.errors import did_you_mean

T = TypeVar("T")
Decoder = Callable[[Any], Any]


class MismatchError(ValueError):
    """A value that is not what its field declares; the message begins with the field."""

    def __init__(self, reason: str, field: str = ""):
        super().__init__(f"{field.removeprefix('.')}: {reason}" if field else reason)
        self.reason, self.field = reason, field

    def inside(self, place: str) -> MismatchError:
        """The same, seen from one level further out; `place` is `.name` or `[index]`."""
        return MismatchError(self.reason, place + self.field)


@dataclass(frozen=True)
class Within:
    """A number from `low` to `high`, both included."""

    low: float
    high: float = math.inf

    def check(self, value: float) -> None:
        """Raise MismatchError for a number outside."""
        if not self.low <= value <= self.high:
            bound = f"at least {self.low:g}" if self.high == math.inf else f"between {self.low:g} and {self.high:g}"
            raise MismatchError(f"{value!r} must be {bound}")


@dataclass(frozen=True)
class OneOf:
    """One of some texts."""

    known: tuple[str, ...]

    def check(self, value: str) -> None:
        """Raise MismatchError for any other text."""
        if value not in self.known:
            raise MismatchError(f"{value!r} must be one of {', '.join(map(repr, self.known))}")


@dataclass(frozen=True)
class FileName:
    """A name that a file can have, and no path."""

    def check(self, value: str) -> None:
        """Raise MismatchError for a path."""
        if value in ("", ".", "..") or set(value) & set("/\\\0"):
            raise MismatchError(f"{value!r} must be a name without slashes")


Count = Annotated[int, Within(0)]
Seconds = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]


def decode(kind: type[T], value: Any, *, lenient: bool = False) -> T:
    """`value`, as `json` reads it, as a `kind`. `lenient`: fields that `kind` does not have are left out.

    Raises:
        MismatchError: it is of another type or out of bounds, a field is missing, or it has unknown fields.

    """
    found: T = _decoder(typing.cast(Hashable, kind), lenient)(value)
    return found


def parse(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: not JSON or not UTF-8, NaN or infinite numbers, or nested too deeply.

    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(kind: type[T], path: Path, *, lenient: bool = False) -> T:
    """The JSON file as a `kind`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or (MismatchError) not a `kind`.

    """
    return decode(kind, parse(path.read_bytes()), lenient=lenient)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


@functools.cache
def _decoder(kind: Any, lenient: bool) -> Decoder:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin is Annotated:
        return _bounded(_decoder(arguments[0], lenient), arguments[1:])
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        of_inner = _decoder(inner, lenient)
        return lambda value: None if value is None else of_inner(value)
    if origin in (list, tuple):
        return _sequence(origin, _decoder(arguments[0], lenient))
    if origin is dict:
        return _mapping(_decoder(arguments[1], lenient))
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return _record(kind, lenient)
    return _SCALARS[kind]


def _bounded(inner: Decoder, bounds: tuple[Within | OneOf | FileName, ...]) -> Decoder:
    def bounded(value: Any) -> Any:
        found = inner(value)
        for bound in bounds:
            bound.check(found)
        return found

    return bounded


def _sequence(kind: type, item: Decoder) -> Decoder:
    def sequence(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            _mismatch("a list", value)
        found: list[Any] = []
        try:
            for part in value:
                found.append(item(part))
        except MismatchError as error:
            raise error.inside(f"[{len(found)}]") from None
        return found if kind is list else tuple(found)

    return sequence


def _mapping(item: Decoder) -> Decoder:
    def mapping(value: Any) -> dict[str, Any]:
        return {_text(key): _at(f".{key}", item, part) for key, part in _object(value).items()}

    return mapping


def _record(kind: Any, lenient: bool) -> Decoder:
    """Of a dataclass or a TypedDict; fields that a dataclass derives (init=False) are derived anew."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        derived = {field.name for field in fields if not field.init}
        missing = dataclasses.MISSING
        required = {f.name for f in fields if f.init and f.default is missing and f.default_factory is missing}
    else:
        derived, required = set(), set(kind.__required_keys__)
    decoders = {name: _decoder(hint, lenient) for name, hint in hints.items() if name not in derived}

    def record(value: Any) -> Any:
        found = {}
        for name, part in _object(value).items():
            if name in decoders:
                found[name] = _at(f".{name}", decoders[name], part)
            elif name not in derived and not lenient:
                raise MismatchError(f"no such field{did_you_mean(name, decoders)}", f".{name}")
        if lacking := required - found.keys():
            raise MismatchError("missing", f".{min(lacking)}")
        return kind(**found)

    return record


def _at(place: str, item: Decoder, value: Any) -> Any:
    try:
        return item(value)
    except MismatchError as error:
        raise error.inside(place) from None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _mismatch("an object", value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        _mismatch("a text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MismatchError(f"{value!a} is not valid Unicode text") from None
    return value


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _mismatch("true or false", value)


def _int(value: Any) -> int:
    return value if type(value) is int else _mismatch("a whole number", value)


def _float(value: Any) -> float:
    if type(value) not in (int, float):
        _mismatch("a number", value)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    return found if math.isfinite(found) else _mismatch("a finite number", value)


_SCALARS: dict[Any, Decoder] = {str: _text, bool: _bool, int: _int, float: _float}


def _mismatch(wanted: str, value: Any) -> NoReturn:
    shown = repr(value) if value is None or isinstance(value, str | bool | int | float) else type(value).__name__
    raise MismatchError(f"{shown if len(shown) <= 60 else shown[:60] + '...'} must be {wanted}")
