"""Figures of batches, by hand."""

from __future__ import annotations

import pytest

from bench.figures.records import Turn
from bench.figures.waves import Block, _cell, crossover, predicted_speedup


def turn(question, emitted, drafted=None, method="m"):
    drafted = drafted or [count - 1 for count in emitted]
    return Turn(
        method, question, "qa", "qa", 0, 0,
        token_ids=list(range(1 + sum(emitted))), per_step_emitted=emitted, per_step_drafted=drafted,
        per_step_accepted=[count - 1 for count in emitted], per_step_depth=drafted,
        per_step_calls=[int(count > 0) for count in drafted], prefill_s=0.5,
    )  # fmt: skip


def block(turns, first_waves, live, wall_s, number=0, method="m", batch=2):
    zeros = [0.0] * len(live)
    return Block(method, batch, 0, number, turns, first_waves, live, wall_s, zeros, zeros)


# Two slots: questions 1 and 2 begin; 3 takes the place of 2 after its two steps; 1 ends, and 3 drains alone.
TURNS = [turn(1, [2, 1, 3]), turn(2, [1, 1]), turn(3, [4, 2])]
MADE = block(TURNS, [0, 0, 2], [2, 2, 2, 1], [0.1, 0.2, 0.3, 5.0])
VANILLA = block([turn(1, [1] * 6), turn(2, [1] * 6)], [0, 0], [2] * 6, [0.1] * 6, method="vanilla")


def test_throughput_is_of_full_waves_alone():
    assert MADE.full() == (2 + 1 + 1 + 1 + 3 + 4, pytest.approx(0.6))
    cell = _cell([MADE], [VANILLA], True, None)
    assert cell.tok_per_s == pytest.approx(12 / 0.6)
    assert cell.tok_per_s_each == pytest.approx(6 / 0.6)
    assert cell.tok_per_s_whole == pytest.approx(14 / 5.6)
    assert cell.full_share == pytest.approx(0.6 / 5.6)
    assert cell.speedup.value == pytest.approx((12 / 0.6) / (12 / 0.6))
    assert cell.speedup.bounds is None  # one block
    assert cell.compression_rate == pytest.approx(14 / 7)
    assert cell.ttft_s == 0.5
    assert cell.predicted is None


def test_time_per_token_spreads_a_steps_time_over_its_tokens():
    # Full waves, in ms: question 1: 50 twice, 200, 100 three times; 2: 100, 200; 3: 75 four times.
    cell = _cell([MADE], [], True, None)
    assert cell.ms_per_token == pytest.approx((50 * 2 + 200 + 100 * 3 + 100 + 200 + 75 * 4) / 12)
    assert cell.ms_per_token_p50 == pytest.approx(87.5)
    assert cell.ms_per_token_p99 == pytest.approx(200)


def test_intervals_resample_blocks():
    ours = [block(TURNS, [0, 0, 2], [2, 2, 2, 1], [0.1 + 0.01 * n, 0.2, 0.3, 5.0], n) for n in range(5)]
    others = [block(VANILLA.turns, [0, 0], [2] * 6, [0.1] * 6, n, "vanilla") for n in range(5)]
    found = _cell(ours, others, True, None).speedup
    assert found.low < found.value < found.high
    alone = _cell(ours[:3], others, True, None).speedup
    assert (alone.low, alone.high) == (None, None)


def test_a_wave_is_predicted_from_the_rows_of_all_its_sequences():
    costs = {"shallow": 0.05, "draft": 0.2, "verify": {"1": 0.8, "3": 1.2, "5": 2.0}, "rest": 0.1}
    # Rows 2 and 1, 1 and 1, 3 and 4; depths are drafts; a call where there is one.
    waves = [
        0.2 + 0.05 * 2 + (0.8 + 0.1) + 0.1,  # 1.5 rows of each
        0.0 + 0.05 * 1 + 0.8 + 0.1,
        0.2 + 0.05 * 4 + (1.2 + 0.2) + 0.1,  # 3.5
    ]
    assert predicted_speedup([MADE], costs) == pytest.approx(12 / (2 * sum(waves)))
    assert predicted_speedup([MADE], costs | {"verify": {"1": 0.8, "3": 1.2}}) is None  # a wave was wider


def test_a_block_that_failed_counts_for_nothing_but_is_told():
    failed = Block("m", 2, 0, 1, error="RuntimeError: two are a crowd")
    cell = _cell([MADE, failed], [VANILLA], True, None)
    assert (cell.failed, cell.error) == (1, "RuntimeError: two are a crowd")
    assert cell.tok_per_s == pytest.approx(20)
    assert _cell([failed], [VANILLA], True, None).tok_per_s is None


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(1, 1.5), (2, 1.2), (4, 0.8), (8, 0.5)], 2 * 2**0.5),
        ([(1, 1.5), (2, 1.0), (4, 0.5)], 2),
        ([(1, 0.9), (2, 1.1)], 1),
        ([(1, 1.5), (2, 1.2)], None),
        ([(1, 1.5), (2, None), (4, 0.5)], 2),
        ([(1, None)], None),
        ([], None),
    ],
)
def test_a_curve_crosses_where_it_first_falls_below_one(curve, expected):
    assert crossover(curve) == (None if expected is None else pytest.approx(expected))
