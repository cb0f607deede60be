"""Answer files in Spec-Bench's format: what is written agrees with its scripts' definitions, spelt out here anew."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import UserError
from bench.figures import metrics
from bench.figures.records import Turn, read_turns, write_json, write_turns
from bench.spec_bench.exchange import export, mean_accepted, read_answers
from bench.spec_bench.foreign import foreign_summary
from tests.answer_files import (
    EOS,
    a_run,
    lines,
    row,
    saved,
    some_turns,
    spec_bench_equal,
    spec_bench_speed,
    spell,
    written,
)
from tests.tiny import run_bench

ROOT = Path(__file__).parents[3]
# --- writing ---------------------------------------------------------------------------------------------------------


def test_spec_benchs_definitions_give_our_figures_from_exported_files(tmp_path):
    run, turns = a_run({"vanilla": "vanilla", "m:gamma=4": "method"}), some_turns({"vanilla": 1, "m:gamma=4": 4})
    export(saved(tmp_path, run, turns), tmp_path / "out", spell)
    ours = metrics.summarize(run, turns).methods
    for task in ("mt_bench", "qa", "rag", "overall"):
        by_question = {}  # (method, question) -> tokens, seconds
        for turn in turns:
            if task in (turn.task, "overall"):
                tokens, seconds = by_question.get((turn.method, turn.question_id), (0, 0.0))
                seconds += turn.prefill_s + turn.decode_s
                by_question[turn.method, turn.question_id] = tokens + len(turn.token_ids), seconds
        means = {
            name: math.fsum(rates) / len(rates)
            for name in run.methods
            if (rates := [tokens / seconds for (of, _), (tokens, seconds) in by_question.items() if of == name])
        }
        found = spec_bench_speed(tmp_path / "out" / "m-gamma-4.jsonl", tmp_path / "out" / "vanilla.jsonl", task)
        expected = (means["m:gamma=4"], means["vanilla"], means["m:gamma=4"] / means["vanilla"])
        assert found[:3] == pytest.approx(expected, rel=1e-9)
        if task != "overall":  # ours is there the tasks' unweighted mean
            assert found[3] == pytest.approx(ours["m:gamma=4"].tasks[task].compression_rate, abs=1e-6)


def test_exported_row_says_what_spec_benchs_would(tmp_path):
    vanilla = Turn("vanilla", 81, "mt_bench", "writing", 0, 0, 5, [1, 2, EOS], 0.5, 2.0, "eos", [0, 0], [0, 0], [1, 1])
    second = Turn("vanilla", 81, "mt_bench", "writing", 1, 0, 5, [EOS], 0.25, 0.0, "eos")
    export(saved(tmp_path, a_run({"vanilla": "vanilla"}), [second, vanilla]), tmp_path / "out", spell)
    (row,) = lines(tmp_path / "out" / "vanilla.jsonl")
    assert row["choices"] == [
        {
            "index": 0,
            "turns": ["t1 t2 t9", "t9"],
            "decoding_steps": [2, 0],
            "new_tokens": [3, 1],
            "wall_time": [2.5, 0.25],
            "accept_lengths": [1, 1],
            "prefill_s": [0.5, 0.25],
            "token_ids": [[1, 2, EOS], [EOS]],
        }
    ]
    assert (row["question_id"], row["category"], row["model_id"]) == (81, "writing", "tiny-vanilla")
    assert row["tstamp"] == 1795331413.0  # the run's start, seconds since 1970
    assert set(row) == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp", "run_id"}


def test_rounds_go_to_folders_and_failed_questions_nowhere(tmp_path):
    turns = some_turns({"vanilla": 1, "m": 3}, rounds=2)
    next(turn for turn in turns if turn.question_id == 300 and turn.round == 1).error = "RuntimeError: no"
    turns.reverse()  # files are sorted by question all the same, as Spec-Bench's are
    exported = export(saved(tmp_path, a_run({"vanilla": "vanilla", "m": "method"}), turns), tmp_path / "out", spell)
    names = ["run_1/vanilla", "run_1/m", "run_2/vanilla", "run_2/m"]
    assert exported.paths == [tmp_path / "out" / f"{name}.jsonl" for name in names]
    for path in exported.paths:
        assert [row["question_id"] for row in lines(path)] == [81, 95, 241, 401]
    seconds = [[row["choices"][0]["wall_time"] for row in lines(path)] for path in exported.paths[::2]]
    assert seconds[0] != seconds[1]
    assert len({row["answer_id"] for path in exported.paths for row in lines(path)}) == 16


def test_peer_that_answered_fewer_questions_has_a_baseline_of_its_own(tmp_path):
    turns = some_turns({"vanilla": 1, "m": 3, "peer": 1})
    turns = [turn for turn in turns if turn.method != "peer" or turn.question_id in (95, 300)]
    for turn in turns:
        if turn.method == "peer":
            turn.per_step_drafted = turn.per_step_accepted = turn.per_step_emitted = []
    run = a_run({"vanilla": "vanilla", "m": "method", "peer": "peer"})
    paths = {path.stem: path for path in export(saved(tmp_path, run, turns), tmp_path / "out", spell).paths}
    assert set(paths) == {"vanilla", "m", "peer", "vanilla-for-peer"}
    assert [row["question_id"] for row in lines(paths["peer"])] == [95, 300]
    assert lines(paths["vanilla-for-peer"]) == [r for r in lines(paths["vanilla"]) if r["question_id"] in (95, 300)]
    choice = lines(paths["peer"])[0]["choices"][0]
    assert (choice["decoding_steps"], choice["accept_lengths"]) == ([], [])


def test_labels_with_one_spelling_as_file_names_get_files_of_their_own(tmp_path):
    turns = some_turns({"vanilla": 1, "m:a=1": 2, "m:a/1": 3})
    run = a_run({"vanilla": "vanilla", "m:a=1": "method", "m:a/1": "method"})
    paths = export(saved(tmp_path, run, turns), tmp_path / "out", spell).paths
    assert [path.name for path in paths] == ["vanilla.jsonl", "m-a-1.jsonl", "m-a-1-2.jsonl"]
    assert [lines(path)[0]["model_id"] for path in paths[1:]] == ["tiny-m:a=1", "tiny-m:a/1"]


def test_recorded_text_is_preferred_to_token_texts_and_these_to_nothing(tmp_path):
    turn = Turn("vanilla", 241, "qa", "qa", 0, 0, 5, [1, 2, EOS], 0.5, 2.0, "eos", [0, 0], [0, 0], [1, 1])
    folder = saved(tmp_path, a_run({"vanilla": "vanilla"}), [turn])

    def text() -> tuple[str, int]:
        exported = export(folder, tmp_path / "out")
        return lines(exported.paths[0])[0]["choices"][0]["turns"][0], exported.inexact

    with pytest.raises(UserError, match=r"holds no texts .*--model"):
        text()
    write_json(folder / "pieces.json", {"1": " Grüß", "2": " Gott", str(EOS): "</s>"})
    assert text() == ("Grüß Gott", 0)
    write_json(folder / "pieces.json", {"1": " Grü\ufffd", "2": "\ufffd Gott"})
    assert text() == ("Grü\ufffd\ufffd Gott", 1)
    write_turns(folder / "turns.jsonl", [dataclasses.replace(turn, text="Grüß Gott")])
    assert text() == ("Grüß Gott", 0)


def test_export_on_the_command_line_decodes_with_the_runs_tokenizer(setting, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    capsys.readouterr()
    assert main(["export", str(setting.out), "--model", str(setting.model)]) == 0
    printed = capsys.readouterr().out
    vanilla = setting.out / "spec-bench" / "vanilla.jsonl"
    assert str(vanilla) in printed
    (kangaroo,) = [path for path in vanilla.parent.iterdir() if path != vanilla]
    assert spec_bench_equal(vanilla, kangaroo)
    turns = {(t.question_id, t.turn): t for t in read_turns(setting.out) if t.method == "vanilla"}
    for answer in lines(vanilla):
        for number, text in enumerate(answer["choices"][0]["turns"]):
            ids = turns[answer["question_id"], number].token_ids
            assert text == bytes_of(ids, setting.chat.tokenizer).decode("utf-8", errors="replace").strip()
    summary = foreign_summary(vanilla, [kangaroo])
    assert summary.text_equal[kangaroo.stem] == {"equal": 3, "different": 0}


def bytes_of(token_ids: list[int], tokenizer) -> bytes:
    """The byte tokenizer's bytes, its special tokens (256 and above) left out."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(letters[tokenizer.convert_ids_to_tokens(i)] for i in token_ids if i < 256)


def test_run_without_a_finished_question_is_refused(tmp_path):
    turns = some_turns({"vanilla": 1})
    for turn in turns:
        turn.error = "RuntimeError: no"
    with pytest.raises(UserError, match="no question that vanilla finished"):
        export(saved(tmp_path, a_run({"vanilla": "vanilla"}), turns), tmp_path / "out", spell)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_spellings_of_other_harnesses_are_read(tmp_path):
    path = written(
        tmp_path / "a.jsonl",
        row(1, [3, 4], [1.0, 2.0], "writing", idxs=[2, 3], accept_lengths=[1, 2, 4]),
        row(2, [7], [1], decoding_steps=[3], accept_lengths=[[3, 4]]),
        row(3, [7], [1.0]),
        row(4, [7], [1.0], turns="bare"),
        row(2, [8], [1.0], decoding_steps=[4], accept_lengths=[[3], [5]]),
    )
    answers = read_answers(path)
    assert list(answers) == [1, 2, 3, 4]
    assert (answers[1].task, answers[1].passes, answers[1].accept_lengths) == ("mt_bench", (3, 4), (1, 2, 4))
    assert (answers[2].new_tokens, answers[2].passes, answers[2].accept_lengths) == ((8,), (), (3, 5))
    assert (answers[3].passes, answers[3].accept_lengths) == ((), ())
    assert answers[4].texts == ("bare",)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wall_time": [1.0, 2.0]}, r"1 turns, 1 new_tokens and 2 wall_time"),
        ({"wall_time": [0.0]}, "adds up to nothing"),
        ({"wall_time": [math.nan]}, r"choices\[0\].wall_time\[0\]: NaN is not a number"),
        ({"wall_time": ["fast"]}, r"choices\[0\].wall_time\[0\]: Input should be a valid number, not 'fast'"),
        ({"wall_time": [-1.0]}, r"wall_time\[0\]: Input should be greater than or equal to 0, not -1.0"),
        ({"new_tokens": [2.5]}, r"new_tokens\[0\]: Input should be a valid integer, not 2.5"),
        ({"new_tokens": [-1]}, r"new_tokens\[0\]: Input should be greater than or equal to 0, not -1"),
        ({"accept_lengths": [1, None]}, r"accept_lengths\[1\]: Input should be a valid integer, not None"),
        ({"accept_lengths": [10**9]}, r"accept_lengths\[0\]: Input should be less than or equal to 4096"),
        ({"idxs": [1, 2]}, "idxs: has 2 entries for 1 turns"),
        ({"turns": [5]}, r"turns\[0\]: Input should be a valid string, not 5"),
        ({"turns": []}, "turns: .* should have at least 1 item"),
    ],
)
def test_malformed_answer_is_told_with_its_line(tmp_path, changes, told):
    path = written(tmp_path / "a.jsonl", row(1, [3], [1.0]), row(2, [3], [1.0], **changes))
    with pytest.raises(UserError, match=f"a.jsonl, line 2: not an answer in Spec-Bench's format.*{told}"):
        read_answers(path)


def test_files_that_are_no_answer_files_are_refused_by_their_content(tmp_path):
    assert list(read_answers(written(tmp_path / "x.bin", row(1, [3], [1.0])))) == [1]
    saved(tmp_path, a_run({"vanilla": "vanilla"}), some_turns({"vanilla": 1}))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    written(tmp_path / "questions.jsonl", {"question_id": 1, "category": "qa", "turns": ["?"]})
    (tmp_path / "half.jsonl").write_text(json.dumps(row(1, [3], [1.0])) + '\n\n{"question', encoding="utf-8")
    for name, told in (
        (".", "cannot be read"),
        ("absent", "cannot be read"),
        ("questions.jsonl", "line 1: not an answer in Spec-Bench's format .choices: missing"),
        ("turns.jsonl", "line 1: not an answer in Spec-Bench's format .choices: missing"),
        ("empty.jsonl", "holds no answers"),
        ("bytes", "line 1: not an answer .*can't decode byte 0xff"),
        ("half.jsonl", "line 3: not an answer .*EOF while parsing"),
    ):
        with pytest.raises(UserError, match=told):
            read_answers(tmp_path / name)


def test_older_harnesses_tell_passes_by_the_index_of_the_last(tmp_path):
    """`idxs` count from 0, and `category` is not always there."""
    rows = [row(81, [10, 20], [1.0, 2.0], idxs=[4, 9]), row(82, [5, 5], [0.5, 0.5], idxs=[2, 2])]
    for line in rows:
        del line["category"]
    answers = list(read_answers(written(tmp_path / "a.jsonl", *rows)).values())
    assert [answer.task for answer in answers] == ["uncategorized"] * 2
    assert [answer.passes for answer in answers] == [(5, 10), (3, 3)]
    assert mean_accepted(answers[:1]) == (2.0, 15)
    assert mean_accepted(answers) == (40 / 21, 21)
    assert mean_accepted([]) == (None, 0)


def test_somebody_elses_file_is_not_replaced_by_an_export(tmp_path):
    run, turns = a_run({"vanilla": "vanilla", "m": "method"}), some_turns({"vanilla": 1, "m": 2})
    folder = saved(tmp_path, run, turns)
    (tmp_path / "out").mkdir()
    theirs = written(tmp_path / "out" / "vanilla.jsonl", row(1, [3], [1.0])).read_bytes()
    with pytest.raises(UserError, match=r"vanilla\.jsonl is not an export of run 20261122-run, and is kept"):
        export(folder, tmp_path / "out", spell)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"vanilla.jsonl": theirs}
    (tmp_path / "out" / "vanilla.jsonl").unlink()
    first = export(folder, tmp_path / "out", spell)
    assert export(folder, tmp_path / "out", spell) == first


def test_neither_reading_nor_writing_needs_torch():
    both = "bench.spec_bench.exchange, bench.spec_bench.foreign"
    code = f"import sys, {both}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_export_with_another_models_tokenizer_is_refused(setting, tiny_checkpoint, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla") == 0
    assert main(["export", str(setting.out), "--model", str(tiny_checkpoint("llama3").folder)]) == 2
    assert "is not the model of run" in capsys.readouterr().err
    assert not (setting.out / "spec-bench").exists()


def test_answer_files_are_tabled_on_the_command_line(setting, tmp_path, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    assert main(["export", str(setting.out)]) == 0
    files = sorted((setting.out / "spec-bench").iterdir(), key=lambda path: path.name != "vanilla.jsonl")
    capsys.readouterr()
    assert main(["report", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    assert "text equal to the baseline's in 3 of 3 questions" in printed
    assert "- Speedups are end-to-end" in printed
    assert main(["report", *map(str, files), "--tokenizer", str(setting.model)]) == 0
    assert "retokenised, as Spec-Bench's speed.py counts them" in capsys.readouterr().out
    odd = tmp_path / "odd.jsonl"
    odd.write_text("{}\n")
    for flags, told in [
        ([files[0]], "alone cannot be compared"),
        ([files[0], odd], "odd.jsonl, line 1: not an answer in Spec-Bench's format"),
        ([*files, "--plots", tmp_path], "answer files are tabled, not drawn"),
        ([setting.out, "--tokenizer", setting.model], "is for answer files"),
        ([setting.out, setting.out], "takes one run, not 2"),
    ]:
        assert main(["report", *map(str, flags)]) == 2
        assert told in capsys.readouterr().err
