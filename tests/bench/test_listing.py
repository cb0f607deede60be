"""list: an overview of what there is, and a page on each method."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import methods
from bench.cli import main
from bench.config import DEFAULT_MODEL
from bench.drafting.knobs import WEIGHTS_ROOT
from bench.questions import TASKS
from methods.llama_cpp import LlamaCpp

ROOT = Path(__file__).parents[2]
DRAFTING = [name for name in methods.names() if not methods.is_peer(name) and name != methods.BASELINE]


def listed(capsys, *given: str) -> str:
    assert main(["list", *given]) == 0
    return capsys.readouterr().out


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_overview_names_every_method_and_task_in_lines_that_fit(cache, capsys):
    text = listed(capsys)
    for name in [methods.ALL, *methods.names()]:
        assert f"\n  {name}   " in text
    for name in methods.names():
        assert methods.about(name).splitlines()[0] in words(text)
    assert ", ".join(TASKS) in text
    assert max(map(len, text.splitlines())) <= 110
    methods_part, _, peers_part = text.partition("\npeers")
    assert all((f"\n  {name} " in peers_part) == methods.is_peer(name) for name in methods.names())
    assert f"\n  {methods.ALL} " in methods_part


def test_the_overview_says_which_peers_are_installed_and_how_to_get_the_others(cache, capsys, monkeypatch):
    def find_spec(name, *given, real=importlib.util.find_spec, missing=tuple(LlamaCpp.needs)):
        return None if name in missing else real(name, *given)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    text = listed(capsys)
    assert "\n  llama-cpp   not installed: pip install llama-cpp-python." in text
    assert "\n  hf-generate   installed." in text
    assert "installed   not installed: pip install llama-cpp-python" in listed(capsys, "llama-cpp")
    monkeypatch.setattr(LlamaCpp, "needs", {"json": "json"})
    assert "\n  llama-cpp   installed." in listed(capsys)


def test_the_overview_shows_which_models_are_in_the_cache(cache, capsys):
    assert f"{DEFAULT_MODEL} (the default, 93 MB to fetch)" in words(listed(capsys))
    for folder in (cache / "models" / DEFAULT_MODEL, cache / "hub" / "models--org--chat"):
        folder.mkdir(parents=True)
    text = words(listed(capsys))
    assert f"{DEFAULT_MODEL} (the default, in the cache)" in text
    assert "org/chat (in the cache)" in text


@pytest.mark.parametrize("name", methods.names())
def test_the_page_of_a_method_has_its_description_knobs_presets_and_an_example(capsys, name):
    page = listed(capsys, name)
    assert page.startswith(f"{name}\n  ")
    text, method = words(page), methods.load(name)
    assert words(methods.about(name)) in text
    assert words(sys.modules[method.__module__].__doc__) in text, "the module's own docstring, read from its source"
    for knob, default, described in methods.knobs(method):
        assert words(f"{knob}={default} {described}") in text
    for preset, values in method.presets.items():
        assert f"{name}:{preset} for {name}:{','.join(f'{k}={v}' for k, v in values.items())}" in text
    assert f" --method {getattr(method, 'example', '') or name} --limit 2\n" in page
    assert (' generate "' in page.partition("\n  example\n")[2]) == (name in DRAFTING)


def test_the_page_says_for_which_models_weights_are_packaged(capsys, tmp_path, monkeypatch):
    weights = [name for name in DRAFTING if methods.training_module(name)]
    for name in weights:
        text = words(listed(capsys, name))
        models = ", ".join(sorted(folder.parent.name for folder in WEIGHTS_ROOT.glob(f"*/{name}")))
        assert (f"weights packaged for {models}" if models else "weights none packaged") in text
        assert f"train {name} --model MODEL" in text
    assert "weights none needed" in words(listed(capsys, methods.BASELINE))
    assert "weights none packaged; name a folder or Hugging Face id: dflash:weights=..." in words(
        listed(capsys, "dflash")
    )
    folders = ("org/chat/NAME", "org/chat/NAME-paper", "other/NAMEX")
    for folder in folders:
        made = tmp_path / folder.replace("NAME", weights[0])
        made.mkdir(parents=True)
        (made / "w.safetensors").write_bytes(b"")
    monkeypatch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", tmp_path)
    assert "packaged for org/chat, org/chat (paper); for another model:" in words(listed(capsys, weights[0]))
    assert "none packaged; make: " in words(listed(capsys, weights[1]))


def test_a_composition_and_all_show_a_page_for_each(capsys):
    first, second = DRAFTING[:2]
    text = listed(capsys, f"{first}+{second}")
    assert text.startswith(f"{first}\n")
    assert f"\n\n{second}\n" in text
    assert all(f"{name}\n  " in listed(capsys, methods.ALL) for name in [methods.BASELINE, *DRAFTING])


def test_an_unknown_name_gets_a_suggestion(capsys):
    assert main(["list", "vanila"]) == 2
    assert "unknown method 'vanila', did you mean 'vanilla'?" in capsys.readouterr().err


def test_listing_imports_no_torch():
    code = "import sys; from bench.cli import main; main(sys.argv[1:]); assert not {'torch', 'pandas'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code, "list", "all"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
