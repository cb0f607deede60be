"""The answers of the HTML page: tokens are told apart as the steps record them."""

from __future__ import annotations

import re
from collections import Counter

from bench.figures.records import Audit, Turn
from bench.report import reader
from tests import html_runs
from tests.bench.report.test_html import answers, page
from tests.html_runs import KANGAROO, LOSSY


def test_an_answer_a_task_is_shown_and_each_that_diverges():
    titles = list(answers(page()))
    assert [title.split(":")[0] for title in titles[:6]] == [
        "Multi-turn conversation",
        "Translation",
        "Summarization",
        "Question answering",
        "Math reasoning",
        "RAG",
    ]
    assert titles[6:] == ["Translation: question 84, turn 1"]


def test_tokens_are_shaded_as_the_steps_record_them():
    turn = next(one for one in html_runs.turns() if one.method == KANGAROO)
    panel = answers(page())["Multi-turn conversation: question 81, turn 1"][KANGAROO]
    tokens = panel.all("span", "t")
    kinds = Counter(cls for token in tokens for cls in token.classes)
    assert len(tokens) == len(turn.token_ids)
    assert kinds["first"] == 1
    assert kinds["accepted"] == sum(turn.per_step_accepted)
    assert kinds["bonus"] == sum(turn.per_step_emitted) - sum(turn.per_step_accepted)
    assert kinds["beat"] == sum(map(bool, turn.per_step_rejected))
    by_shade = Counter(min(int(5 * one), 4) + 1 for one in turn.accepted_confidence)
    assert {shade: kinds[f"c{shade}"] for shade in range(1, 6)} == by_shade
    # The first step takes one token after the prefill's, the second two drafts and one token.
    assert [token.classes[1] for token in tokens[:5]] == ["first", "bonus", "accepted", "accepted", "bonus"]


def test_a_lossy_method_without_confidences_has_no_shades_of_its_own():
    panel = answers(page())["Multi-turn conversation: question 81, turn 1"][LOSSY]
    assert panel.all("span", "accepted")
    assert not [token for token in panel.all("span", "t") if re.search(r"\bc\d", " ".join(token.classes))]


def test_a_token_that_beat_drafts_names_them_with_their_confidence():
    panel = answers(page())["Multi-turn conversation: question 81, turn 1"][KANGAROO]
    beat = panel.all("span", "beat")
    assert beat[0].attributes["title"] == (
        "the target's own token; rejected drafts: “ sea” (confidence 0.31), “↵” (confidence 0.31)"
    )
    assert beat[1].attributes["title"] == "the target's own token; rejected draft: “ but” (confidence 0.31)"
    assert [token.attributes["tabindex"] for token in beat] == ["0"] + ["-1"] * (len(beat) - 1)


def test_the_text_of_an_answer_is_its_tokens_and_line_breaks_are_marked():
    text = answers(page())["Multi-turn conversation: question 81, turn 1"][KANGAROO].all("p", "tokens")[0].text
    assert text == html_runs.SENTENCES.replace("\n", "↵\n")


def test_a_divergence_is_marked_where_it_is_with_vanillas_token_and_answer():
    panels = answers(page())["Translation: question 84, turn 1"]
    tokens = panels[KANGAROO].all("span", "t")
    assert [i for i, token in enumerate(tokens) if "diverges" in token.classes] == [20]
    assert tokens[20].text == " sea"
    assert "vanilla's token here: “ the”" in tokens[20].attributes["title"]
    assert "from token 21 on (numerical)" in panels[KANGAROO].text
    assert panels["vanilla"].all("p", "tokens")[0].text == html_runs.SENTENCES.replace("\n", "↵\n")
    assert "vanilla" not in answers(page())["Multi-turn conversation: question 81, turn 1"]


def test_an_answer_has_its_cr_steps_and_both_rates():
    panel = answers(page())["Multi-turn conversation: question 81, turn 1"][KANGAROO]
    facts = {one.all("dt")[0].text: one.all("dd")[0].text for one in panel.all("dl", "stats")[0].all("div")}
    # 55 tokens, of them 54 in 24 steps and 1.3 s; vanilla 54 in 2.0 s.
    expected = {"tokens": "55", "steps": "24", "CR": "2.25", "tokens/s": "41.5", "vanilla, tokens/s": "27.0"}
    assert facts == expected | {"speedup": "1.54x", "output": "identical to vanilla's"}


def test_unknown_tokens_show_their_ids():
    panel = answers(page(token_texts={}))["Multi-turn conversation: question 81, turn 1"][KANGAROO]
    assert panel.all("p", "tokens")[0].text.startswith("⟨0⟩⟨1⟩⟨2⟩")


def test_a_long_answer_is_cut_after_its_divergence_and_says_so():
    run, turns = html_runs.run(), html_runs.turns()
    ids = list(range(2000))
    for turn in turns:
        if turn.question_id == 81:
            turn.token_ids = ids
            if turn.method == KANGAROO:
                turn.token_ids = [*ids[:900], 7, *ids[901:]]
                turn.per_step_emitted, turn.per_step_accepted, turn.per_step_rejected = [1] * 1999, [0] * 1999, []
                turn.per_step_drafted, turn.per_step_depth = [1] * 1999, []
                turn.audit = Audit("numerical", 900, 7, 900, 0.1, 0.2)
    panel = answers(page(run=run, turns=turns))["Multi-turn conversation: question 81, turn 1"][KANGAROO]
    assert len(panel.all("span", "t")) == 950
    assert "1,050 more tokens are not shown" in panel.text


def test_a_step_that_the_end_cut_has_no_token_of_the_targets_own():
    turn = Turn(
        KANGAROO, 1, "qa", "qa", 0, 0, token_ids=[5, 6, 7, 8], per_step_emitted=[1, 2], per_step_accepted=[0, 2]
    )
    assert [[token.origin for token in group] for group in reader.by_step(turn)] == [
        [reader.FIRST],
        [reader.BONUS],
        [reader.ACCEPTED, reader.ACCEPTED],
    ]


def test_confidences_stay_with_their_tokens_when_steps_are_cut():
    steps = {"per_step_emitted": [2, 1], "per_step_accepted": [2, 0], "per_step_rejected": [[9], [8]]}
    turn = Turn(KANGAROO, 1, "qa", "qa", 0, 0, token_ids=[1, 2, 3, 4], **steps)
    turn.accepted_confidence, turn.rejected_confidence = [0.9, 0.8], [0.2, 0.1]
    groups = reader.by_step(turn)
    assert [token.confidence for token in groups[1]] == [0.9, 0.8]
    assert groups[2][0].losers == ((8, 0.1),)


def test_tokens_that_no_step_accounts_for_are_not_passed_off_as_anything():
    turn = Turn(KANGAROO, 1, "qa", "qa", 0, 0, token_ids=[1, 2, 3], per_step_emitted=[1], per_step_accepted=[0])
    assert [group[0].origin for group in reader.by_step(turn)] == [reader.FIRST, reader.BONUS, reader.UNKNOWN]


def test_a_divergence_at_another_value_of_the_axis_is_not_this_answers():
    record, records = html_runs.run(), html_runs.turns()
    summary = html_runs.summary(record, records)
    (shown,) = reader.answers(summary, records, {}).parts
    assert any("question 84" in answer.title for answer in shown.answers)
    for divergence in summary.divergences:
        divergence.at = 2048.0
    (shown,) = reader.answers(summary, records, {}).parts
    assert not any("question 84" in answer.title for answer in shown.answers)
