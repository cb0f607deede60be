"""What a run leaves when something goes wrong: a question, a method, the user's patience, the disk."""

from __future__ import annotations

import datetime
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from bench.cli import main
from bench.errors import UserError
from bench.figures.records import Turn, read_turns, write_turns
from tests.tiny import ANOTHER, ONE_TURN, TWO_TURNS, Watched, files_of, records, run_bench, write_questions

LONG = (14, "qa", ("why " * 150,))  # 600 tokens of one byte each; the model's context has 512


@pytest.fixture
def watched(add_method):
    """A method of this test alone, known as `watched`."""

    class Method(Watched):
        pass

    add_method("watched", Method)
    return Method


def raising(error: BaseException, setting, text: str):
    """For `Watched.seen`: raise `error` in prompts that hold `text`."""
    ids = setting.chat.encode(text)

    def seen(prompt):
        if any(prompt[i : i + len(ids)] == ids for i in range(len(prompt))):
            raise error

    return staticmethod(seen)


def summary_of(out) -> dict:
    return json.loads((out / "summary.json").read_text())


# --- questions and methods that fail ---------------------------------------------------------------------------------


def test_question_in_which_a_method_fails_is_recorded_and_left_out_on_both_sides(setting, watched):
    watched.seen = raising(RuntimeError("no sweets"), setting, "marzipan")
    flags = ["--method", "watched", "--method", setting.kangaroo]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    run, turns = records(setting.out)
    assert run.complete
    failed = [(t.method, t.question_id, t.error, t.token_ids) for t in turns if t.error is not None]
    assert failed == [("watched", 12, "RuntimeError: no sweets", [])]
    assert {t.method for t in turns if t.question_id == 12} == {"vanilla", "watched", setting.kangaroo}
    summary = summary_of(setting.out)
    assert summary["excluded_questions"] == [12]
    assert [failure["error"] for failure in summary["failed"]] == ["RuntimeError: no sweets"]
    for method in summary["methods"].values():
        assert set(method["tasks"]) == {"mt_bench", "rag", "overall"}


def test_method_that_fails_in_the_first_turn_is_still_asked_the_second(setting, watched, tmp_path):
    first = setting.chat.encode("harvest.<|im_end|>\n<|im_start|>assistant\n")

    def seen(prompt):
        if prompt[-len(first) :] == first:
            raise ValueError("not yet awake")

    watched.seen = staticmethod(seen)
    source = write_questions(tmp_path / "two.jsonl", TWO_TURNS)
    assert run_bench(setting.model, source, setting.out, "--method", "watched") == 0
    errors = {(t.method, t.turn): t.error for t in records(setting.out)[1]}
    assert errors.pop(("watched", 0)) == "ValueError: not yet awake"
    assert errors == {("vanilla", 0): None, ("vanilla", 1): None, ("watched", 1): None}


def test_prompt_beyond_the_context_fails_for_everybody_and_the_run_goes_on(setting, tmp_path):
    outgrown = (15, "writing", ("short", LONG[2][0]))
    unanswered = (16, "writing", (LONG[2][0], "short"))
    source = write_questions(tmp_path / "q.jsonl", LONG, outgrown, unanswered, ONE_TURN)
    flags = ["--method", setting.kangaroo, "--peer", "hf-generate", "--peer-limit", "0"]
    assert run_bench(setting.model, source, setting.out, *flags) == 0
    _, turns = records(setting.out)
    for question, turn in ((14, 0), (15, 1), (16, 0)):
        errors = {t.method: t.error for t in turns if (t.question_id, t.turn) == (question, turn)}
        assert set(errors) == {"vanilla", setting.kangaroo, "hf-generate"}
        assert all("no room in the context of 512" in str(error) for error in errors.values())
    assert {t.error for t in turns if (t.question_id, t.turn) in ((12, 0), (15, 0))} == {None}
    assert {t.turn for t in turns if t.question_id == 16} == {0}  # a second turn would need vanilla's first answer
    assert summary_of(setting.out)["excluded_questions"] == [14, 15, 16]


def test_answer_stops_where_the_context_ends(setting, tmp_path):
    room = 512 - len(setting.chat.prompt([], ""))
    source = write_questions(tmp_path / "q.jsonl", (1, "qa", ["x" * (room - 5)]), ONE_TURN)
    assert run_bench(setting.model, source, setting.out, "--method", setting.kangaroo) == 0
    turns = [t for t in records(setting.out)[1] if t.question_id == 1]
    assert [(t.prompt_tokens, len(t.token_ids), t.error) for t in turns] == [(507, 5, None)] * 2


def test_run_in_which_every_question_fails_ends_with_status_1(setting, tmp_path, capsys):
    source = write_questions(tmp_path / "q.jsonl", LONG)
    assert run_bench(setting.model, source, setting.out, "--method", setting.kangaroo) == 1
    assert "failed in every question, first with: the prompt's" in capsys.readouterr().err
    assert summary_of(setting.out)["excluded_questions"] == [14]


def test_method_that_fails_in_every_question_ends_with_status_1_though_vanilla_is_fine(setting, watched, capsys):
    watched.seen = raising(RuntimeError("broken"), setting, "?")
    source = write_questions(setting.out.parent / "q.jsonl", ONE_TURN)
    assert run_bench(setting.model, source, setting.out, "--method", "watched") == 1
    said = capsys.readouterr().err
    assert "watched failed in every question, first with: RuntimeError: broken" in said
    assert "vanilla failed" not in said


def test_lack_of_memory_in_the_warm_up_is_one_sentence(setting, watched, capsys):
    watched.seen = raising(MemoryError("no bytes left"), setting, "summer")
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "watched") == 2
    assert "error: not enough memory for method watched (no bytes left)" in capsys.readouterr().err


# --- files -----------------------------------------------------------------------------------------------------------


def test_runs_of_the_same_second_have_folders_of_their_own(setting, monkeypatch, tmp_path):
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 28, 15, 46, 56, tzinfo=tz)

    monkeypatch.setattr("bench.run.plan.datetime.datetime", Stopped)
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(setting.model), "--questions", setting.questions, "--method", "vanilla", "--peer", "none"]
    for _ in range(3):
        assert main([*flags, "--max-new-tokens", "2"]) == 0
    names = sorted(folder.name for folder in (tmp_path / "results" / "runs").iterdir())
    first = "20261128-154656-vanilla-questions.jsonl"
    assert names == [first, f"{first}-2", f"{first}-3"]
    for name in names:
        assert records(tmp_path / "results" / "runs" / name)[0].run_id == name


def test_a_run_that_fails_before_it_writes_leaves_no_folder_of_its_own(setting, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.run.runner.load", raising_error)
    flags = ["--model", str(setting.model), "--questions", setting.questions, "--method", "vanilla", "--peer", "none"]
    assert main(flags) == 2
    assert not (tmp_path / "results").exists()


def raising_error(*given):
    raise UserError("no such model: take another")


def test_earlier_run_in_the_folder_is_moved_aside_whole(setting, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 0
    (setting.out / "plots").mkdir()
    (setting.out / "plots" / "drawn.png").write_bytes(b"plot")
    earlier = files_of(setting.out)
    run_id = records(setting.out)[0].run_id
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    assert f"the earlier run in {setting.out} was moved to {setting.out / run_id}" in capsys.readouterr().err
    assert files_of(setting.out / run_id) == earlier
    assert (setting.out / run_id / "plots" / "drawn.png").read_bytes() == b"plot"
    assert list(records(setting.out)[0].methods) == ["vanilla", setting.kangaroo]


def test_command_that_cannot_run_leaves_an_earlier_run_in_its_place(setting, tmp_path):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 0
    earlier = files_of(setting.out)
    assert run_bench(tmp_path / "no-such-model", setting.questions, setting.out, "--method", "vanilla") == 2
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "kangaroo:weights=nowhere") == 2
    assert files_of(setting.out) == earlier
    assert [path.name for path in setting.out.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"run_id": 7}'),
        ("run.json", '{"run_id": "theirs", "owner": "somebody"}'),
        ("run.json", '{"run_id": "../../x", "schema": 2}'),
        ("run.json", "[" * 100_000),
        ("turns.jsonl", "somebody's"),
        ("report.md", "# somebody's"),
    ],
)
def test_files_that_are_not_ours_are_neither_replaced_nor_moved(setting, tmp_path, capsys, name, content):
    setting.out.mkdir()
    (setting.out / name).write_text(content)
    if "../../x" in content:
        (setting.out / "turns.jsonl").write_text("somebody's")
    before, around = files_of(setting.out), sorted(tmp_path.iterdir())
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 2
    (last,) = capsys.readouterr().err.splitlines()  # nothing was loaded
    assert last.startswith(f"error: a run would replace {setting.out / name}, which ")
    assert last.endswith("choose another folder with --out")
    assert (files_of(setting.out), sorted(tmp_path.iterdir())) == (before, around)


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt()])
def test_records_are_replaced_whole_or_not_at_all(tmp_path, error):
    turns = [Turn("vanilla", i, "qa", "qa", 0, 0, token_ids=[1, 2]) for i in range(3)]
    write_turns(tmp_path / "turns.jsonl", turns[:1])

    def breaking():
        yield turns[1]
        raise error

    with pytest.raises(type(error)):
        write_turns(tmp_path / "turns.jsonl", breaking())
    assert read_turns(tmp_path) == turns[:1]
    assert [path.name for path in tmp_path.iterdir()] == ["turns.jsonl"]
    write_turns(tmp_path / "turns.jsonl", turns)
    assert read_turns(tmp_path) == turns


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("free", [0, 1, 2])
def test_full_disk_ends_the_run_with_one_sentence_and_keeps_what_was_written(setting, monkeypatch, capsys, free):
    """So many questions fit on the disk."""
    sync, synced = os.fsync, []

    def fsync(handle):
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        synced.extend([name] if name == "turns.jsonl" else [])
        if len(synced) > free:
            raise FULL
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"error: cannot write {setting.out}")
    assert "No space left on device" in said.splitlines()[-1]
    assert f"--resume {setting.out}" in said.splitlines()[-1]
    assert [t.question_id for t in read_turns(setting.out)] == [11, 11, 12][: free + (free > 0)]  # 11 has two turns
    monkeypatch.undo()
    assert main(["--resume", str(setting.out)]) == 0
    assert [t.question_id for t in read_turns(setting.out)] == [11, 11, 12, 13]


def test_full_disk_before_the_first_question_leaves_no_half_file(setting, monkeypatch, capsys):
    def no_name(*args):
        raise FULL

    monkeypatch.setattr("bench.files.secrets.token_hex", no_name)  # of the file that is then renamed
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in last
    assert "choose another folder" in last
    assert not setting.out.exists()


def test_folder_that_cannot_be_made_is_told_before_the_model_is_read(setting, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("bench.models.checkpoints.resolve", None)
    assert run_bench(setting.model, setting.questions, tmp_path / "file" / "out", "--method", "vanilla") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot use the path ")


def test_malformed_generation_config_is_told_by_name(setting, tmp_path, capsys):
    model = shutil.copytree(setting.model, tmp_path / "model")
    (model / "generation_config.json").write_text("{")
    source = write_questions(tmp_path / "q.jsonl", ANOTHER)
    assert run_bench(model, source, setting.out, "--method", "vanilla") == 2
    assert "generation_config.json is malformed" in capsys.readouterr().err.splitlines()[-1]


def test_audit_that_fails_costs_the_verdict_and_not_the_run(setting, monkeypatch, capsys):
    def out_of_memory(*_, **more):
        raise torch.OutOfMemoryError("no room for the reference")

    monkeypatch.setattr("bench.run.audit.Auditor.compare", out_of_memory)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    record, turns = records(setting.out)
    assert all(turn.error is None and turn.audit is None for turn in turns)
    assert "are not audited" in capsys.readouterr().err
    assert record.provenance["warnings"]
    assert "output not checked" in (setting.out / "report.md").read_text()
