"""The layout: imports run one way, methods know nothing of each other, and the bench names none of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import methods
from bench.drafting.method import Peer

ROOT = Path(__file__).parents[1]
# From the top: a module imports from its own floor and from those below. `bench` itself has the version alone.
FLOORS = (
    ("run_bench", "roobench", "bench.__main__", "bench.cli", "bench.commands"),
    ("bench.gate", "bench.sweep", "bench.lab", "bench.spec_bench", "bench.train", "bench.run"),
    ("bench.report",),
    ("bench.figures",),
    ("methods",),
    ("bench.decontaminate", "bench.drafting", "bench.models", "bench.questions"),
    ("bench.engine",),
    (
        "bench.config",
        "bench.errors",
        "bench.files",
        "bench.progress",
        "bench.text",
        "bench.train_config",
        "bench.typed_json",
    ),
)
TRAINING = re.compile(r"methods\.\w+\.training")  # a method's trainer is on the floor of `bench.train`
# What is yet to be mended: importer, imported.
KNOWN: set[tuple[str, str]] = set()
# Versions of one method, which share their parts.
FAMILIES = {"methods.eagle3": {"methods.eagle"}, "methods.dspark": {"methods.dflash"}}
# Methods whose names are words, or abbreviations of the field: where these are used, nobody means the method.
WORDS = {"ngram", "suffix", "rest", "sam"}
# What may name a method under `bench`: examples in the help of commands, and these.
EXAMPLE = "run_bench.py "
NAMED = {
    ("bench/config.py", '("kangaroo",),'),  # the default of a run, and an example in its help
    ("bench/config.py", "if any: kangaroo:gamma=4,threshold=0;"),
    ("bench/commands/generate.py", 'default="kangaroo"'),
    ("bench/commands/gate.py", "as in kangaroo=0.05"),
    ("bench/commands/run.py", "(train kangaroo)"),
}


def sources(*folders: str) -> dict[str, Path]:
    """Module name -> file of all modules below some folders of the project."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = sources("bench", "methods", "roobench") | {"run_bench": ROOT / "run_bench.py"}


def imports(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found & MODULES.keys()


def floor(module: str) -> int:
    """Its number, from the top."""
    if TRAINING.fullmatch(module):
        module = "bench.train"
    if module == "bench":
        return len(FLOORS)
    found = [i for i, rooms in enumerate(FLOORS) if f"{module}.".startswith(tuple(f"{room}." for room in rooms))]
    assert len(found) == 1, f"{module} is on no floor: add it to FLOORS"
    return found[0]


def test_imports_run_one_way():
    upwards = {
        (module, name) for module, path in MODULES.items() for name in imports(path) if floor(name) < floor(module)
    }
    assert upwards == KNOWN


def test_methods_do_not_know_each_other():
    for module, path in sources("methods").items():
        own = ".".join(module.split(".")[:2])
        known = tuple(f"{name}." for name in {own} | FAMILIES.get(own, set()))
        others = {name for name in imports(path) if name.startswith("methods.") and not f"{name}.".startswith(known)}
        assert not others, module


def test_nothing_but_defaults_and_examples_in_help_names_a_method():
    drafting = [name for name in methods.built_in() if not issubclass(methods.load(name), Peer)]
    drafting = [name for name in drafting if name not in {methods.BASELINE, *WORDS}]
    assert len(drafting) >= 2
    name = re.compile(rf"(?<![a-z])({'|'.join(drafting)})(?![a-z])", re.IGNORECASE)
    used = set()
    for path in sources("bench").values():
        file = path.relative_to(ROOT).as_posix()
        for line in filter(name.search, path.read_text(encoding="utf-8").splitlines()):
            if file.startswith("bench/commands/") and EXAMPLE in line:
                continue
            allowed = {(where, what) for where, what in NAMED if where == file and what in line}
            assert allowed, f"{file} names a method: {line.strip()}"
            used |= allowed
    assert used == NAMED
