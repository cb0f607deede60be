"""`report.md`: what it says, and what it says against its own figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.figures.metrics import summarize
from bench.figures.records import Audit, MethodInfo
from bench.figures.summary import Estimate, Predicted, StepTime, Summary
from bench.report import figures, terminal_table
from bench.report.markdown import text_of
from bench.report.model import Image
from bench.report.sections import sections
from tests.bench.report.full_summary import SIX, change, rich_summary
from tests.bench.report.helpers import make_run, make_turns, page_of, report_page, rows, sampled, section

KNOBS = {"heads": 3, "draft_vocab": 0}
CHAIN = "0/0-0/0-0-0"
PREDICTED = {
    "tree": {"drafts": 9, "compression_rate": 2.4, "step_cost": 1.6, "speedup": 1.5},
    "chain": {"drafts": 3, "compression_rate": 2.0, "step_cost": 1.6, "speedup": 1.25},
}


def test_the_page_lists_what_speaks_against_its_figures():
    methods = {"kangaroo": "method"}
    run, turns = make_run(methods, complete=False), make_turns(methods)
    turns[0].error = "RuntimeError: cache | overflow\nat `row` 3"
    turns[3].audit = Audit("different", 5, 11, 13, 0.25, 1e-4)
    turns[5].audit = Audit("numerical", 6, None, 17, 0.0, 1e-4)
    for turn in turns[6:8]:
        turn.token_ids = [1] * 20
    page = page_of(run, turns)
    assert "- **The run was interrupted**" in page
    assert "- **Failed questions: 1**" in page
    assert r"| vanilla, question 0 (Multi-turn conversation), turn 1, round 1 | `RuntimeError: cache \| " in page
    assert "overflow at 'row' 3` |" in page
    assert "- **Not lossless**: 1 answers of kangaroo differ" in page
    assert "question 1 (Translation), turn 1, round 1 | different | 5 | 11 | 13 | 0.25 | 0.0001 |" in page
    assert "question 2 (Summarization), turn 1, round 1 | numerical | 6 | - | 17 | 0 | 0.0001 |" in page
    assert "- **Few questions** (Translation 1, Summarization 1," in page
    # Twenty equal tokens: 13 8-grams, one different.
    assert "vanilla 0.92 in Question answering; kangaroo 0.92 in Question answering." in page
    assert "output of 5 turns: 3 identical, 1 numerical, 1 different." in page


def test_a_clean_run_has_no_warnings():
    turns = []
    for again in range(20):
        for turn in make_turns({"kangaroo": "method"}):
            turn.question_id += 100 * again
            turns.append(turn)
    page = page_of(make_run({"kangaroo": "method"}), turns)
    assert "## Warnings" not in page
    assert "## Failures" not in page
    assert "## Divergences" not in page


def test_the_page_tells_knobs_and_provenance():
    run = make_run({"kangaroo": "method"})
    run.memory = {"peak_bytes": 3 << 30, "methods": {"kangaroo": 5 << 29}}
    page = page_of(run, make_turns({"kangaroo": "method"}))
    assert "| kangaroo | method | yes | question | 1,000,000 | 2.50 GiB | `gamma=6` |" in page
    assert "| peak memory | 3.00 GiB |" in page
    assert r"| command | `roobench --methods a\|b` |" in page
    assert "| commit | 0123abc with uncommitted changes |" in page
    assert "| questions | mini (12), sha256 `cdcdcdcdcdcd` |" in page
    assert "| packages | torch 9.9 |" in page
    assert "| wall time | 61 s |" in page


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "temperature 1"),
        ({"temperature": 0.7, "top_p": 0.8}, "temperature 0.7, top-p 0.8"),
        ({"temperature": 0.25, "top_p": 0.5, "top_k": 50}, "temperature 0.25, top-p 0.5, top-k 50"),
    ],
)
def test_every_view_of_a_sampled_run_says_how_it_was_sampled(config, text):
    run, turns = sampled({"kangaroo": "method"}, **config)
    summary = summarize(run, turns)
    assert terminal_table(summary).splitlines()[0] == f"tiny_model (float32) on a CPU, mini questions (12), {text}"
    assert page_of(run, turns).splitlines()[0] == f"# tiny_model on a CPU, float32, {text}"
    for figure in figures.draw(summary).values():
        first = figure.axes[0].texts[0].get_text().splitlines()[0]
        assert first == f"tiny_model · a CPU · float32 · mini questions (12) · {text}"


def test_a_greedy_run_says_nothing_of_sampling():
    methods = {"kangaroo": "method"}
    run = make_run(methods, config={"temperature": 0.0, "top_p": 1.0, "top_k": 0})
    summary = summarize(run, make_turns(methods))
    plots = [text.get_text() for figure in figures.draw(summary).values() for text in figure.axes[0].texts]
    for text in (terminal_table(summary), page_of(run, make_turns(methods)), "".join(plots)):
        assert "temperature" not in text
        assert "sampled" not in text.lower()


def test_sampled_answers_are_not_said_to_be_compared():
    methods = {"kangaroo": "method", "hf-generate": "peer", "typical": "lossy"}
    run, turns = sampled(methods, ("qa", "rag"))
    page = page_of(run, turns)
    assert "2.00x-3.00x by task), output sampled, not compared token by token.\n" in page
    assert "2.00x-3.00x by task), output may differ from vanilla's: not lossless.\n" in page
    for heading in ("## kangaroo", "### vanilla against hf-generate"):
        table = rows(section(page, heading))
        assert table[0][-1] == "lossless"
        assert [row[-1] for row in table[1:4]] == ["sampled", "sampled", "**sampled**"]
    assert [row[-1] for row in rows(section(page, "## typical (not lossless)"))[1:3]] == ["NOT lossless"] * 2
    meaning = " ".join(section(page, "## What the figures mean").split())
    assert "Lossless then means the same distribution as vanilla's," in meaning
    assert "which the project's distribution tests show, not this run." in meaning
    assert "not checked" not in page


def test_a_lossy_method_is_marked_wherever_the_page_shows_it():
    methods = {"kangaroo": "method", "typical": "lossy"}
    run, turns = make_run(methods), make_turns(methods, ("qa", "rag"))
    page = page_of(run, turns)
    assert "output may differ from vanilla's: not lossless." in page
    head = page.split("\n## ")[0]
    assert ["decode speedup", "kangaroo", "typical (not lossless)"] in rows(head)
    assert [row[0] for row in rows(head)][-2:] == ["kangaroo", "typical (not lossless)"]
    assert rows(section(page, "## Overview"))[0] == ["end-to-end speedup", "kangaroo", "typical (not lossless)"]
    verdicts = [row[-1] for row in rows(section(page, "## typical (not lossless)"))[1:4]]
    assert verdicts == ["NOT lossless", "NOT lossless", "**NOT lossless**"]
    assert "\n## kangaroo\n" in page, "a lossless method needs no mark"
    knobs = {row[0]: row[2] for row in rows(section(page, "## Knobs"))}
    assert (knobs["kangaroo"], knobs["typical"]) == ("yes", "NOT lossless")


PEER = "hf-generate (1 of 2 questions)"


def test_the_pages_overview_has_a_column_a_method():
    methods = {"kangaroo": "method", "medusa": "method", "hf-generate": "peer"}
    run, turns = make_run(methods), make_turns(methods, ("qa", "rag"))
    run.methods["medusa"] = MethodInfo("method", True, 0, {})
    for turn in turns:
        if turn.method == "medusa":
            # Twice as slow as the others, four steps instead of two; 3 of 7 tokens drafted, half the time.
            turn.decode_s *= 2
            turn.per_step_drafted, turn.per_step_accepted = [1] * 4, [1, 1, 1, 0]
            turn.per_step_emitted, turn.draft_s = [2, 2, 1, 1], turn.decode_s / 2
    turns = [turn for turn in turns if turn.method != "hf-generate" or turn.task == "qa"]
    page = page_of(run, turns)
    overall = ["extra parameters", "speedup decode", "speedup end-to-end", "CR", "draft share", "time drafting"]
    assert rows(page.split("\n## ")[0]) == [
        ["decode speedup", "kangaroo", "medusa", PEER],
        ["Question answering", "3.00x", "1.50x", "3.00x"],
        ["RAG", "2.00x", "1.00x", "-"],
        ["**Overall**", "**2.50x**", "**1.25x**", "**3.00x**"],
        ["method, overall", *overall, "output identical"],
        # 7 tokens in 3 or 4 s against 7 in 7 s: 2.33 and 1.75; medusa's 5 and 7 s: 1.4 and 1.
        ["kangaroo", "1,000,000", "2.50x", "2.04x", "3.00", "0.71", "0.00", "2/2"],
        ["medusa", "-", "1.25x", "1.20x", "1.50", "0.43", "0.50", "2/2"],
        [PEER, "1,000,000", "3.00x", "2.33x", "-", "-", "-", "1/1"],
    ]
    assert rows(section(page, "## Overview")) == [
        ["end-to-end speedup", "kangaroo", "medusa", PEER],
        ["Question answering", "2.33x", "1.40x", "2.33x"],
        ["RAG", "1.75x", "1.00x", "-"],
        ["**Overall**", "**2.04x**", "**1.20x**", "**2.33x**"],
        ["CR", "kangaroo", "medusa"],
        ["Question answering", "3.00", "1.50"],
        ["RAG", "3.00", "1.50"],
        ["**Overall**", "**3.00**", "**1.50**"],
    ]


@pytest.mark.parametrize(
    ("methods", "figures_by_task"),
    [
        ({"kangaroo": "method"}, None),
        ({"kangaroo": "method", "hf-generate": "peer"}, ["end-to-end speedup", "CR"]),
        ({"hf-generate": "peer", "other-peer": "peer"}, ["end-to-end speedup"]),
    ],
)
def test_the_page_has_an_overview_of_two_or_more(methods, figures_by_task):
    page = page_of(make_run(methods), make_turns(methods, ("qa",)))
    assert ("## Overview" in page) == (figures_by_task is not None)
    if figures_by_task is not None:
        table = rows(section(page, "## Overview"))
        assert [row[0] for row in table if row[0] in ("end-to-end speedup", "CR")] == figures_by_task


def test_a_peer_that_counts_its_passes_has_a_rate_in_the_tables():
    methods = {"kangaroo": "method", "hf-generate": "peer", "hf-prompt-lookup": "peer"}
    turns = make_turns(methods, ("qa", "rag"))
    for turn in turns:
        if turn.method == "hf-prompt-lookup":
            turn.first_tokens, turn.decode_passes = 3, 2 if turn.task == "qa" else 4
    table = rows(section(page_of(make_run(methods), turns), "## Overview"))
    at = next(number for number, row in enumerate(table) if row[0] == "CR")
    assert table[at] == ["CR", "kangaroo", "hf-prompt-lookup"]
    assert [row[2] for row in table[at + 1 :]][-3:] == ["2.00", "1.00", "**1.50**"]


def test_a_method_without_a_finished_question_has_gaps_in_the_overviews():
    methods = {"kangaroo": "method", "medusa": "method"}
    turns = [turn for turn in make_turns(methods, ("qa",)) if turn.method != "medusa"]
    run = make_run(methods)
    assert rows(page_of(run, turns))[1] == ["Question answering", "3.00x", "-"]
    last = terminal_table(summarize(run, turns)).split("\noverview\n")[1].splitlines()[4].split()
    assert last == ["medusa", "-", "-", "-", "1,000,000", "-", "-"]


def page_with_predictions(other: str, config: dict, chosen: str = "0/1") -> str:
    """A tree's predictions; the other method is half as fast (1.25x over vanilla) and has a CR of 6 / 4."""
    tree = MethodInfo("method", True, 7, {**KNOBS, "tree": chosen, "costs": "1", "drafts": "top"})
    tree.notes["predicted"] = PREDICTED
    run = make_run({})
    run.methods |= {"medusa": tree, other: MethodInfo("method", True, 7, config)}
    turns = make_turns({"medusa": "method", other: "method"}, ("qa", "rag"))
    for turn in turns:
        if turn.method == other:
            turn.decode_s *= 2
            turn.per_step_drafted, turn.per_step_accepted, turn.per_step_emitted = [1] * 4, [1, 1, 0, 0], [2, 2, 1, 1]
    return page_of(run, turns)


def test_predictions_stand_beside_what_was_measured_and_the_gain_over_the_chain():
    config = {**KNOBS, "tree": CHAIN, "costs": "", "drafts": "sampled"}
    text = section(page_with_predictions("medusa:tree=chain", config), "### Predicted and measured")
    assert rows(text) == [
        ["overall", "predicted", "measured"],
        ["CR", "2.40", "3.00"],
        ["decode speedup", "1.50x", "2.50x"],
        ["CR, tree over chain", "1.20x", "2.00x"],
        ["decode speedup, tree over chain", "1.20x", "2.00x"],
    ]
    assert "The chain is medusa:tree=chain." in text
    assert "For greedy decoding, predicted from ranks on held-out answers and forward-pass costs" in text


@pytest.mark.parametrize(
    ("other", "config"),
    [
        ("kangaroo", {**KNOBS, "tree": CHAIN}),
        ("medusa:heads=2", {**KNOBS, "heads": 2, "tree": CHAIN}),
        ("medusa:draft_vocab=9", {**KNOBS, "draft_vocab": 9, "tree": CHAIN}),
        ("medusa:tree=0/0-0", {**KNOBS, "tree": "0/0-0"}),
        ("medusa:tree=0/1/2", {**KNOBS, "tree": "0/1/2"}),
        ("medusa:x", KNOBS),
    ],
)
def test_a_tree_is_compared_with_nothing_but_its_own_chain(other, config):
    text = section(page_with_predictions(other, config), "### Predicted and measured")
    assert [row[0] for row in rows(text)] == ["overall", "CR", "decode speedup"]
    assert "The chain is" not in text


def test_a_chain_that_was_chosen_is_not_compared_with_itself():
    text = section(page_with_predictions("kangaroo", {}, chosen=CHAIN), "### Predicted and measured")
    assert "tree over chain" not in text


@pytest.mark.parametrize("notes", [{}, {"predicted": {}}, {"predicted": 1.5}, {"other": {"tree": {}, "chain": {}}}])
def test_other_notes_are_no_predictions(notes):
    methods = {"kangaroo": "method"}
    run = make_run(methods)
    run.methods["kangaroo"].notes.update(notes)
    assert "### Predicted" not in page_of(run, make_turns(methods))


def test_predictions_of_a_tree_are_read_from_the_summarys_notes():
    methods = {"kangaroo": "method"}
    run = make_run(methods)
    run.methods["kangaroo"].notes["predicted"] = PREDICTED
    assert "| CR | 2.40 | 3.00 |" in page_of(run, make_turns(methods, ("qa",)))
    assert summarize(run, make_turns(methods)).methods["kangaroo"].notes == {"predicted": PREDICTED}


# --- the figures of a complete summary -------------------------------------------------------------------------------


def rich_page(summary: Summary, **more) -> str:
    return report_page(make_run(dict.fromkeys(SIX[:2], "method"), **more), summary)


def test_the_headline_table_comes_first_with_its_intervals_and_says_what_they_are():
    summary = rich_summary(SIX[:2], ("qa", "rag"))
    head = rich_page(summary).split("\n## ")[0]
    table = rows(head)
    assert table[0] == ["decode speedup", "kangaroo", "kangaroo:tree", "hf-generate"]
    overall = summary.methods["kangaroo"].overall.speedup_decode
    shown = f"{overall.value:.2f}x [{overall.low:.2f}, {overall.high:.2f}]"
    assert table[3][:2] == ["**Overall**", f"**{shown}**"]
    assert f"**kangaroo** decodes {shown} as fast as vanilla" in head
    assert (
        "Speedups: ratio of sums (overall: the tasks' unweighted mean); in brackets the 95% bootstrap interval "
        "(5,000 resamples, clustered by question, stratified by task)."
    ) in head


def test_three_ways_to_average_stand_beside_each_other():
    summary = rich_summary(("kangaroo",), ("qa",), peer=False)
    summary.methods["kangaroo"].tasks["qa"].speedup_decode_median = Estimate(1.37)
    text = section(rich_page(summary), "### kangaroo: three ways")
    cell = summary.methods["kangaroo"].tasks["qa"]
    (*header, robust), (*first, median), *_ = rows(text)
    assert (robust, median) == ("decode: median of questions", "1.37x")
    assert header[1:] == [
        f"{part}: {way}"
        for part in ("decode", "end-to-end")
        for way in ("ratio of sums", "Spec-Bench's mean of rates", "geometric mean")
    ]
    keys = [f"speedup_{part}{ending}" for part in ("decode", "total") for ending in ("", "_mean_rates", "_geometric")]
    assert [value.split("x")[0] for value in first[1:]] == [f"{getattr(cell, key).value:.2f}" for key in keys]
    assert all("[" in value for value in first[1:])
    cell.speedup_decode_steps = Estimate(1.41, 1.40, 1.43)
    header, first, *_ = rows(section(rich_page(summary), "### kangaroo: three ways"))
    assert header[1:3] == ["decode: ratio of sums", "decode: ratio of sums by step medians"]
    assert first[2] == "1.41x [1.40, 1.43]"
    told = section(rich_page(summary), "## Three ways to average")
    assert "overall pools all questions" in " ".join(told.split())
    assert "tokenises the baseline's text again" in " ".join(told.split())


def test_where_the_time_goes_sets_prediction_beside_measurement():
    summary = rich_summary(("kangaroo",), peer=False)
    change(
        summary.methods["kangaroo"].overall,
        step_time=StepTime(0.2, 0.9, 0.05, 1.15),
        predicted=Predicted(1.2, 1.083),
        prediction_error=-0.042,
    )
    text = section(rich_page(summary), "## Where the time goes")
    table = rows(text)
    assert table[0][1:6] == ["draft", "verify", "rest", "total", "total, predicted"]
    assert table[1][:6] == ["vanilla", "0.00", "0.97", "0.03", "1.00", "-"]
    assert table[2] == ["kangaroo", "0.20", "0.90", "0.05", "1.15", "1.20", "1.30", "1.16x", "1.08x", "-4.2%"]
    assert "computed from costs measured before the run" in " ".join(text.split())


def test_parts_that_a_summary_lacks_are_left_out():
    summary = rich_summary(("echo",), ("qa",))
    for entry in summary.methods.values():
        for cell in entry.tasks.values():
            change(cell, step_time=None, numerical_rate=None)
    summary.statistics = None
    page = rich_page(summary)
    for heading in ("Where the time goes", "Published figures", "Numerical rate"):
        assert f"## {heading}" not in page
    assert "no intervals: too few questions (one task alone needs four), or times too uneven" in page


def test_every_section_has_a_heading_of_its_own_and_a_text():
    plots = [Image(plot.title, Path(f"{name}.png"), f"{name}.png") for name, plot in figures.PLOTS.items()]
    found = sections(make_run(dict.fromkeys(SIX[:2], "method")), rich_summary(SIX[:2]), plots)
    texts = {part.title: text_of(part) for part in found}
    assert len(texts) == len(found)
    assert all(text.strip() for text in texts.values())
    assert text_of(found[0]).endswith("](speedup_by_task.png)")
    assert texts["Plots"].count("![") == len(figures.PLOTS) - 1
    assert "tokenising the stored text again" in " ".join(texts["Differences from Spec-Bench's script"].split())
