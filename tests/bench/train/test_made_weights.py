"""What a training leaves: nothing of the user's is lost; its end says how good the weights are and how to use them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.cli import main
from bench.drafting.knobs import Costs
from bench.drafting.published import Published
from bench.errors import program
from bench.files import sha256
from bench.train import conversations, training, weights
from bench.train.scores import Epoch, Scores, read_scores
from bench.typed_json import decode_value
from tests.bench.train.test_kangaroo_training import KANGAROO, Short
from tests.tiny import files_of, records

ROOT = Path(__file__).parents[3]
SCORES = {
    "model": "tiny", "model_sha256": "0" * 64, "parameters": 7,
    "data": {"conversations": 9, "tokens": 99, "answer_tokens": 50, "mixture": {}, "held_out": 3},
    "epochs": [{"epoch": 1, "loss": 2.0, "scores": {"agreement": 0.999}, "by_kind": {}}],
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("short_prompts")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where runs look for weights."""
    monkeypatch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def train(setting, root, monkeypatch):
    """(flags) -> the exit status of a short training."""
    monkeypatch.setattr(training, "Recipe", Short)
    return lambda *flags: main(["train", *KANGAROO, "--model", str(setting.model), *flags])


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a model is read or a conversation is begun."""
    monkeypatch.setattr(training, "load", None)
    monkeypatch.setattr(conversations, "make", None)


def filled(folder: Path, *names: str) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(f"{name} of the user")
    return files_of(folder)


def error(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# --- what exists is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False], ids=["--out", "where runs look"])
def test_weights_that_exist_are_not_replaced_unasked(train, setting, root, no_work, capsys, asked, tmp_path):
    folder = tmp_path / "mine" if asked else root / setting.model.name / "kangaroo"
    before = filled(folder, "scores.json", "adapter.safetensors", "README.md")
    assert train(*(["--out", str(folder)] if asked else [])) == 2
    said = error(capsys)
    assert said.startswith(f"error: {folder} has weights already")
    assert "--out NEWFOLDER" in said
    assert "--replace" in said
    assert files_of(folder) == before


def test_packaged_weights_are_checked_before_their_model_is_fetched(no_work, monkeypatch, capsys):
    monkeypatch.setattr(training, "find", None)
    assert main(["train", "kangaroo"]) == 2
    assert "has weights already" in error(capsys)


def test_both_remedies_work(train, tmp_path, capsys):
    out = tmp_path / "mine"
    assert train("--out", str(out)) == 0
    (out / "TRIED.md").write_text("kept")
    first = files_of(out)
    assert train("--out", str(out), "--seed", "1") == 2
    assert files_of(out) == first
    assert train("--out", str(tmp_path / "other"), "--seed", "1") == 0
    assert files_of(out) == first
    assert train("--out", str(out), "--seed", "1", "--replace") == 0
    assert files_of(out)["adapter.safetensors"] == files_of(tmp_path / "other")["adapter.safetensors"]
    assert files_of(out)["adapter.safetensors"] != first["adapter.safetensors"]
    assert files_of(out)["TRIED.md"] == b"kept"


@pytest.mark.parametrize("flags", [[], ["--replace"]])
def test_folders_with_other_files_are_never_written(train, no_work, capsys, flags, tmp_path):
    before = filled(tmp_path / "project", "README.md", "config.json")
    assert train("--out", str(tmp_path / "project"), *flags) == 2
    assert "has files that no training wrote (README.md)" in error(capsys)
    assert files_of(tmp_path / "project") == before


@pytest.mark.parametrize("name", ["a,b", "a+pld"])
def test_folders_that_no_method_could_name_are_refused_at_once(train, no_work, capsys, name, tmp_path):
    assert train("--out", str(tmp_path / name)) == 2
    assert "cannot name this folder" in error(capsys)
    assert not (tmp_path / name).exists()


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--out", "new adapter"], []], ids=["--out", "where runs look"])
def test_the_command_that_is_printed_runs_with_the_new_weights(
    train, setting, root, capsys, flags, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert train(*flags) == 0
    lines = capsys.readouterr().out.splitlines()
    (command,) = [line.partition(": ")[2] for line in lines if line.startswith("run with these weights: ")]
    assert command.startswith(f"{program()} --model ")
    given = shlex.split(command.removeprefix(program()))
    assert main([*given, "--questions", setting.questions, "--out", str(setting.out), "--peer", "none"]) == 0
    run, _ = records(setting.out)
    folder = Path("new adapter") if flags else root / setting.model.name / "kangaroo"
    label = "kangaroo:weights=new adapter" if flags else "kangaroo"
    assert run.methods[label].notes["weights_sha256"] == sha256(folder / "adapter.safetensors")


def test_agreement_is_shown_beside_that_of_the_packaged_weights(train, setting, root, capsys, tmp_path):
    folder = root / setting.model.name / "kangaroo"
    folder.mkdir(parents=True)
    weights.write_json(folder / "scores.json", decode_value(Scores, SCORES))
    assert train("--out", str(tmp_path / "new")) == 0
    out = capsys.readouterr().out
    scores = read_scores(tmp_path / "new")
    assert f"agreement with the target: {scores.agreement:.3f} on {scores.data.held_out} held-out conversations" in out
    assert "no better than the packaged weights: 0.999 on 3" in out
    assert re.search(r"predicted (decode speedup on this device: \d\.\d\dx with chains of \d|speedup: none)", out)


def scripted(costs: Costs, published: Published | None = None, calls: int = 1):
    return SimpleNamespace(costs=costs, published=published, draft_calls=lambda: [None] * calls)


FLAT = tuple((n, 1.0) for n in range(1, 9))
RISING = tuple((n, float(n)) for n in range(1, 9))


@pytest.mark.parametrize(
    ("costs", "each", "expected"),
    [
        (Costs(0, (0.0,), FLAT), True, (1.875, 3)),  # free drafts: 1 + 1/2 + 1/4 + 1/8 tokens a step
        (Costs(0, (0.25,), FLAT), True, (1.5 / 1.25, 1)),  # 1.75 / 1.5 with two is less
        (Costs(0, (0.1, 0.2, 0.9), FLAT), False, (1.75 / 1.2, 2)),  # so many heads in one call
        (Costs(0.1, (0.0,), ((1, 0.9), (4, 0.9))), True, (1.75 / 1.2, 2)),  # and each draft's pass below the exit
        (Costs(0, (0.1,), RISING), True, (1.0, 0)),
    ],
)
def test_predicted_speedup_is_that_of_the_best_chain(costs, each, expected):
    scores = {"agreement": 0.5, "accept_2": 0.5, "accept_3": 0.5, "top_3": 0.9}
    method = scripted(costs, Published("", 4, call_per_draft=each))
    assert weights.predicted(method, scores) == pytest.approx(expected)


def test_without_the_cost_of_a_draft_nothing_is_predicted():
    assert weights.predicted(scripted(Costs(0, (0.0,), FLAT), calls=0), {"agreement": 0.5})[1] is None


def test_weights_of_other_forms_are_named_by_their_folder(root, tmp_path):
    scores = replace(decode_value(Scores, SCORES), epochs=[Epoch(1, 1.0, {"agreement": 0.5}, {})])
    made = weights.Trained("kangaroo", None, None, root / "tiny" / "kangaroo", [], scores, None)
    assert weights.spelled(made) == "kangaroo"
    other = replace(made, out=root / "tiny" / "kangaroo-paper")
    assert weights.spelled(other) == f"kangaroo:weights={other.out}"


def test_interrupted_writing_leaves_no_half_of_a_folder(train, tmp_path, monkeypatch):
    def interrupted(self, folder):
        (folder / "adapter.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("methods.kangaroo.training.AdapterTrainer.save", interrupted)
    assert train("--out", str(tmp_path / "new")) == 130
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_with_weights_is_refused_before_torch_is_imported():
    code = (
        "import sys\nfrom bench.cli import main\nstatus = main(['train', 'kangaroo'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "has weights already: keep them (--out NEWFOLDER) or replace them (--replace)" in done.stderr


def test_few_tokens_of_a_large_cache_are_few(train, cache, tmp_path):
    assert train("--out", str(tmp_path / "large"), "--tokens", "900") == 0
    assert train("--out", str(tmp_path / "small"), "--tokens", "200") == 0
    large, small = (read_scores(tmp_path / name).data for name in ("large", "small"))
    assert large.answer_tokens >= 900
    assert 200 <= small.answer_tokens <= 200 + 2 * Short(0).answer_tokens
