"""`gate --base` as a whole: a repository with two commits, two processes, one fault, one sentence that names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.figures.records import read_run
from tests.bench.gate.test_checkout import git

ROOT = Path(__file__).parents[3]
TEMPLATE = ROOT / "templates" / "method-plugin"
FAULT = '''
    def verification(self, sampler):
        """Accepts whatever was drafted."""
        return lambda draft, logits: (list(range(len(draft.tokens))), int(logits[-1].argmax()))
'''
DIST_INFO = {"METADATA": "Metadata-Version: 2.1\nName: roobench-my-method\nVersion: 0\n"}
DIST_INFO["entry_points.txt"] = "[roobench.methods]\nmy-method = my_method:MyMethod\n"


@pytest.fixture
def bench(tmp_path):
    """The bench with one more method in it."""
    folder = tmp_path / "bench"
    for name in ("bench", "methods"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    for name in ("run_bench.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(TEMPLATE / "my_method.py", folder / "methods" / "my_method.py")
    return SimpleNamespace(folder=folder, file="methods/my_method.py", run=folder / "run_bench.py", flags=[], paths="")


@pytest.fixture
def plugin(tmp_path):
    """A repository that holds a method alone, installed."""
    folder = tmp_path / "plugin"
    shutil.copytree(TEMPLATE, folder)
    installed = folder / "roobench_my_method-0.dist-info"
    installed.mkdir()
    for name, text in DIST_INFO.items():
        (installed / name).write_text(text)
    flags = ["--plugin", str(folder)]
    return SimpleNamespace(
        folder=folder, file="my_method.py", run=ROOT / "run_bench.py", flags=flags, paths=str(folder)
    )


@pytest.mark.parametrize("kind", ["bench", "plugin"])
def test_a_commit_that_breaks_a_method_is_found_by_running_both(kind, setting, request, cache, give_kernels):
    what = request.getfixturevalue(kind)
    give_kernels(cache)
    git(what.folder, "init", "--quiet")
    git(what.folder, "add", "--force", ".")
    git(what.folder, "commit", "--quiet", "-m", "sound")
    with (what.folder / what.file).open("a") as file:
        file.write(FAULT)
    git(what.folder, "commit", "--quiet", "--all", "-m", "faulty")
    asked = ["gate", "--base", "HEAD~1", "--method", "my-method", "--budget-min", "0.01", *what.flags]
    asked += ["--model", str(setting.model), "--questions", setting.questions, "--max-new-tokens", "8"]
    done = subprocess.run(
        [sys.executable, str(what.run), *asked, "--out", str(setting.out)],
        capture_output=True, text=True, check=False, cwd=what.folder, env={**os.environ, "PYTHONPATH": what.paths},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Worse: my-method" in done.stdout
    assert "my-method, Overall: answers not vanilla's 0 → " in done.stdout
    compared = json.loads((setting.out / "gate.json").read_text())
    metrics = compared["methods"]["vanilla"]["tasks"]["overall"]["metrics"]
    assert metrics["answers unlike base's"]["new"] == 0
    for side, revision in (("base", "HEAD~1"), ("new", "HEAD")):
        run = read_run(setting.out / side)
        assert run.complete
        if kind == "plugin" or side == "base":
            assert run.provenance["gated_commit"] == git(what.folder, "rev-parse", revision)
    assert len(git(what.folder, "worktree", "list").splitlines()) == 1
