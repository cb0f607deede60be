"""A run over temperatures or prompt lengths: each value is as a run of its own, and resumed nothing is lost."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench.cli import main
from bench.figures.axis import at_first
from bench.figures.metrics import summarize
from bench.figures.records import prompt_digest, read_turns
from bench.questions import Question
from bench.report import figures_axis
from bench.report.sections import sections
from bench.run.padding import Padding
from tests.bench.run.test_resume import cut_after
from tests.tiny import records, run_bench, write_questions

LENGTHS = ("--prompt-lengths", "300,220")
SHORT = [(11, "writing", ("Praise figs.", "Again.")), (12, "qa", ("Who baked it?",)), (13, "rag", ("Quote it.",))]


@pytest.fixture
def asked(setting, tmp_path):
    """A run with some flags, its questions short enough to be padded; returns its record and turns."""
    questions = write_questions(tmp_path / "short.jsonl", *SHORT)

    def run(*flags: str, out=setting.out, method="pld"):
        assert run_bench(setting.model, questions, out, "--method", method, *flags) == 0
        return records(out)

    return run


def by_place(turns):
    return {(t.method, t.question_id, t.turn, t.round): t for t in turns}


def test_answers_at_each_temperature_are_those_of_a_run_at_it_alone(asked, tmp_path):
    _, turns = asked("--temperatures", "0.7,0,1.5", "--seed", "3", "--rounds", "2")
    assert {t.at for t in turns} == {0.7, 0, 1.5}
    for value in (0.7, 0, 1.5):
        _, alone = asked("--temperature", str(value), "--seed", "3", "--rounds", "2", out=tmp_path / str(value))
        here, there = (by_place(each) for each in ([t for t in turns if t.at == value], alone))
        assert {key: (t.token_ids, t.prompt_digest) for key, t in here.items()} == {
            key: (t.token_ids, t.prompt_digest) for key, t in there.items()
        }
    audited = {(t.at, t.audit and t.audit.verdict) for t in turns if t.method == "pld"}
    assert audited == {(0, "identical"), (0.7, None), (1.5, None)}


def test_a_question_is_asked_at_all_values_before_the_next_and_the_order_is_reversed(asked):
    _, turns = asked("--temperatures", "0,1")
    order = list(dict.fromkeys((t.question_id, t.at) for t in turns))
    assert order == [(11, 0), (11, 1), (12, 1), (12, 0), (13, 0), (13, 1)]


def test_padded_prompts_have_the_length_and_end_with_the_question(asked, setting):
    run, turns = asked(*LENGTHS)
    assert run.config["prompt_lengths"] == [300, 220]
    first = [t for t in turns if t.turn == 0]
    assert {(t.question_id, t.at) for t in first} == {(i, n) for i, *_ in SHORT for n in (220, 300)}
    for turn in first:
        assert turn.at - 13 <= turn.prompt_tokens <= turn.at  # a letter is a token here, and a word up to twelve
    assert {t.audit.verdict for t in turns if t.audit} == {"identical"}
    assert all(run.methods[label].notes["cache_bytes_per_token"] > 0 for label in ("vanilla", "pld"))


def test_summary_has_every_value_with_vanilla_at_the_same_one_as_baseline(asked):
    run, turns = asked(*LENGTHS)
    slow = [
        dataclasses.replace(t, decode_s=t.decode_s * (3 if t.at == 300 and t.method == "vanilla" else 1)) for t in turns
    ]
    summary, slowed = summarize(run, turns), summarize(run, slow)
    assert summary.axis.name == "prompt length"
    assert [point.value for point in summary.axis.points] == [220, 300]
    for number, factor in ((0, 1), (1, 3)):
        before, after = (s.axis.points[number].methods["pld"].speedup_decode.value for s in (summary, slowed))
        assert after == pytest.approx(factor * before)
    mine = [t for t in turns if t.at == 300 and t.method == "pld" and t.task == "qa"]
    alone = summarize(run, [t for t in turns if t.at == 300])
    assert alone.methods["pld"].tasks["qa"].compression_rate == pytest.approx(
        sum(len(t.token_ids) - 1 for t in mine) / sum(len(t.per_step_emitted) for t in mine)
    )
    assert summary.methods == summarize(run, at_first(run, turns)).methods


def test_page_and_plots_show_every_value(asked):
    run, turns = asked("--temperatures", "0,1")
    summary = summarize(run, turns)
    (found,) = [each for each in sections(run, summary, sources=[]) if each.title == "By temperature"]
    captions = {table.caption: table for table in found.parts if hasattr(table, "caption")}
    assert captions["CR"].header == ["CR", "temperature 0", "temperature 1"]
    assert captions["Output identical"].rows == [["pld", "4/4", "-"]]
    figures = figures_axis.draw(summary)
    assert set(figures) == {"by_temperature", "acceptance_by_temperature"}
    speedup, rate = figures["by_temperature"].axes
    for axes, key in ((speedup, lambda cell: cell.speedup_decode.value), (rate, lambda cell: cell.compression_rate)):
        drawn = [list(line.get_ydata()) for line in axes.get_lines()]
        assert [key(point.methods["pld"]) for point in summary.axis.points] in drawn
    assert figures_axis.draw(summarize(run, [dataclasses.replace(t, at=0) for t in turns if t.at == 0])) == {}


@pytest.mark.parametrize("flags", [LENGTHS, ("--temperatures", "0,1")])
@pytest.mark.parametrize("lines", [0, 5, 13])
def test_run_over_an_axis_goes_on_from_wherever_its_records_break_off(asked, setting, flags, lines):
    _, expected = asked(*flags, method=setting.kangaroo)
    cut_after(setting.out, lines)
    assert main(["--resume", str(setting.out)]) == 0
    _, turns = records(setting.out)
    keys = [(t.method, t.question_id, t.turn, t.round, t.at) for t in turns]
    assert len(set(keys)) == len(keys) == len(expected)
    assert {(key, *t.token_ids) for key, t in zip(keys, turns, strict=True)} == {
        ((t.method, t.question_id, t.turn, t.round, t.at), *t.token_ids) for t in expected
    }


def test_resume_refuses_other_passages(asked, setting, tmp_path, capsys):
    passages = tmp_path / "passages.txt"
    passages.write_text("Figs ripen late.\n\nWasps like figs.\n")
    asked(*LENGTHS, "--passages", str(passages))
    cut_after(setting.out, 6)
    passages.write_text("Plums ripen late.\n\nWasps like plums.\n")
    assert main(["--resume", str(setting.out)]) == 2
    assert "cannot resume" in (said := capsys.readouterr().err)
    assert "the prompt of question" in said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--temperatures", "0,x"], "argument --temperatures: invalid numbers value: '0,x'"),
        (["--temperatures", ""], "argument --temperatures: invalid numbers value: ''"),
        (["--temperatures", "0,0.0"], "'0,0.0' has a value twice: give each once"),
        (["--temperatures", "0,-1"], "--temperatures -1.0 is too small: at least 0"),
        (["--temperatures", "0,nan"], "--temperatures nan is no number"),
        (["--temperatures", "0,1e-5"], "--temperatures 1e-05 is too small to sample at"),
        (["--temperatures", "0,1", "--temperature", "1"], "--temperatures and --temperature exclude each other"),
        (["--temperatures", "0,1", "--prompt-lengths", "99"], "--temperatures and --prompt-lengths exclude each other"),
        (["--temperatures", "0,1", "--batch", "2"], "--batch and --temperatures exclude each other: "),
        (["--prompt-lengths", "99", "--batch", "2"], "--batch and --prompt-lengths exclude each other"),
        (["--temperatures", "0", "--top-k", "3"], "--top-p and --top-k are for sampling"),
        (["--temperatures", "0,1", "--probe-windows", "3"], "--probe-windows is for greedy decoding: leave "),
        (["--prompt-lengths", "1k,2q"], "argument --prompt-lengths: invalid counts value: '1k,2q'"),
        (["--prompt-lengths", "1.5k"], "invalid counts value"),
        (["--prompt-lengths", "1k,1024"], "'1k,1024' has a value twice"),
        (["--prompt-lengths", "0"], "--prompt-lengths 0 is too small: at least 1"),
        (["--passages", "x.txt"], "--passages is what prompts are padded with: give --prompt-lengths as well"),
        (["--prompt-lengths", "200", "--passages", "absent.txt"], "cannot read absent.txt: no such file"),
        (["--prompt-lengths", "200", "--passages", "empty.txt"], "empty.txt has no text: give paragraphs"),
        (["--prompt-lengths", "200", "--passages", "latin.txt"], "latin.txt cannot be read"),
        (["--prompt-lengths", "1k,2k"], "--prompt-lengths 1,024, 2,048 cannot be asked: "),
        (["--prompt-lengths", "20"], "--prompt-lengths 20 is shorter than all questions, which have"),
        (["--temperatures", "0,1", "--method", "suffix:memory=run"], "suffix:memory=run remembers its answers"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(setting, tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n\n \n")
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    given = [] if "--method" in flags else ["--method", "pld"]
    try:
        status = run_bench(setting.model, setting.questions, setting.out, *given, *flags)
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 2, said
    assert told in said
    assert "Traceback" not in said
    assert not (setting.out / "turns.jsonl").exists()


def test_lengths_and_questions_that_do_not_fit_are_left_out_with_a_warning(setting, tmp_path, capsys):
    long = (14, "qa", ("Why " + "so " * 100 + "long?",))
    questions = write_questions(tmp_path / "some.jsonl", *SHORT, long)
    flags = ["--method", "pld", "--prompt-lengths", "210,500,8k"]
    assert run_bench(setting.model, questions, setting.out, *flags) == 0
    run, turns = records(setting.out)
    assert {(t.question_id, t.at) for t in turns} == {(i, n) for i, *_ in SHORT for n in (210, 500)}
    assert run.dataset["questions"] == 3
    warned = [text for text in run.provenance["warnings"] if "left out" in text]
    assert warned[0].startswith("prompt lengths 8,192 are left out: ")
    assert warned[1].startswith("1 of 4 questions are longer than the shortest prompt length, 210, and are left out")


def test_a_value_that_the_run_did_not_ask_at_is_refused_in_its_records(asked, setting, capsys):
    asked("--temperatures", "0,1")
    path = setting.out / "turns.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"at": 0.5}), *lines[1:]]) + "\n")
    assert main(["report", str(setting.out)]) == 2
    assert "line 1: not a turn's record (at: 0.5 is none of the run's values" in capsys.readouterr().err


def test_consumers_of_a_run_take_its_first_value(asked, setting, tmp_path, capsys):
    """Answer files, comparisons and replays are of one value."""
    asked("--temperatures", "0,1")
    assert main(["export", str(setting.out), "--out", str(tmp_path / "answers")]) == 0
    answers = [json.loads(line) for line in (tmp_path / "answers" / "pld.jsonl").read_text().splitlines()]
    turns = [t for t in read_turns(setting.out) if t.at == 0 and t.method == "pld"]
    assert [ids for row in answers for ids in row["choices"][0]["token_ids"]] == [
        t.token_ids for t in sorted(turns, key=lambda t: (t.question_id, t.turn))
    ]
    assert main(["compare", str(setting.out), str(setting.out)]) == 0
    assert main(["replay", str(setting.out), "--method", "pld", "--model", str(setting.model)]) == 0


def test_a_padded_run_is_not_replayed(asked, setting, capsys):
    asked(*LENGTHS)
    assert main(["replay", str(setting.out), "--method", "pld", "--model", str(setting.model)]) == 2
    assert "padded its questions" in capsys.readouterr().err


def test_prompts_are_those_of_the_padded_questions_and_follow_vanillas_answers(asked, setting):
    run, turns = asked(*LENGTHS)
    padding = Padding(setting.chat, run.config["seed"])
    answers = {(t.question_id, t.at, t.turn): t.text for t in turns if t.method == "vanilla"}
    for number, category, texts in SHORT:
        for at in (220, 300):
            question = padding.pad(Question(number, category, texts), at)
            prompts = [setting.chat.prompt([], question.turns[0])]
            if len(texts) > 1:
                history = [(question.turns[0], answers[number, at, 0])]
                prompts.append(setting.chat.prompt(history, texts[1]))
            mine = [t for t in turns if (t.question_id, t.at, t.method) == (number, at, "pld")]
            assert [t.prompt_digest for t in mine] == [prompt_digest(prompt) for prompt in prompts]
