"""The command line: mistakes end in one sentence, help is quick, and the small commands do what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import methods
from bench import __version__
from bench.cli import main
from bench.errors import UserError, program
from bench.models import loading
from tests.tiny import records, run_bench

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "matplotlib", "pandas", "scipy"}


def error_of(given: list[str], capsys, *, alone: bool = False) -> str:
    """The one line on stderr that a mistake ends in; exit status 2. `alone`: nothing was said before it."""
    capsys.readouterr()
    assert main(given) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == (lines if alone else lines[-1:]), printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return errors[0]


def python(code: str, *given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, check=False)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--method", "kangaro"], r"unknown method 'kangaro', did you mean 'kangaroo'\?; available: "),
        (["--method", "kangaroo:gama=4"], "no knob 'gama=4', did you mean 'gamma'"),
        (["--method", "kangaroo:gamma=four"], "knob gamma='four' is not of type int"),
        (["--method", "kangaroo:gamma=-1"], "gamma=-1 must be at least 1"),
        (["--method", "vanilla:gamma=1"], "no knob 'gamma=1'; it has none"),
        (["--method", "vanilla", "--peer", "kangaroo"], "'kangaroo' is a method, not a peer: ask for it with --method"),
        (["--tasks", "summarisation"], "unknown task 'summarisation', did you mean 'summarization'"),
        (["--limit", "0"], "--limit 0 is too small: at least 1"),
        (["--questions", "absent.jsonl"], "questions 'absent.jsonl' cannot be read"),
        (["--model", "smolm2"], "unknown model 'smolm2'.*did you mean"),
        (["--model", "no/such/folder"], "unknown model 'no/such/folder'"),
    ],
)
def test_mistake_is_told_in_one_line_before_anything_is_loaded(cache, tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.models.loading.load_decoder", None)
    line = error_of(flags, capsys, alone=True)
    assert re.search(told, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--device", "tpu9"], "device 'tpu9'"),
        (["--device", "meta"], "device 'meta' is not supported"),
        (["--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["--revision", "v2"], "takes no revision"),
        (["--method", "kangaroo:weights=nowhere"], "kangaroo:weights=nowhere: nowhere is neither a folder nor"),
        (["--method", "kangaroo"], "no weights of kangaroo come with the project for model"),
        (["--method", "KANGAROO,exit_layer=2"], "trained for exit layer 1, not 2"),
        (["--method", "KANGAROO,draft_vocab=9"], "draft_vocab=9 is more than the 0 tokens ranked"),
    ],
)
def test_mistake_that_needs_the_model_is_told_in_one_line(setting, capsys, flags, told):
    given = ["--model", str(setting.model), "--questions", setting.questions, "--out", str(setting.out)]
    flags = [flag.replace("KANGAROO", setting.kangaroo) for flag in flags]
    named = [] if "--method" in flags else ["--method", setting.kangaroo]
    assert told in error_of([*given, *flags, *named, "--peer", "none"], capsys)
    assert not setting.out.exists()


def test_cuda_asked_for_where_there_is_none_names_this_torch(setting, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    given = ["--model", str(setting.model), "--questions", setting.questions, "--out", str(setting.out)]
    line = error_of([*given, "--method", "vanilla", "--device", "cuda"], capsys)
    assert f"device 'cuda' is not there: this torch ({torch.__version__}) sees 0 CUDA devices" in line


def test_malformed_question_is_told_with_file_and_line(tmp_path, capsys):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": 1, "category": "qa", "turns": ["Why?"]}\n{"question_id": 2}\n')
    line = error_of(["--questions", str(path)], capsys)
    assert f"{path}, line 2: " in line
    assert "not a question (turns: missing, and so are messages and conversations)" in line


def test_adapter_of_another_model_is_told_with_both_sizes(setting, tiny_adapter, capsys):
    other = tiny_adapter(setting.hf, changes={"hidden_size": 64})
    given = ["--model", str(setting.model), "--questions", setting.questions, "--out", str(setting.out)]
    line = error_of([*given, "--method", f"kangaroo:weights={other}"], capsys)
    assert "is for another model: its hidden size is 64" in line
    assert "is 48" in line


def test_error_of_several_lines_is_told_in_one(cache, monkeypatch, capsys):
    def fail():
        raise UserError("the library says:\nfirst\nsecond")

    monkeypatch.setattr("bench.models.checkpoints.list_cache", fail)
    assert error_of(["cache", "list"], capsys, alone=True) == "error: the library says: first second"


def test_folder_without_a_model_and_damaged_weights_are_told(setting, tmp_path, capsys):
    given = ["--questions", setting.questions, "--method", "vanilla", "--out", str(setting.out)]
    assert "has no config.json" in error_of([*given, "--model", str(tmp_path)], capsys)
    model = shutil.copytree(setting.model, tmp_path / "damaged")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "model.safetensors: it is incomplete" in error_of([*given, "--model", str(model)], capsys)
    config = json.loads((setting.model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    weights.write_bytes((setting.model / "model.safetensors").read_bytes())
    assert "model type 'gpt2' is not supported" in error_of([*given, "--model", str(model)], capsys)


def test_report_on_a_folder_without_a_run_is_told(tmp_path, capsys):
    assert f"{tmp_path} is no run: it has no run.json" in error_of(["report", str(tmp_path)], capsys)
    assert "is no run" in error_of(["report", str(tmp_path / "absent")], capsys)


def test_unknown_flag_and_preset_are_refused_with_status_2(capsys):
    for given in (["--metod", "x"], ["--preset", "laptp"], ["train", "vanilla"], ["cache", "burn"]):
        with pytest.raises(SystemExit) as caught:
            main(given)
        assert caught.value.code == 2


def test_interrupt_outside_of_a_run_is_no_traceback(cache, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.models.checkpoints.list_cache", interrupted)
    assert main(["cache", "list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


# --- help ----------------------------------------------------------------------------------------------------------

IMPORTED = f"""
import sys
from bench.cli import main
try:
    main(sys.argv[1:])
except SystemExit as exit:
    assert exit.code == 0, exit.code
print("heavy:", sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], ["report"], ["train"], ["list"], ["cache"]])
def test_help_explains_itself_without_a_heavy_library(command):
    done = python(IMPORTED, *command, "--help")
    assert done.stderr == "heavy: []\n"
    assert done.stdout.startswith(f"usage: {' '.join([program(), *command])} [-h]")


def test_help_of_a_run_names_methods_commands_presets_and_statuses(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in [*methods.names(), "report RUN_DIR", "train kangaroo", "cache list|clean", "spec-bench", "Exit status"]:
        assert word in text


def test_script_and_version(capsys):
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_bench.py"), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"roobench {__version__}\n"


# --- cache and report ------------------------------------------------------------------------------------------------


def test_cache_is_listed_cleaned_by_name_and_then_empty(cache, capsys):
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == f"{cache} is empty\n"
    for name, size in (("org--one", 3_000_000), ("org--two", 5_000_000)):
        folder = cache / "hub" / f"models--{name}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(size))
    assert main(["cache", "list"]) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [
        ["3", "MB", "org/one"],
        ["5", "MB", "org/two"],
    ]
    assert "did you mean 'org/two'" in error_of(["cache", "clean", "org/tow"], capsys)
    assert main(["cache", "clean", "org/two"]) == 0
    assert capsys.readouterr().out == f"freed 5 MB in {cache}\n"
    assert [path.name for path in (cache / "hub").glob("models--*")] == ["models--org--one"]
    assert main(["cache", "clean"]) == 0
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.endswith(f"{cache} is empty\n")


def test_report_redraws_the_same_files_without_torch(setting, monkeypatch):
    monkeypatch.undo()  # with plots
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    derived = [setting.out / name for name in ("summary.json", "summary.csv", "report.md")]
    plots = sorted((setting.out / "plots").iterdir())
    before = [path.read_bytes() for path in derived]
    for path in [*derived, *plots]:
        path.unlink()
    done = python(IMPORTED, "report", str(setting.out))
    assert done.returncode == 0
    assert not {"torch", "transformers"} & set(done.stderr.splitlines()[-1].replace("'", " ").split())
    assert [path.read_bytes() for path in derived] == before
    assert sorted((setting.out / "plots").iterdir()) == plots
    assert "Question answering" in done.stdout


# --- the device ------------------------------------------------------------------------------------------------------


def test_gpu_that_torch_cannot_use_is_a_loud_warning_and_the_run_goes_on(setting, monkeypatch, capsys):
    monkeypatch.setattr(loading, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ["--method", "vanilla", "--tasks", "qa"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    assert "WARNING: this machine has an NVIDIA GPU, but this torch" in capsys.readouterr().err
    assert records(setting.out)[0].machine.type == "cpu"
    monkeypatch.setattr(loading, "has_nvidia_gpu", lambda: False)
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    assert "WARNING" not in capsys.readouterr().err


def test_busy_machine_is_a_loud_warning_kept_with_the_records(setting, monkeypatch, capsys):
    monkeypatch.setattr("bench.run.environment.psutil.cpu_percent", lambda interval: 62.0)
    flags = ["--model", str(setting.model), "--questions", str(setting.questions), "--out", str(setting.out)]
    assert main([*flags, "--method", "vanilla", "--peer", "none", "--max-new-tokens", "2"]) == 0
    assert "WARNING: other programs use 62% of the processors" in capsys.readouterr().err
    assert "Other programs use 62% of the processors" in (setting.out / "report.md").read_text()


@pytest.mark.parametrize(
    ("code", "listed", "expected"),
    [(0, "GPU 0: NVIDIA H200\n", True), (0, "No devices\n", False), (9, "GPU access blocked\n", False)],
)
def test_gpu_is_believed_only_if_the_drivers_tool_lists_one(monkeypatch, code, listed, expected):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    done = subprocess.CompletedProcess([], code, listed, "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
    assert loading.has_nvidia_gpu() is expected
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert loading.has_nvidia_gpu() is False


def test_unsupported_model_is_told_in_one_line(setting, tmp_path, capsys):
    folder = tmp_path / "gemma"
    shutil.copytree(setting.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bloom", "architectures": None}))
    given = ["--model", str(folder), "--questions", str(setting.questions), "--out", str(setting.out)]
    said = error_of([*given, "--method", "vanilla", "--peer", "none"], capsys)
    assert "model type 'bloom' is not supported; supported: llama" in said


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_soon_unless_the_user_chose(given, spins, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins
