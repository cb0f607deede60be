"""Checks of contributed runs: answers, questions, waves and speedups of batches."""

from __future__ import annotations

import pytest

from bench.errors import UserError
from bench.figures.records import Audit
from bench.figures.waves import read_blocks
from tests.bench.figures.test_plausible import OTHER, said
from tests.site_runs import batched, write_run


def test_what_batches_say():
    run, turns, blocks = batched()
    blocks[-1].draft_s[0] = blocks[-1].wall_s[0]
    blocks[0].turns[0].per_step_drafted[0] = 1
    assert said(run, turns, blocks) == [
        "vanilla, batch 1, block 1, vanilla, question 0, turn 1, round 1: step 1 of plain decoding drafts 1 and adds 1 "
        "tokens",
        "kangaroo, batch 4, block 2: a wave takes less time than its drafting and verification",
    ]


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"audit": None}, "the method is lossless, but nothing compared its answer"),
        ({"token_ids": OTHER}, "recorded as identical, but it is not vanilla's answer"),
        (
            {"token_ids": OTHER, "audit": Audit("different", 8, 99, 8, 3.0, 0.1)},
            "it differs from vanilla's answer, but the method is recorded as lossless",
        ),
        (
            {"token_ids": OTHER, "audit": Audit("numerical", 8, 99, 8)},
            "recorded as a tie, but the gap of the logits is not known to be within the tolerance",
        ),
        ({"prompt_digest": "0" * 16}, "its prompt is not the one that vanilla answered alone"),
    ],
)
@pytest.mark.parametrize("method", ["vanilla", "kangaroo"])
def test_an_answer_in_a_batch_is_held_against_vanillas_alone(figures, sentence, method):
    run, turns, blocks = batched()
    for turn in turns:
        turn.prompt_digest = "1" * 16
    block = next(block for block in blocks if block.method == method and block.batch == 2)
    for name, value in figures.items():
        setattr(block.turns[1], name, value)
    assert said(run, turns, blocks) == [
        f"{method}, batch 2, block 1, {method}, question 1, turn 1, round 1: {sentence}"
    ]


def test_a_block_is_of_the_questions_of_vanillas():
    run, turns, blocks = batched()
    of_kangaroo = [block for block in blocks if block.method == "kangaroo"]
    missing = [block for block in blocks if block is not of_kangaroo[-1]]
    assert said(run, turns, missing) == ["kangaroo has no block like that of vanilla, batch 4, block 2"]
    of_kangaroo[0].turns[0].question_id = 5
    assert said(run, turns, blocks) == [
        "kangaroo, batch 1, block 1: it does not answer the questions of vanilla's",
    ]
    of_kangaroo[0].turns[0].question_id = 500
    place = "kangaroo, batch 1, block 1, kangaroo, question 500, turn 1, round 1"
    assert f"{place}: vanilla did not answer it alone" in said(run, turns, blocks)


def test_a_speedup_in_batches_is_no_more_than_the_tokens_of_a_step():
    run, turns, blocks = batched()
    for block in blocks:
        if (block.method, block.batch) == ("kangaroo", 2):
            for seconds in (block.wall_s, block.draft_s, block.verify_s):
                seconds[:] = [0.2 * s for s in seconds]
    (sentence,) = said(run, turns, blocks)
    assert sentence.startswith(
        "kangaroo, batch 2: it decodes 6.25 times as fast as plain decoding with 2.00 tokens a st"
    )


@pytest.mark.parametrize(
    ("of", "name", "value", "sentence"),
    [
        ("block", "method", "ghost", r"method: 'ghost' is not in run\.json"),
        ("turn", "round", 1, r"turns\.0\.round: 1 in a block of round 0"),
    ],
)
def test_a_block_is_of_a_method_and_a_round_of_the_run(tmp_path, of, name, value, sentence):
    run, turns, blocks = batched()
    setattr(blocks[0] if of == "block" else blocks[0].turns[0], name, value)
    folder = write_run(tmp_path / "run", run, turns, blocks)
    with pytest.raises(UserError, match=rf"batches\.jsonl, line 1: .*{sentence}"):
        read_blocks(folder, run)
