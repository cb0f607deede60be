"""The README's example method works as printed: one new file, found by its name, lossless."""

import re
from pathlib import Path

import pytest

import methods
from bench.errors import UserError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example() -> str:
    found = re.search(r"<!-- example: methods/echo.py -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, "README.md has no example method"
    return found.group(1)


@pytest.fixture
def echo_installed(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(example(), encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "methods.echo", raising=False)
    yield
    __import__("sys").modules.pop("methods.echo", None)


def test_example_is_not_part_of_the_project():
    with pytest.raises(UserError, match="unknown method 'echo'"):
        methods.load("echo")


def test_one_new_file_adds_a_method(echo_installed):
    assert "echo" in methods.names()
    variant = methods.parse("echo:ngram=3")
    assert variant.config.ngram == 3
    assert variant.config.length == 4
    assert [knob for knob, _, _ in methods.knobs(variant.method)] == ["ngram", "length"]
