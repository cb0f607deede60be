"""What the report says against its own figures: busy moments, outliers, missing intervals."""

from __future__ import annotations

from bench.figures.machine import Machine
from bench.figures.metrics import summarize
from bench.figures.notable import Failure
from bench.figures.summary import AtValue, Axis
from bench.report.cautions import cautions
from tests.bench.figures.test_disturbed import some_turns, with_steps
from tests.bench.report.helpers import make_run


def warned(turns, **more) -> list[str]:
    run = make_run({"kangaroo": "method"}, **more)
    return cautions(run, summarize(run, turns))


def of_kind(texts: list[str], kind: str) -> list[str]:
    return [text for text in texts if text.startswith(f"**{kind}**")]


def test_busy_moments_are_listed_with_their_turns_worst_first():
    turns = some_turns(80)
    turns[4].others_share, turns[7].others_share = 0.4, 0.63
    (text,) = of_kind(warned(turns), "Busy moments")
    assert "in 2 of 160 turns (1.2%: Question answering 1, RAG 1) other programs used more than 20%" in text
    assert "by step medians" not in text  # no step was timed
    assert text.index("kangaroo, question 3 (RAG), turn 1, round 1: 63%") < text.index("vanilla, question 2 (Quest")
    assert "not left out; these:" in text
    for turn in turns:
        turn.others_share = 0.3
    assert "the most: " in of_kind(warned(turns), "Busy moments")[0]


def test_busy_moments_come_with_the_estimate_that_they_do_not_move():
    turns = with_steps(some_turns(80))
    turns[4].others_share, turns[4].decode_s, turns[4].per_step_s = 0.4, 9.0 + 120, [121.0, *[1.0] * 8]
    (text,) = of_kind(warned(turns), "Busy moments")
    assert "Decode speedup by step medians, which bursts do not move: kangaroo 1.50x, ratio of sums 1.75x." in text


def test_an_outlier_is_told_with_its_times_and_the_speedup_without_it():
    turns = some_turns(80)
    turns[4].decode_s, turns[4].others_share = 9.0 * 60, 0.5
    (text,) = of_kind(warned(turns), "Outlier")
    assert (
        "vanilla, question 2 (Question answering), turn 1, round 1, decoded in 540 s; its tokens usually take 9 s"
        in text
    )
    assert "while other programs used 50% of the processors" in text
    assert "Decode speedup in Question answering: kangaroo 3.71x, without it 1.50x" in text


def test_many_outliers_are_counted():
    turns = some_turns(20)
    for turn in turns[:16:2]:
        turn.decode_s = 500.0
    texts = warned(turns)
    assert len(of_kind(texts, "Outlier")) == 6
    assert any(text.startswith("**2 more outliers**") for text in texts)


def test_without_an_interval_the_median_is_beside_the_speedup():
    turns = some_turns(4)
    turns[0].decode_s = 9.0 * 29
    (text,) = of_kind(warned(turns), "No interval")
    assert "kangaroo 12.00x, median of questions 1.50x" in text
    assert of_kind(warned(some_turns(8)), "No interval") == []


def test_threads_are_advised_on_a_busy_machine_where_there_are_several():
    busy = {"provenance": {"sessions": [{"others_share": 0.4}]}}
    for threads, advised in ((2, True), (1, False)):
        (text,) = of_kind(warned(some_turns(), machine=Machine("cpu", "a CPU", threads), **busy), "Busy machine")
        assert ("`--threads 1` may be faster" in text) == advised


def test_what_methods_say_of_their_own_figures_is_passed_on():
    run = make_run({"kangaroo": "method", "pld+kangaroo": "method"})
    run.methods["kangaroo"].notes["caution"] = "it knows the answers"
    run.methods["pld+kangaroo"].notes.update(
        {"parts": ["pld", "kangaroo"], "kangaroo": {"caution": "a member knows them"}}
    )
    texts = cautions(run, summarize(run, some_turns(80)))
    assert "**kangaroo**: it knows the answers." in texts
    assert "**pld+kangaroo**: a member knows them." in texts
    assert not of_kind(texts, "vanilla")


def test_what_failed_is_counted_as_what_was_left_out():
    run = make_run({"kangaroo": "method"})
    summary = summarize(run, some_turns(20))
    summary.failed = [Failure(3, "qa", "kangaroo", 0, 0, "it broke")]
    assert any(text.startswith("**Failed turns: 1**; see [Failures]") for text in cautions(run, summary))  # it is dead
    summary.excluded_questions = [3]
    assert any(text.startswith("**Failed questions: 1**, left out of") for text in cautions(run, summary))
    summary.axis = Axis("prompt length", [AtValue(256.0, {})])
    (told,) = [text for text in cautions(run, summary) if "Failed" in text]
    assert told.startswith("**Failed turns: 1**; a question that failed is left out")
    assert "at the same prompt length" in told
