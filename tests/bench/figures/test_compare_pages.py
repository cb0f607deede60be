"""What is written of a comparison, and comparisons of answer files."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import pytest

from bench.cli import main
from bench.errors import UserError
from bench.figures.comparison import ComparedMethod, ComparedTask, Comparison, Metric, Side
from bench.figures.records import write_json, write_turns
from bench.figures.rules import Rules
from bench.figures.summary import Estimate
from bench.figures.verdicts import SAME, WORSE
from bench.report import compare_page
from bench.spec_bench.compare_answers import ACCEPTED, LIMITS, TIME, compare_answers
from bench.typed_json import read
from tests.bench.figures.test_compare import a_run, changed, compared, some_turns


def made_up(label: str = "kangaroo", verdict: str = WORSE, **tasks: dict[str, Metric]) -> Comparison:
    """A comparison of one method, by task."""
    cells = {task: ComparedTask(metrics, verdict) for task, metrics in tasks.items()}
    return Comparison(
        base=Side("b"), new=Side("n"), interleaved=True, same_machine=True, rules=Rules(tolerance=0.0),
        questions=1, warnings=[], methods={label: ComparedMethod("method", cells, verdict)}, verdict=verdict,
    )  # fmt: skip


def test_the_least_difference_of_a_counter_is_seen():
    counter = Metric(base=1.20312, new=1.20308, verdict=WORSE, change=Estimate(1.20308 / 1.20312))
    same = Metric(base=1.5, new=1.5, verdict=SAME, change=Estimate(1.0))
    found = made_up(overall={"CR": counter, "CTAR(1)": same})
    assert compare_page.findings(found) == ["**worse** kangaroo, Overall: CR 1.20312 → 1.20308 -0.003%"]
    row = next(line for line in compare_page.terminal(found).splitlines() if "CTAR(1)" in line)
    assert row.split()[1:5] == ["1.500", "1.500", "+0.0%", "⚪"]


def test_one_task_alone_only_informs():
    slower = Metric(base=10.0, new=11.0, verdict=WORSE, change=Estimate(1.1, 1.05, 1.15))
    overall = dataclasses.replace(slower, verdict=SAME)
    found = made_up(verdict=SAME, overall={"time": overall}, rag={"time": slower})
    told = "kangaroo, RAG: time 10.000 → 11.000 +10.0% [+5.0%, +15.0%]"
    assert compare_page.findings(found) == [f"(worse, only informs) {told}"]
    overall.verdict = WORSE
    assert compare_page.findings(found)[1] == f"**worse** {told}"


def test_every_task_is_on_the_page_and_folded_and_not_in_the_terminal():
    metric = Metric(base=10.0, new=10.0, verdict=SAME, change=Estimate(1.0, 0.99, 1.01))
    found = made_up(verdict=SAME, overall={"time": metric}, rag={"time": metric})
    page = compare_page.markdown(found)
    assert page.startswith("# Nothing got slower\n\n`b` → `n`, 1 question\n")
    assert page.count("<details>") == page.count("</details>") == 1
    assert "<details><summary>kangaroo</summary>\n\n| task |" in page
    assert "| RAG | time | 10.000 | 10.000 | +0.0% [-1.0%, +1.0%] | same |" in page
    assert "What changed" not in page, "nothing did"
    assert "RAG" not in compare_page.terminal(found)


def test_a_comparison_comes_back_from_its_json(tmp_path):
    found = compared(changed(some_turns(2), "kangaroo", decode_s=1.05))
    write_json(tmp_path / "compared.json", found)
    assert read(Comparison, tmp_path / "compared.json") == found


def test_nothing_from_the_records_acts_on_a_page():
    image, tag = "![x](https://evil.example/x.png)", "<img src=x onerror=alert(1)>"
    metric = Metric(base=1, new=2, verdict=WORSE, change=Estimate(2.0, 1.9, 2.1))
    found = made_up(f"{tag}|{image}\x1b[31m", overall={"failed answers": metric}, **{f"</details>{tag}": {"x": metric}})
    found.warnings = [f"the models are {tag} and {image}"]
    found.new = Side(tag)
    page = compare_page.markdown(found)
    assert page.count("<") == 4, "no tags but ours: details, summary and their ends"
    assert "![" not in page
    for text in (page, compare_page.terminal(found), compare_page.junit(found)):
        assert "\x1b" not in text
        assert "onerror=alert" in text, "the text itself is still there to read"
    ElementTree.fromstring(compare_page.junit(found))


def test_ci_gets_a_case_a_method():
    suite = ElementTree.fromstring(compare_page.junit(compared(changed(some_turns(2), "kangaroo", decode_s=1.05))))
    assert suite.attrib["tests"] == "2"
    assert suite.attrib["failures"] == "1"
    failed = [case for case in suite if case.find("failure") is not None]
    assert [case.attrib["name"] for case in failed] == ["kangaroo"]
    assert "time per token" in failed[0].find("failure").attrib["message"]


def answer_file(path, lengths=2, seconds=1.0, texts=("a",), questions=range(6)):
    """In Spec-Bench's format: nine tokens an answer, four steps."""
    lines = [
        json.dumps(
            {
                "question_id": question,
                "category": ("qa", "rag")[question % 2],
                "model_id": "m",
                "choices": [
                    {
                        "turns": [texts[question % len(texts)]],
                        "decoding_steps": [4],
                        "new_tokens": [9],
                        "wall_time": [seconds * (1 + question / 6)],
                        "accept_lengths": [lengths] * 4,
                    }
                ],
            }
        )
        for question in questions
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_answer_files_are_compared_by_what_they_tell(tmp_path):
    base = answer_file(tmp_path / "base.jsonl")
    found = compare_answers(base, answer_file(tmp_path / "new.jsonl", lengths=1, seconds=2.0), Rules())
    (entry,) = found.methods.values()
    shown = entry.tasks["overall"].metrics
    assert (shown[ACCEPTED].base, shown[ACCEPTED].new, shown[ACCEPTED].verdict) == (2, 1, WORSE)
    assert shown[TIME].change.value == pytest.approx(2)
    assert shown[TIME].counts is False  # made on another day
    assert found.verdict == WORSE
    assert LIMITS in compare_page.markdown(found)
    same = compare_answers(base, base, Rules())
    assert same.verdict == SAME
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_answer_files_tell_failures_and_other_texts(tmp_path):
    base = answer_file(tmp_path / "base.jsonl")
    new = answer_file(tmp_path / "new.jsonl", texts=("a", "b", "ERROR"))
    found = compare_answers(base, new, Rules())
    assert found.methods["new"].tasks["overall"].metrics["failed answers"].new == 2
    assert "2 of 4 answers have another text in new" in found.warnings
    with pytest.raises(UserError, match="no question in common"):
        compare_answers(base, answer_file(tmp_path / "other.jsonl", questions=range(7, 9)), Rules())


def test_the_command_takes_runs_or_answer_files_and_writes_pages(tmp_path, capsys):
    for name, turns in (("base", some_turns(1)), ("new", changed(some_turns(2), "kangaroo", decode_s=1.05))):
        write_json(tmp_path / name / "run.json", a_run(name))
        write_turns(tmp_path / name / "turns.jsonl", turns)
    pages = [f"--{kind}={tmp_path / kind}.{kind}" for kind in ("markdown", "json", "junit")]
    assert main(["compare", str(tmp_path / "base"), str(tmp_path / "new"), str(tmp_path / "base"), *pages]) == 1
    printed = capsys.readouterr().out
    assert "Worse: kangaroo" in printed
    assert "Nothing got slower" in printed
    assert json.loads((tmp_path / "json.json").read_text())["verdict"] == WORSE
    assert json.loads((tmp_path / "json-2.json").read_text())["verdict"] == SAME
    assert "Worse: kangaroo" in (tmp_path / "markdown.markdown").read_text()
    file = str(answer_file(tmp_path / "base.jsonl"))
    assert main(["compare", file, file]) == 0
    assert main(["compare", str(tmp_path / "base"), file]) == 2
    assert "cannot be compared with an answer file" in capsys.readouterr().err


def test_cannot_tell_fails_only_where_asked(tmp_path, capsys):
    noisy = changed(some_turns(2), "kangaroo", decode_s=1.0)
    for index, turn in enumerate(noisy):
        turn.decode_s *= (0.8, 1.25)[index // 4 % 2]  # within each task
    for name, turns in (("base", some_turns(1)), ("new", noisy)):
        write_json(tmp_path / name / "run.json", a_run(name))
        write_turns(tmp_path / name / "turns.jsonl", turns)
    arguments = ["compare", str(tmp_path / "base"), str(tmp_path / "new")]
    assert main(arguments) == 0
    assert "inconclusive" in capsys.readouterr().err
    assert main([*arguments, "--strict"]) == 1
