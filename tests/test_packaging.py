"""The package: one name is installed, with all that it needs; a user's own `bench` and `methods` are left alone."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import bench

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BY_TRANSFORMERS = {"accelerate", "gguf", "sentencepiece"}  # which it imports when it needs them
NOT_PACKED = {"medusa-paper", "__pycache__"}
MARK = "raise SystemExit('a module of the user was imported')\n"


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")


def test_the_version_is_the_same_everywhere():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    changed = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert {PROJECT["version"], bench.__version__, cited, changed} == {PROJECT["version"]}


def test_what_is_imported_is_required_and_nothing_else():
    imported: set[str] = set()
    for path in (path for folder in ("bench", "methods", "roobench") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    # The core of pydantic is a package of its own that belongs to one version of pydantic.
    modules = imported - sys.stdlib_module_names - {"bench", "methods", "roobench", "pydantic_core"}
    packages = importlib.metadata.packages_distributions()
    needed = {packages[module][0].lower().replace("_", "-") for module in modules}
    assert set(map(name_of, PROJECT["dependencies"])) == needed | BY_TRANSFORMERS


def test_what_is_required_is_pinned_for_the_committed_figures():
    pinned = set(map(name_of, re.findall(r"^[\w-]+(?===)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)))
    comes_along = {"typing-extensions"}  # with pydantic
    assert set(map(name_of, PROJECT["dependencies"])) - comes_along <= pinned


def packed() -> set[str]:
    """The files of the project that are installed, by their names in the package."""
    found = {f"roobench/{path.name}" for path in (ROOT / "roobench").glob("*.py")}
    for folder in ("bench", "methods", "results/published"):
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and not NOT_PACKED & set(parts):
                found.add("/".join(("roobench", *parts)))
    return found


def test_the_wheel_has_all_files_under_one_name(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    info = f"roobench-{bench.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == packed()
    assert {f"{info}entry_points.txt", f"{info}licenses/LICENSE"} <= names


def test_the_archive_has_the_documents_but_no_runs_and_no_tests(installed):
    with tarfile.open(installed.archive) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "docs/engine.md", "examples/compare_methods.ipynb"} <= names
    assert {name.split("/")[1] for name in names if name.startswith("results/")} == {"published"}
    assert not [name for name in names if name.startswith(("tests/", "plots/"))]


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """A current folder with modules of our names, which PYTHONPATH names as well."""
    (tmp_path / "bench.py").write_text(MARK)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text(MARK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def python(installed, code, **more):
    done = subprocess.run([installed.python, "-c", code], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("called", [["roobench"], ["python", "-m", "roobench"]], ids=" ".join)
def test_the_command_is_not_hidden_by_a_users_modules(installed, own_modules, called):
    command = [str(installed.python.parent / called[0]), *called[1:]]
    done = subprocess.run([*command, "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kangaroo" in done.stdout
    done = subprocess.run([*command, "--method", "kangoroo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'kangaroo'?" in done.stderr


def test_a_users_modules_are_not_hidden_by_the_package(installed, own_modules):
    (own_modules / "bench.py").write_text("whose = 'mine'\n")
    (own_modules / "methods" / "__init__.py").write_text("whose = 'mine'\n")
    code = "import sys; before = set(sys.path); import roobench, bench, methods; assert set(sys.path) == before"
    assert python(installed, f"{code}; print(bench.whose, methods.whose)") == "mine mine"


def test_without_such_modules_there_are_none(installed, tmp_path):
    code = "import importlib.util as u; print([n for n in ('roobench', 'bench', 'methods') if u.find_spec(n)])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert python(installed, code, cwd=tmp_path, env=environment) == "['roobench']"


def test_tests_of_a_plugin_can_import_the_bench(installed, tmp_path):
    code = "import sys, roobench; sys.path[:0] = roobench.__path__; import bench.files as m; print(m.__file__)"
    assert "site-packages/roobench/bench/files.py" in python(installed, code, cwd=tmp_path)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["train", "kangaroo"], ["--out FOLDER", "kangaroo:weights=FOLDER"]),
        (["train", "collect"], ["--out"]),
        (["gate", "--base", "HEAD"], ["HEAD", "without its history", "a clone"]),
        (["gate", "--counters", "--device", "cpu"], ["results/baselines/", "holds no baseline", "--update-baseline"]),
    ],
    ids=" ".join,
)
def test_an_installed_program_does_not_write_into_its_own_folder(installed, tmp_path, given, named):
    """Nor does it take a repository around the environment for its own."""
    assert (installed.python.parents[2] / ".git").is_dir()
    command = [installed.python.parent / "roobench", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.splitlines()
    for words in named:
        assert words in said
    assert not list(tmp_path.iterdir())
