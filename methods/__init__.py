"""Methods by name: one file or folder per method in this folder, or an entry point of the group `roobench.methods`.

`names()` imports nothing; `load(name)` imports one method. `parse("kangaroo:gamma=4,threshold=0")` returns a method
with its knobs; `kangaroo:paper` sets several of them. A trained method has its trainer in a module `training` next to
its own module, here as in other packages.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from bench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from bench.drafting.method import Method

ENTRY_POINT_GROUP = "roobench.methods"
BASELINE = "vanilla"
_PLUS = re.compile(r"\+(?=[a-z][\w-]*(?:[:+]|$))")  # between methods, but not in a knob's value


@dataclass(frozen=True)
class Variant:
    """A method with its knobs, as asked for on the command line."""

    label: str  # as spelled by the user, for tables
    method: type[Method]
    config: Any  # an instance of the method's Config


def names() -> list[str]:
    """Return the names of all methods and peers, by file name and entry point; nothing is imported."""
    return sorted(
        _modules().keys() | {point.name for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    )


def built_in() -> list[str]:
    """Return the names of the methods and peers in this folder."""
    return sorted(_modules())


def _modules() -> dict[str, str]:
    """Return the module of each method here: a file, or `method.py` in a folder."""
    found: dict[str, str] = {}
    for folder in map(Path, __path__):
        found |= {path.stem: f"methods.{path.stem}" for path in folder.glob("[!_]*.py")}
        found |= {path.parent.name: f"methods.{path.parent.name}.method" for path in folder.glob("*/method.py")}
    return {name.replace("_", "-"): module for name, module in found.items()}


def load(name: str) -> type[Method]:
    """Import the method called `name`.

    Raises:
        UserError: no such method, or its module does not define exactly one.

    """
    if name not in names():
        raise UserError(f"unknown method {name!r}{did_you_mean(name, names())}; available: {', '.join(names())}")
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        if name in _modules():
            raise UserError(
                f"the installed plug-in {point.value!r} has the name of a built-in method, {name!r}: rename it"
            )
        loaded: type[Method] = point.load()
        return loaded
    from bench.drafting.method import Peer, SpeculativeMethod

    only: type[Method] = only_in(importlib.import_module(_modules()[name]), SpeculativeMethod | Peer, "method")
    return only


def only_in(module: Any, kind: Any, what: str) -> Any:
    """Return the only concrete subclass of `kind` that `module` itself defines; `what` names it in errors.

    Raises:
        UserError: there is none, or more than one.

    """
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, kind)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        listed = ", ".join(cls.__name__ for cls in found) or "none"
        raise UserError(f"{module.__name__} must define exactly one {what}, but defines {listed}")
    return found[0]


def trained() -> list[str]:
    """Return the names of trained methods; imports nothing but the packages that contain them."""
    return [name for name in names() if training_module(name)]


def training_module(name: str) -> str | None:
    """Return the module next to a method's own that has its trainer; None: the method is not trained."""
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
    module = _modules().get(name) or next((point.module for point in points), "")
    package = module.rpartition(".")[0]
    beside = f"{package}.training"
    return beside if package and importlib.util.find_spec(beside) else None


def parse(text: str) -> Variant:
    """Parse `name`, `name:key=value,key=value` or `name:preset,key=value`.

    `a+b` composes methods, each with its own knobs: the first that has a draft drafts.

    Raises:
        UserError: unknown method, unknown knob, or a value of the wrong type or outside its range.

    """
    parts = _PLUS.split(text)
    if len(parts) == 1:
        return _parse_one(text)
    from bench.drafting.composition import Composition, CompositionConfig, Member
    from bench.drafting.method import SpeculativeMethod

    members = []
    for variant in map(_parse_one, parts):
        if not issubclass(variant.method, SpeculativeMethod):
            raise UserError(f"{variant.label!r} brings its own loop and cannot be part of {text!r}")
        members.append(Member(variant.label, variant.method, variant.config))
    return Variant(text, Composition, CompositionConfig(tuple(members)))


def _parse_one(text: str) -> Variant:
    name, _, knobs = text.partition(":")
    method = load(name)
    types = get_type_hints(method.Config)
    values: dict[str, Any] = {}
    for item in filter(None, knobs.split(",")):
        key, equals, value = item.partition("=")
        if item in method.presets:
            values |= method.presets[item]
            continue
        if not equals or key not in types:
            known = [*method.presets, *types]
            hint = did_you_mean(key, known) + (f"; its knobs: {', '.join(known)}" if known else "; it has none")
            raise UserError(f"method {name!r} has no knob {item!r}{hint} (spelled {name}:key=value,key=value)")
        values[key] = _convert(name, key, value, types[key])
    try:
        return Variant(text, method, method.Config(**values))
    except ValueError as error:
        raise UserError(f"method {text!r}: {error}") from error


def knobs(method: type[Method]) -> list[tuple[str, Any, str]]:
    """Return (name, default, help) of each knob."""
    fields = dataclasses.fields(method.Config)
    return [(field.name, field.default, field.metadata.get("help", "")) for field in fields]


def _convert(name: str, key: str, value: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        for candidate in (int, float, str):
            if kind in (candidate, candidate | None):
                return candidate(value)
    except (ValueError, KeyError):
        pass
    wanted = getattr(kind, "__name__", str(kind))
    raise UserError(f"method {name!r}: knob {key}={value!r} is not of type {wanted}")
