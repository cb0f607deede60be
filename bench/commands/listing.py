"""list: methods, peers, tasks and models; or a page on one method."""

from __future__ import annotations

import importlib.util
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from typing import Any

import methods
from bench.commands import new_parser
from bench.config import DEFAULT_MODEL
from bench.errors import program
from bench.text import columns, visible

_EXAMPLES = """\
examples:
  python run_bench.py list
  python run_bench.py list kangaroo"""


def parser() -> ArgumentParser:
    """The command's arguments."""
    made = new_parser("list", "Show methods, peers, tasks and models; or everything about one method.", _EXAMPLES)
    made.add_argument("method", nargs="?", help="show its description, weights, knobs, presets and an example")
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    if options.method is None:
        print(visible("\n".join(_overview())))
        return 0
    asked = [methods.parse(label) for label in methods.expanded([options.method])]
    pages = dict.fromkeys(name for variant in asked for name in variant.names)
    print(visible("\n\n".join("\n".join(_page(name)) for name in pages)))
    return 0


def _overview() -> Iterator[str]:
    """What the flags of a run take."""
    from bench.models.checkpoints import list_cache
    from bench.questions import TASKS

    names = methods.names()
    peers = [name for name in names if methods.is_peer(name)]
    yield f"methods ({program()} list NAME tells more)"
    yield from _entries([(methods.ALL, "every built-in method, without peers")])
    yield from _entries((name, _title(name)) for name in names if name not in peers)
    yield "peers: other libraries' decoding"
    yield from _entries((name, f"{_installed(name)}. {_title(name)}") for name in peers)
    yield "tasks"
    yield from _entries([("all", ", ".join(TASKS))])
    yield "models"
    cached = {entry.name for entry in list_cache() if entry.is_model}
    default = "in the cache" if DEFAULT_MODEL in cached else "93 MB to fetch"
    yield from _entries([(DEFAULT_MODEL, f"(the default, {default})")])
    yield from _entries((name, "(in the cache)") for name in sorted(cached - {DEFAULT_MODEL}))
    yield "  any Llama-family chat model: a Hugging Face id like lmsys/vicuna-7b-v1.3, a folder, or a GGUF file"


def _page(name: str) -> Iterator[str]:
    """All about one method."""
    known, is_peer = methods.declared(name), methods.is_peer(name)
    yield name
    for paragraph in methods.about(name).split("\n\n"):
        yield from [*_wrapped(" ".join(paragraph.split()), "  "), ""]
    yield from _entries([("installed" if is_peer else "weights", _installed(name) if is_peer else _weights(name))])
    spelled = {preset: ",".join(f"{k}={v}" for k, v in values.items()) for preset, values in known.presets.items()}
    for title, entries in (
        ("presets", [(f"{name}:{preset}", f"for {name}:{values}") for preset, values in spelled.items()]),
        ("knobs", [(f"{knob}={default}", text) for knob, default, text in methods.knobs(known)]),
    ):
        yield f"  {title}{'' if entries else ': none'}"
        yield from _entries(entries, "    ")
    yield "  example"
    yield f"    {program()} --method {getattr(known, 'example', '') or name} --limit 2"
    if not is_peer and name != methods.BASELINE:
        yield f'    {program()} generate "Why is the sky blue?" --method {name}'


def _title(name: str) -> str:
    return methods.about(name).partition("\n")[0]


def _installed(name: str) -> str:
    """Whether the packages that a peer needs are there, or how to install them."""
    needs: dict[str, str] = methods.declared(name).needs
    missing = [package for module, package in needs.items() if importlib.util.find_spec(module) is None]
    return f"not installed: pip install {' '.join(missing)}" if missing else "installed"


def _weights(name: str) -> str:
    """For which models weights come with the project, and what to do for others."""
    from bench.drafting import knobs

    if not methods.training_module(name):
        knobs_of = {knob for knob, *_ in methods.knobs(methods.declared(name))}
        named = next((knob for knob in ("weights", "model") if knob in knobs_of), None)
        return f"none packaged; name a folder or Hugging Face id: {name}:{named}=..." if named else "none needed"
    root, found = knobs.WEIGHTS_ROOT, []
    for file in sorted(root.rglob("*.safetensors")):
        folder, model = file.parent.name, file.parent.parent.relative_to(root).as_posix()
        if folder == name or (folder.startswith(f"{name}-") and folder not in methods.names()):
            form = folder[len(name) + 1 :]
            found.append(f"{model} ({form})" if form else model)
    train = f"{program()} train {name} --model MODEL"
    return f"packaged for {', '.join(found)}; for another model: {train}" if found else f"none packaged; make: {train}"


def _entries(entries: Iterable[tuple[Any, Any]], indent: str = "  ") -> Iterator[str]:
    """A line each, continued further to the right."""
    for name, text in entries:
        yield from _wrapped(f"{name}   {text}", indent, f"{indent}    ")


def _wrapped(text: str, indent: str, further: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        columns(),
        initial_indent=indent,
        subsequent_indent=indent if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )
