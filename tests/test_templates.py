"""The template of a repository that holds only a method: it installs, its method works, its workflows call the gate."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import methods
from bench import __version__
from bench.commands.gate import parser
from bench.drafting.method import SpeculativeMethod
from tests.tiny import ONE_TURN, records, write_questions

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "templates" / "method-plugin"
WORKFLOWS = [TEMPLATE / ".github/workflows/speed.yml", ROOT / ".github/workflows/ci.yml"]


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


def test_it_installs_next_to_the_package_and_runs(tmp_path, tiny_checkpoint, installed, give_kernels):
    """Offline: into a folder of its own, which only this test looks into. Results go to the current folder."""
    source, site = tmp_path / "my-method", tmp_path / "site"
    shutil.copytree(TEMPLATE, source)
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", site, source], check=True)
    questions = write_questions(tmp_path / "questions.jsonl", ONE_TURN)
    flags = ["--model", str(tiny_checkpoint("tied").folder), "--questions", questions, "--max-new-tokens", "6"]
    command = [installed.python.parent / "roobench", *flags, "--method", "my-method:length=2", "--peer", "none"]
    environment = {**os.environ, "ROOBENCH_CACHE": give_kernels(tmp_path / "cache"), "PYTHONPATH": str(site)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    run, turns = records(folder)
    assert run.provenance["commit"] is None
    assert run.provenance["packages"]["roobench"] == __version__
    assert (tmp_path / "plots" / folder.name / "speedup_by_task.png").is_file()
    verdicts = [turn.audit.verdict for turn in turns if turn.method == "my-method:length=2"]
    assert verdicts == ["identical"]


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
