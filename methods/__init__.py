"""Methods by name: a file or a folder in this folder per method, or an entry point of the group `roobench.methods`.

`names()` imports nothing; `load(name)` imports one method. `parse("kangaroo:gamma=4,threshold=0")` returns a method
with its knobs; `kangaroo:paper` sets several of them. A method whose own module needs torch declares its knobs in a
module `knobs` next to it, so that mistakes are reported before torch is imported; see `declared`. A trained method has
its trainer in a module `training` next to its own module, here as in other packages, and what its paper shows may be in
a module `reproduction`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.abc import InspectLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from bench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from bench.drafting.method import Method
    from bench.drafting.reproduction import Recipe

ENTRY_POINT_GROUP = "roobench.methods"
BASELINE = "vanilla"
ALL = "all"  # in place of a method's name: every built-in method that is no peer
_MOST = 2**53  # whole numbers up to here are the same in every reader of JSON
_PLUS = re.compile(r"\+(?=[a-z][\w-]*(?:[:+]|$))")  # between methods, but not in a knob's value


@dataclass(frozen=True)
class Variant:
    """A method with its knobs, as asked for on the command line. Its class is imported when it is used."""

    label: str  # as spelled by the user, for tables
    names: tuple[str, ...]  # of the method; of several, a composition
    config: Any  # an instance of the method's Config
    baseline: str = ""  # of a peer: the label of another one that it is compared with

    @property
    def method(self) -> type[Method]:
        """The method's class."""
        if len(self.names) == 1:
            return load(self.names[0])
        from bench.drafting.composition import Composition

        return Composition

    @property
    def is_peer(self) -> bool:
        """Return whether it brings its own loop."""
        return len(self.names) == 1 and is_peer(self.names[0])

    def check_files(self, model: str) -> None:
        """Raise UserError if a file that its knobs name, or its weights for `model`, are not there."""
        if check := getattr(self.config, "check_files", None):
            check(model)


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
        known = [ALL, *names()]
        raise UserError(f"unknown method {name!r}{did_you_mean(name, known)}; available: {', '.join(known)}")
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


def declared(name: str) -> Any:
    """Return what has a method's `Config` and `presets`: the module `knobs` next to its own, if any, else its class.

    The module may also have `Training`, the settings of the method's training. A peer needs no such module: it imports
    its library when it is instantiated.

    Raises:
        UserError: as `load`.

    """
    module = _beside(name, "knobs")
    found = importlib.import_module(module) if module else None
    return found if hasattr(found, "Config") and hasattr(found, "presets") else load(name)


def is_peer(name: str) -> bool:
    """Return whether a method brings its own loop, another library's."""
    from bench.drafting.method import Peer

    found = declared(name)
    return inspect.isclass(found) and issubclass(found, Peer)


def trained() -> list[str]:
    """Return the names of trained methods; imports nothing but the packages that contain them."""
    return [name for name in names() if training_module(name)]


def training_module(name: str) -> str | None:
    """Return the module next to a method's own that has its trainer; None: the method is not trained."""
    return _beside(name, "training")


def reproducible() -> list[str]:
    """Return the names of methods whose paper can be reproduced; as `trained`."""
    return [name for name in names() if _beside(name, "reproduction")]


def recipe(name: str) -> Recipe:
    """Return how to reproduce the paper of a method: `RECIPE` of the module `reproduction` next to its own.

    Raises:
        UserError: no such method, or nobody has written that for it.

    """
    declared(name)
    module = _beside(name, "reproduction")
    if module is None:
        raise UserError(
            f"{name} has no recipe of its paper, a module `reproduction` next to its own; methods that have: "
            f"{', '.join(reproducible())}"
        )
    found: Recipe = importlib.import_module(module).RECIPE
    return found


def about(name: str) -> str:
    """Return the docstring of a method's module, which is read but not imported: that could take torch."""
    spec = importlib.util.find_spec(_module_of(name))
    source = spec.loader.get_source(spec.name) if spec and isinstance(spec.loader, InspectLoader) else None
    return ast.get_docstring(ast.parse(source or "")) or ""


def _module_of(name: str) -> str:
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
    return _modules().get(name) or next((point.module for point in points), "")


def _beside(name: str, what: str) -> str | None:
    """Return the module called `what` in the package of a method's own module, if there is one."""
    package = _module_of(name).rpartition(".")[0]
    if not package or package == __name__:  # a file of its own
        return None
    beside = f"{package}.{what}"
    return beside if importlib.util.find_spec(beside) else None


def expanded(asked: Iterable[str]) -> Iterator[str]:
    """Yield the methods asked for, with `all` expanded."""
    for label in asked:
        if label == ALL:
            yield from (name for name in built_in() if not is_peer(name))
        else:
            yield label


def parse(text: str) -> Variant:
    """Parse `name`, `name:key=value,key=value` or `name:preset,key=value`.

    `a+b` composes methods, each with its own knobs: the first that has a draft drafts.

    Raises:
        UserError: unknown method, unknown knob, or a value of the wrong type or outside its range.

    """
    members = tuple(map(_parse_one, _PLUS.split(text)))
    if len(members) == 1:
        return members[0]
    for member in members:
        if member.is_peer:
            raise UserError(f"{member.label!r} brings its own loop and cannot be part of {text!r}: give it alone")
    from bench.drafting.composition import CompositionConfig

    return Variant(text, tuple(member.names[0] for member in members), CompositionConfig(members))


def parse_drafting(text: str, command: str) -> Variant:
    """Parse the one method for a command that compares its drafts with vanilla.

    Raises:
        UserError: as `parse`, or it does not draft.

    """
    variant = None if text == ALL else parse(text)
    if variant is None:
        reason = f"{command} takes one method, not all of them"
    elif variant.is_peer:
        reason = f"{text!r} is a peer, which brings its own loop, and {command} needs its drafts"
    elif variant.names == (BASELINE,):
        reason = f"vanilla always takes part in {command}: name the method to compare with it"
    else:
        return variant
    drafting = (name for name in names() if name != BASELINE and not is_peer(name))
    raise UserError(f"{reason}; give one of {', '.join(drafting)}")


def _parse_one(text: str) -> Variant:
    name, _, knobs = text.partition(":")
    if name == ALL:
        raise UserError(
            f"{ALL!r} stands for every built-in method, alone and without knobs, and only in --method; "
            f"got {text!r}: name one of {', '.join(names())}"
        )
    method = declared(name)
    types = get_type_hints(method.Config)
    values: dict[str, Any] = {}
    given: set[str] = set()
    for item in filter(None, knobs.split(",")):
        key, equals, value = item.partition("=")
        if item in method.presets:
            values |= method.presets[item]
            continue
        if not equals or key not in types:
            known = [*method.presets, *types]
            item = f"***{item[item.rindex('@') :]}" if "@" in item else item  # half a password with a comma, perhaps
            hint = did_you_mean(key, known) + (f"; its knobs: {', '.join(known)}" if known else "; it has none")
            raise UserError(f"method {name!r} has no knob {item!r}{hint} (spelled {name}:key=value,key=value)")
        if key in given:
            raise UserError(f"method {name!r}: knob {key} is given twice: leave one of them out")
        given.add(key)
        values[key] = _convert(name, key, value, types[key])
    try:
        return Variant(text, (name,), method.Config(**values))
    except ValueError as error:
        raise UserError(f"method {text!r}: {error}") from error


def knobs(method: Any) -> list[tuple[str, Any, str]]:
    """(name, default, help) of each knob of what `declared` or `load` gives."""
    fields = dataclasses.fields(method.Config)
    return [(field.name, field.default, field.metadata.get("help", "")) for field in fields]


def _convert(name: str, key: str, value: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        for candidate in (int, float, str):
            if kind in (candidate, candidate | None):
                found = candidate(value)
                if isinstance(found, int) and abs(found) > _MOST:
                    raise UserError(f"method {name!r}: knob {key}={value} is out of range: at most {_MOST} either way")
                return found
    except (ValueError, KeyError):
        pass
    wanted = getattr(kind, "__name__", str(kind))
    raise UserError(f"method {name!r}: knob {key}={value!r} is not of type {wanted}")
