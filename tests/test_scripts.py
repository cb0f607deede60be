"""The scripts that show what the gate is worth: they start, their faults can still be planted, and they count right."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import cli
from bench.commands import train
from bench.errors import UserError
from bench.figures.comparison import (
    ComparedMethod,
    ComparedTask,
    Comparison,
    Metric,
    Sequential,
    Side,
)
from bench.figures.records import write_json
from bench.figures.rules import Rules
from bench.figures.summary import Estimate
from bench.gate.gate import PAIRS_FILE
from bench.train import settings_of

ROOT = Path(__file__).parents[1]


def script(name: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trials = script("gate_trials")
TRIALS = {trial.name: trial for trial in trials.TRIALS}


@pytest.fixture
def clone(tmp_path):
    """A repository with the files that faults are planted in."""
    made = tmp_path / "clone"
    for name in {edit[0] for trial in trials.TRIALS for edit in trial.edits}:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, made / name)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "base"]):
        subprocess.run(["git", "-C", made, *command], check=True)
    return made


@pytest.mark.parametrize("name", [name for name, trial in TRIALS.items() if trial.edits])
def test_a_fault_is_planted_as_one_commit_of_valid_code(name, clone):
    trials.planted(clone, TRIALS[name])
    assert trials.git(clone, "rev-list", "--count", "HEAD") == "2"
    assert trials.git(clone, "status", "--porcelain") == ""
    for file in trials.git(clone, "diff", "--name-only", "HEAD~1").splitlines():
        compile((clone / file).read_text(encoding="utf-8"), file, "exec")


def test_a_fault_that_no_longer_fits_the_code_is_refused(clone):
    (clone / trials.LEVELS).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="stands 0 times"):
        trials.planted(clone, TRIALS["one-token"])


def compared(*worse: tuple[str, str]) -> Comparison:
    """A gate's comparison in which these metrics of these methods got worse."""
    methods = {
        label: {
            name: Metric(
                base=1.0, new=2.0, change=Estimate(2.0, 2.0, 2.0), sequential=Sequential(9, 1.06),
                verdict="worse" if (label, name) in worse else "same",
            )
            for name in ("time per token, ms", "CR", "speedup at base's costs")
        }
        for label in ("vanilla", "kangaroo")
    }  # fmt: skip
    return Comparison(
        base=Side("base"), new=Side("new", device="a CPU"), interleaved=True, same_machine=True, questions=1,
        rules=Rules(tolerance=0.0), warnings=[],
        methods={label: ComparedMethod("method", {"overall": ComparedTask(found)}) for label, found in methods.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "worse", "status", "right"),
    [
        ("same-code", [], 0, True),
        ("same-code", [("vanilla", "CR")], 1, False),
        ("kangaroo-5", [("kangaroo", "time per token, ms")], 1, True),
        ("kangaroo-5", [("vanilla", "time per token, ms")], 1, False),
        ("kangaroo-5", [], 0, False),
        ("one-token", [("kangaroo", "speedup at base's costs")], 1, True),
    ],
)
def test_a_gate_is_right_where_it_names_what_was_planted(name, worse, status, right, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "markdown", lambda _: "said")
    write_json(tmp_path / "gate.json", compared(*worse))
    (tmp_path / PAIRS_FILE).write_text("{}")
    made = {"commit": "c" * 40, "command": "gate", "status": status, "minutes": 5.0}
    found = trials.taken_down(TRIALS[name], made, tmp_path, tmp_path / "out")
    assert found["right"] is right
    assert (tmp_path / "out" / PAIRS_FILE).exists() == (name == "same-code")
    text = trials.summary([found])
    assert f"1 real gates (a CPU), {int(not right)} of them wrong" in text
    assert "vanilla +6.0%, kangaroo +6.0%" in text


def test_simulated_gates_see_a_slow_down_and_no_ghost(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    metrics = ("time per token, ms", "prefill per prompt token, ms")
    keys = [
        (method, metric, task) for method in ("vanilla", "kangaroo") for metric in metrics for task in ("qa", "rag")
    ]
    blocks = [
        {
            "seconds": 30.0,
            "logs": [
                {"method": method, "metric": metric, "task": task, "logs": [float(rng.normal(0, 0.01))]}
                for method, metric, task in keys
            ],
        }
        for _ in range(9)
    ]
    pairs, out = tmp_path / PAIRS_FILE, tmp_path / "out.md"
    pairs.write_text(json.dumps({"round_blocks": 4, "blocks": blocks}))
    monkeypatch.setattr(sys, "argv", ["simulate_gate.py", str(pairs), "--gates", "40", "--out", str(out)])
    script("simulate_gate").main()
    rows = {
        cells[1].strip(): cells[2].strip() for line in out.read_text().splitlines() if len(cells := line.split("|")) > 5
    }
    assert rows["same code"] == "0.0%"
    assert rows["10% slower"] == "100.0%"


def test_what_shell_scripts_import_is_there():
    found = [
        (path.name, *match)
        for path in (ROOT / "scripts").glob("*.sh")
        for match in re.findall(r"from (bench[\w.]*) import (\w+)", path.read_text(encoding="utf-8"))
    ]
    assert ("cuda_check.sh", "bench", "questions") in found
    for _, module, name in found:
        assert hasattr(importlib.import_module(module), name)


# --- scripts/cuda_check.sh -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry", [True, False])
def test_the_cuda_check_asks_for_what_commands_take(dry, tmp_path):
    """Every command line of it is parsed; a stub stands for python, which finds a GPU and the official questions."""
    stub, told, out = tmp_path / "python", tmp_path / "told", tmp_path / "out"
    stub.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && echo gpu || printf "%s\\0" "$@" "" >> {told}\n'
        'while [ $# -gt 1 ]; do [ "$1" = --json ] && touch "$2"; shift; done\n'
    )
    stub.chmod(0o755)
    given = ["--dry-run"] if dry else []
    command = ["bash", str(ROOT / "scripts" / "cuda_check.sh"), *given, str(out)]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(stub)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("\0") for line in told.read_text().removesuffix("\0\0").split("\0\0")]
    assert lines.pop(0) == ["-m", "pytest", "-q", "-x", "tests/test_cuda.py"]
    commands = set()
    for program, *arguments in lines:
        assert program == "run_bench.py"
        name = arguments.pop(0) if arguments[0] in cli.COMMANDS else "run"
        options = cli.command(name).parser().parse_args(arguments)
        if name == "train":
            options, _ = train._settings(settings_of(options.what), options)
        assert getattr(options, "device", None) in ("cpu" if dry else "cuda", None)
        commands.add(name)
    assert commands == {"bench-engine", "project", "run", "train"}
