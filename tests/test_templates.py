"""The template of a repository that holds a method alone: what it says is so, and its method works."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
import yaml

import methods
from bench.commands.gate import parser
from bench.drafting.method import SpeculativeMethod

TEMPLATE = Path(__file__).parents[1] / "templates" / "method-plugin"
WORKFLOWS = [TEMPLATE / ".github/workflows/speed.yml", Path(__file__).parents[1] / ".github/workflows/ci.yml"]


@pytest.fixture(scope="module")
def module():
    found = importlib.util.spec_from_file_location("my_method", TEMPLATE / "my_method.py")
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def test_the_entry_point_names_the_only_method(module):
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["roobench.methods"] == {"my-method": "my_method:MyMethod"}
    assert methods.only_in(module, SpeculativeMethod, "method") is module.MyMethod


def test_its_method_is_lossless(module, tiny_config, tiny_model, tiny_decoder, hf_greedy):
    from bench.drafting.loop import decode

    config, model = tiny_model("tied")
    prompt = [5, 9, 9, 2]
    made = module.MyMethod(tiny_decoder(config, model), module.MyConfig(length=2))
    assert decode(made, prompt, 20, frozenset()).token_ids == hf_greedy(model, prompt, 20)


def gate_lines(text):
    """The arguments of every call of the gate in a workflow."""
    joined = text.replace("\\\n", " ")
    return [line.partition(" gate ")[2].split() for line in joined.splitlines() if " gate --base" in line]


@pytest.mark.parametrize("path", [*WORKFLOWS, TEMPLATE / ".gitlab-ci.yml"], ids=lambda path: path.name)
def test_workflows_are_yaml_and_call_the_gate_as_it_is(path):
    text = path.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    (arguments,) = gate_lines(text)
    parser().parse_args([argument.strip('"') for argument in arguments])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_pull_request_gets_a_summary_and_a_comment(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert any("GITHUB_STEP_SUMMARY" in step for step in steps)
    assert any("gh pr comment" in step for step in steps)
