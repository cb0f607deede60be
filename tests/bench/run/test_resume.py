"""A run that was killed goes on: nothing is lost, nothing asked twice, and nothing else is measured than was begun."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

import methods
from bench.cli import main
from bench.drafting.costs import Costs
from bench.figures.records import Turn, alone_in, append_turns, read_run, read_turns, write_json
from bench.models.chat import ChatFormat
from bench.run import runner
from tests.tiny import QUESTIONS, files_of, records, run_bench, write_questions

ROOT = Path(__file__).parents[3]
LOAD = methods.load
# Kills its own process with SIGKILL once the next question is written down.
KILLED = """
import os, signal, sys
from bench.figures import records
from bench.run import recorder
from bench.cli import main

append = records.append_turns

def last_words(path, turns, go_on):
    append(path, turns, go_on)
    os.kill(os.getpid(), signal.SIGKILL)

recorder.append_turns = last_words
main(sys.argv[1:])
"""


def keys(turns):
    return [(t.method, t.question_id, t.turn, t.round) for t in turns]


def tokens(turns):
    return {key: t.token_ids for key, t in zip(keys(turns), turns, strict=True)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoint, tiny_model, tiny_adapter):
    """An undisturbed run of all tests, in `run`, and copies of what it read, in `read`."""
    folder = tmp_path_factory.mktemp("finished")
    questions = write_questions(folder / "questions.jsonl", *QUESTIONS)
    adapter = tiny_adapter(tiny_model("tied", True)[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOBENCH_CACHE", str(folder / "cache"))
        patch.setattr("bench.report.figures.write_figures", lambda summary, folder: [])
        patch.setattr("bench.run.environment.psutil.cpu_percent", lambda interval: 0.0)
        flags = ["--method", f"kangaroo:weights={adapter},threshold=0", "--peer", "hf-generate", "--rounds", "2"]
        assert run_bench(tiny_checkpoint("tied", True).folder, questions, folder / "run", *flags) == 0
    shutil.copytree(adapter, folder / "read" / "adapter")
    shutil.copy(questions, folder / "read")
    return SimpleNamespace(folder=folder, questions=questions, adapter=adapter, flags=flags)


@pytest.fixture
def whole(finished, setting, tmp_path):
    """A copy of the finished run in `whole`, its flags and turns; what it read is as it was, and is `setting`'s."""
    shutil.copytree(finished.folder / "run", tmp_path / "whole")
    shutil.copytree(finished.folder / "read" / "adapter", finished.adapter, dirs_exist_ok=True)
    shutil.copy(finished.folder / "read" / "questions.jsonl", finished.questions)
    setting.questions, setting.kangaroo = finished.questions, finished.flags[1]
    return finished.flags, read_turns(tmp_path / "whole")


def cut_after(out, lines, torn=b""):
    """Leave the run in `out` as if it had been killed after so many lines and a half one."""
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"complete": False}))
    kept = (out / "turns.jsonl").read_bytes().splitlines(keepends=True)
    (out / "turns.jsonl").write_bytes(b"".join(kept[:lines]) + torn)


def test_killed_twice_and_resumed_nothing_is_lost_or_doubled(setting, whole, tmp_path, cache, give_kernels):
    flags, expected = whole
    give_kernels(cache)
    out = tmp_path / "killed"
    begun = [
        "--model",
        str(setting.model),
        "--questions",
        setting.questions,
        "--out",
        str(out),
        "--max-new-tokens",
        "8",
    ]
    for arguments in ([*begun, *flags], ["--resume", str(out)]):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=os.environ, capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    run, turns = records(out)
    assert not run.complete
    assert keys(turns) == keys(expected)[: len(turns)]
    assert {t.question_id for t in turns} == {11, 12}
    assert main(["--resume", str(out)]) == 0
    run, turns = records(out)
    assert run.complete
    assert sorted(keys(turns)) == sorted(keys(expected))
    assert tokens(turns) == tokens(expected)
    assert len(run.provenance["sessions"]) == 3
    token_texts = json.loads((out / "pieces.json").read_text())
    lists = [ids for t in turns for ids in (t.token_ids, *t.per_step_rejected)]
    assert token_texts.keys() == {str(token) for ids in lists for token in ids}
    assert run.wall_s == pytest.approx(sum(session["wall_s"] for session in run.provenance["sessions"]))


@pytest.mark.parametrize("torn", [b"", b'{"method": "vanilla", "questio', b"\0" * 300, '{"text": "é'.encode()[:-1]])
@pytest.mark.parametrize("lines", [0, 1, 4, 7])
def test_run_goes_on_from_wherever_its_records_break_off(setting, whole, tmp_path, lines, torn):
    """A question of which some turns are missing is asked again, whole."""
    _, expected = whole
    out = tmp_path / "whole"
    cut_after(out, lines, torn)
    assert main(["report", str(out)]) == 0
    assert main(["--resume", str(out)]) == 0
    run, turns = records(out)
    assert run.complete
    assert sorted(keys(turns)) == sorted(keys(expected))
    assert tokens(turns) == tokens(expected)


def test_finished_questions_are_not_asked_again(setting, whole, tmp_path, monkeypatch):
    out = tmp_path / "whole"
    cut_after(out, 12)
    before = read_turns(out)
    written = []
    monkeypatch.setattr(
        "bench.run.recorder.append_turns",
        lambda path, turns, go_on: (append_turns(path, turns, go_on), written.append(turns)),
    )
    assert main(["--resume", str(out)]) == 0
    assert read_turns(out)[: len(before)] == before
    assert not set(keys(before)) & {key for turns in written for key in keys(turns)}


def test_complete_run_is_not_resumed(whole, tmp_path, capsys):
    assert main(["--resume", str(tmp_path / "whole")]) == 2
    assert "is complete: there is nothing to resume" in capsys.readouterr().err


def test_folder_without_a_run_is_not_resumed(tmp_path, capsys):
    assert main(["--resume", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--limit", "1", "--limit was None, is now 1"),
        ("--rounds", "3", "--rounds was 2, is now 3"),
        ("--method", "vanilla", "--method was ("),
        ("--dtype", "bfloat16", "--dtype was 'auto', is now 'bfloat16'"),
        ("--preset", "spec-bench", "--questions was "),
    ],
)
def test_changed_settings_are_refused_with_the_difference(whole, tmp_path, capsys, flag, value, said):
    out = tmp_path / "whole"
    cut_after(out, 4)
    before = (out / "turns.jsonl").read_bytes()
    assert main(["--resume", str(out), flag, value]) == 2
    assert said in capsys.readouterr().err
    assert (out / "turns.jsonl").read_bytes() == before


def test_the_same_settings_may_be_said_again(whole, tmp_path):
    out = tmp_path / "whole"
    cut_after(out, 4)
    assert main(["--resume", str(out), "--rounds", "2", "--peer", "hf-generate"]) == 0


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("model", "sha256"), "f" * 64, "model was 'ffff"),
        (("model", "chat_template_sha256"), "f" * 64, "chat template was 'ffff"),
        (("model", "tokenizer_sha256"), "f" * 64, "tokenizer was 'ffff"),
        (("machine", "name"), "another processor", "device was 'another processor'"),
        (("machine", "threads"), 77, "threads was 77"),
        (("provenance", "packages"), {"torch": "1.0"}, "torch was '1.0'"),
        (("dtype",), "bfloat16", "dtype was 'bfloat16'"),
    ],
)
def test_another_machine_model_or_library_is_refused(whole, tmp_path, capsys, where, value, said):
    out = tmp_path / "whole"
    cut_after(out, 4)
    record = json.loads((out / "run.json").read_text())
    place = record
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    (out / "run.json").write_text(json.dumps(record))
    assert main(["--resume", str(out)]) == 2
    assert said in capsys.readouterr().err


def test_prompts_that_changed_overnight_are_refused(whole, tmp_path, capsys, monkeypatch):
    """A chat template may write the date: template and tokenizer are as they were, the prompts are not."""
    out = tmp_path / "whole"
    cut_after(out, 4)
    before, of_today = files_of(out), ChatFormat.prompt
    monkeypatch.setattr(ChatFormat, "prompt", lambda *asked: [65, *of_today(*asked)])
    assert main(["--resume", str(out)]) == 2
    assert "the prompt of question 11 (digest of its token ids) was '" in capsys.readouterr().err
    assert files_of(out) == before


def test_run_that_does_not_say_what_its_prompts_were_goes_on(whole, tmp_path):
    out = tmp_path / "whole"
    cut_after(out, 4)
    record = json.loads((out / "run.json").read_text())
    assert len(record["model"].pop("chat_template_sha256")) == len(record["model"].pop("tokenizer_sha256")) == 64
    (out / "run.json").write_text(json.dumps(record))
    lines = [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]
    assert {len(line.pop("prompt_digest")) for line in lines} == {16}
    (out / "turns.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["--resume", str(out)]) == 0


def test_changed_questions_are_refused(setting, whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    write_questions(Path(setting.questions), (11, "writing", ("Something else?",)))
    assert main(["--resume", str(out)]) == 2
    assert "questions was" in capsys.readouterr().err


CURVE = [0.5] * 21


@pytest.fixture
def gain(setting, tiny_adapter):
    """Kangaroo with an adapter whose default is to stop by gain, by costs that are measured at the start."""
    changes = {"calibration": {"accepted": CURVE, "following": CURVE}, "knobs": {"stop": "gain"}}
    return f"kangaroo:weights={tiny_adapter(setting.hf, changes=changes)}"


def test_knobs_that_were_measured_at_the_start_are_kept(setting, gain, tmp_path, monkeypatch):
    """Costs measured anew would decide otherwise half-way through."""
    out = tmp_path / "out"
    assert run_bench(setting.model, setting.questions, out, "--method", gain) == 0
    cut_after(out, 4)
    before = json.loads((out / "run.json").read_text())["methods"]
    assert before[gain]["config"]["costs"] == ""
    made = []
    kangaroo = methods.load("kangaroo")

    class Watched(kangaroo):
        def __init__(self, target, config):
            super().__init__(target, config)
            made.append((config.costs, self.costs))

    monkeypatch.setattr(methods, "load", lambda name: Watched if name == "kangaroo" else LOAD(name))
    monkeypatch.setattr("bench.drafting.costs.measure", None)
    assert main(["--resume", str(out)]) == 0
    costs = before[gain]["measured"]["costs"]
    assert made == [(costs, Costs.parse(costs))]
    assert json.loads((out / "run.json").read_text())["methods"] == before


def test_knob_that_is_no_more_is_told(setting, whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    record = json.loads((out / "run.json").read_text())
    record["methods"][setting.kangaroo]["config"]["whiskers"] = 3
    (out / "run.json").write_text(json.dumps(record))
    assert main(["--resume", str(out)]) == 2
    assert "does not take its knobs" in capsys.readouterr().err


def test_other_weights_under_the_same_name_are_refused(setting, whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    before = (out / "turns.jsonl").read_bytes()
    file = Path(setting.kangaroo.partition("weights=")[2].partition(",")[0]) / "adapter.safetensors"
    tensors = load_file(file)
    tensors["norm.weight"] = tensors["norm.weight"] * 1.5
    save_file(tensors, file)
    assert main(["--resume", str(out)]) == 2
    assert "weights of methods was" in capsys.readouterr().err
    assert (out / "turns.jsonl").read_bytes() == before


def test_method_that_is_no_more_part_of_all_costs_no_record(setting, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(methods, "built_in", lambda: ["vanilla", "one", "two"])
    monkeypatch.setattr(methods, "load", lambda name: LOAD("vanilla") if name in ("one", "two") else LOAD(name))
    assert run_bench(setting.model, setting.questions, out, "--method", "all") == 0
    cut_after(out, 4)
    before = (out / "turns.jsonl").read_bytes()
    monkeypatch.setattr(methods, "built_in", lambda: ["vanilla", "one"])
    assert main(["--resume", str(out)]) == 2
    assert "methods was" in capsys.readouterr().err
    assert (out / "turns.jsonl").read_bytes() == before


def test_setting_of_another_version_is_refused(whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    record = json.loads((out / "run.json").read_text())
    record["config"]["moonlight"] = True
    (out / "run.json").write_text(json.dumps(record))
    assert main(["--resume", str(out)]) == 2
    assert "does not know its moonlight" in capsys.readouterr().err


def test_folder_in_which_another_process_is_at_work_is_left_alone(setting, whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    before = files_of(out)
    with alone_in(out):
        assert main(["--resume", str(out)]) == 2
        assert "another process is at work" in capsys.readouterr().err
        assert run_bench(setting.model, setting.questions, out, "--method", "vanilla") == 2
    assert files_of(out) == before


def test_a_run_that_another_process_went_on_with_while_the_model_was_loaded_is_left_alone(
    whole, tmp_path, monkeypatch, capsys
):
    out, load = tmp_path / "whole", runner.load
    cut_after(out, 4)

    def meanwhile(*given):
        loaded = load(*given)
        run = read_run(out)
        run.complete = True
        write_json(out / "run.json", run)
        return loaded

    monkeypatch.setattr(runner, "load", meanwhile)
    assert main(["--resume", str(out)]) == 2
    assert "another process has gone on with" in capsys.readouterr().err
    assert read_run(out).complete


def test_answers_keep_characters_that_end_lines_elsewhere(tmp_path):
    """JSON leaves them as they are, and a reader that split there would lose the run."""
    turn = Turn("vanilla", 1, "qa", "qa", 0, 0, token_ids=[1], text="one\u2028two\x85three\u2029\x0bfour")
    append_turns(tmp_path / "turns.jsonl", [turn, turn], "again")
    assert read_turns(tmp_path) == [turn, turn]


def test_damage_before_the_last_line_is_told_and_not_repaired(whole, tmp_path, capsys):
    out = tmp_path / "whole"
    cut_after(out, 4)
    lines = (out / "turns.jsonl").read_bytes().splitlines(keepends=True)
    (out / "turns.jsonl").write_bytes(b"".join([lines[0], b"{]\n", *lines[2:]]))
    before = (out / "turns.jsonl").read_bytes()
    assert main(["--resume", str(out)]) == 2
    assert "line 2: not a turn's record" in capsys.readouterr().err
    assert (out / "turns.jsonl").read_bytes() == before
