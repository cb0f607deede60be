"""The README's example method works as printed: one new file, found by its name, lossless, and it does draft."""

import re
import sys
from pathlib import Path

import pytest

import methods
from bench.drafting.loop import decode
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
    yield
    sys.modules.pop("methods.echo", None)


def test_example_is_not_part_of_the_project():
    with pytest.raises(UserError, match="unknown method 'echo'"):
        methods.load("echo")


def test_one_new_file_adds_a_method(echo_installed):
    assert "echo" in methods.names()
    variant = methods.parse("echo:ngram=3")
    assert variant.config.ngram == 3
    assert variant.config.length == 4
    assert [knob for knob, _, _ in methods.knobs(variant.method)] == ["ngram", "length"]


def test_its_output_is_transformers_own(echo_installed, tiny_model, tiny_decoder, hf_greedy, random_ids):
    config, model = tiny_model("tied")
    variant = methods.parse("echo")
    method = variant.method(tiny_decoder(config, model), variant.config)
    block = random_ids(12)
    prompt = block * 3  # the newest tokens stand earlier in the text, so that there is something to echo
    answer = decode(method, prompt, 24, frozenset())
    assert answer.token_ids == hf_greedy(model, prompt, 24)
    assert sum(step.drafted for step in answer.steps) > 0


def test_the_map_names_rooms_that_exist():
    rooms = README.split("## Rooms", 1)[1].split("```")[1]
    named = re.findall(r"^ *([\w/]+(?:\.py|/))", rooms, re.MULTILINE)
    assert "runner.py" in named
    assert "methods/" in named
    for name in named:
        assert any((ROOT / folder / name).exists() for folder in ("", "bench", "bench/engine")), name
