"""Bursts of other programs and stalled turns are found by the turns that they hit, and nothing is left out for them."""

from __future__ import annotations

import copy

import pytest

from bench.figures import disturbed
from bench.figures.metrics import summarize
from bench.figures.records import Turn
from tests.bench.report.helpers import make_run


def some_turns(questions: int = 8, methods: tuple[str, ...] = ("vanilla", "kangaroo")) -> list[Turn]:
    """Ten tokens a turn: 9 s of decoding for vanilla, 6 s for methods; two tasks."""
    return [
        Turn(
            method, question, ("qa", "rag")[question % 2], "c", 0, 0, token_ids=list(range(10)), prefill_s=1.0,
            decode_s=9.0 if method == "vanilla" else 6.0, finish="length", others_share=0.02,
        )
        for question in range(questions)
        for method in methods
    ]  # fmt: skip


def with_steps(turns: list[Turn]) -> list[Turn]:
    """Nine steps a turn that drafted nothing and took equally long."""
    for turn in turns:
        turn.per_step_emitted, turn.per_step_drafted, turn.per_step_accepted = [1] * 9, [0] * 9, [0] * 9
        turn.per_step_s = [turn.decode_s / 9] * 9
    return turns


def summary_of(turns, methods=("kangaroo",)):
    return summarize(make_run(dict.fromkeys(methods, "method")), turns)


def test_a_quiet_run_has_neither_busy_turns_nor_outliers():
    found = summary_of(some_turns())
    assert found.busy_turns is None
    assert found.outliers == []


def test_a_burst_is_found_by_its_turns_though_the_run_was_quiet_on_average():
    turns = some_turns(50)
    for turn in turns[20:23]:
        turn.others_share = 0.5
    turns[21].others_share = 0.9
    mean = sum(turn.others_share for turn in turns) / len(turns)
    assert mean < disturbed.BUSY_SHARE
    busy = summary_of(turns).busy_turns
    assert (busy.turns, busy.of) == (3, 100)
    assert busy.by_task == {"qa": 2, "rag": 1}
    assert (busy.worst[0].question_id, busy.worst[0].method, busy.worst[0].others_share) == (10, "kangaroo", 0.9)
    assert disturbed.doubts(make_run({"kangaroo": "method"}), turns) == [
        "other programs kept the processors busy in 3 of 100 turns"
    ]


def test_records_without_shares_raise_no_doubt():
    turns = some_turns()
    for turn in turns:
        turn.others_share = None
    assert disturbed.busy_turns(turns) is None
    assert disturbed.doubts(make_run({"kangaroo": "method"}), turns) == []


def test_a_session_on_a_busy_machine_is_a_doubt():
    run = make_run({"kangaroo": "method"}, provenance={"sessions": [{"others_share": 0.02}, {"others_share": 0.31}]})
    assert disturbed.doubts(run, some_turns()) == ["other programs used 31% of the processors"]


def test_a_stalled_vanilla_turn_is_named_with_the_speedups_of_all_methods_without_it():
    turns = some_turns(methods=("vanilla", "kangaroo", "medusa"))
    stalled = next(turn for turn in turns if turn.method == "vanilla" and turn.question_id == 3)
    stalled.decode_s = 9.0 * 28
    found = summary_of(turns, ("kangaroo", "medusa"))
    (outlier,) = found.outliers
    assert (outlier.question_id, outlier.task, outlier.method, outlier.turn, outlier.round) == (
        3,
        "rag",
        "vanilla",
        0,
        0,
    )
    assert (outlier.decode_s, outlier.usual_s) == pytest.approx((252.0, 9.0))
    assert outlier.others_share == 0.02
    assert outlier.speedups.keys() == {"kangaroo", "medusa"}
    for name, figures in outlier.speedups.items():
        cell = found.methods[name].tasks["rag"]
        assert figures.speedup == pytest.approx(cell.speedup_decode.value)  # not left out
        assert figures.speedup == pytest.approx((9.0 * 3 + 252) / (6.0 * 4))
        assert figures.without == pytest.approx(1.5)
        assert cell.speedup_decode_median.value == pytest.approx(1.5)


def test_a_stalled_turn_of_a_method_is_named_for_it_alone():
    turns = some_turns(methods=("vanilla", "kangaroo", "medusa"))
    stalled = next(turn for turn in turns if turn.method == "kangaroo" and turn.task == "qa")
    stalled.decode_s = 60.0
    (outlier,) = summary_of(turns, ("kangaroo", "medusa")).outliers
    assert (outlier.method, outlier.usual_s) == ("kangaroo", pytest.approx(6.0))
    assert outlier.speedups.keys() == {"kangaroo"}


def test_a_slow_turn_that_decides_nothing_is_no_outlier():
    turns = some_turns(400)
    turns[0].decode_s *= 5
    assert summary_of(turns).outliers == []


def test_a_long_answer_is_no_outlier():
    turns = some_turns()
    for turn in turns[:2]:
        turn.token_ids = list(range(100))
        turn.decode_s *= 11
    assert summary_of(turns).outliers == []


@pytest.mark.parametrize("questions", [1, 2])
def test_of_two_turns_the_slow_one_is_the_outlier(questions):
    """The mean of two would hide it; of one alone nobody knows its usual time."""
    turns = some_turns(2 * questions)
    turns = [turn for turn in turns if turn.task == "qa"]
    turns[0].decode_s = 1000.0
    outliers = summary_of(turns).outliers
    assert [outlier.decode_s for outlier in outliers] == [1000.0][: questions - 1]


def test_answers_of_one_token_have_no_usual_time_and_no_speed():
    turns = some_turns()
    for turn in turns:
        turn.token_ids, turn.decode_s = [1], 0.0
    found = summary_of(turns)
    assert found.outliers == []
    assert found.methods["kangaroo"].overall.tok_per_s is None
    assert found.methods["kangaroo"].overall.speedup_decode_median.value is None


def test_turns_that_failed_are_not_looked_at():
    turns = some_turns()
    broken = copy.deepcopy(turns[0])
    broken.question_id, broken.error, broken.others_share = 99, "boom", 0.9
    assert summary_of([*turns, broken]).busy_turns is None


def timed(shapes: list[tuple[int, int, int]], step_s: list[float], rest_s: float = 0.0) -> Turn:
    """A turn whose steps have these drafts, depths and calls, and these times."""
    drafted, depth, calls = (list(column) for column in zip(*shapes, strict=True))
    return Turn(
        "kangaroo", 1, "qa", "c", 0, 0, token_ids=list(range(len(shapes) + 1)), decode_s=sum(step_s) + rest_s,
        per_step_drafted=drafted, per_step_depth=depth, per_step_calls=calls, per_step_emitted=[1] * len(shapes),
        per_step_s=step_s,
    )  # fmt: skip


def test_undisturbed_steps_take_the_time_that_they_took():
    """Long steps count in full: a median over all shapes would lose them."""
    turn = timed([(0, 0, 0)] * 3 + [(5, 5, 5)] * 2, [1.0, 1.0, 1.0, 4.0, 4.0], rest_s=0.5)
    assert disturbed.steady(turn).decode_s == pytest.approx(11.5)


def test_a_disturbed_step_takes_the_time_of_its_like():
    turn = timed([(0, 0, 0)] * 3 + [(5, 5, 5)] * 3, [1.0, 9.0, 1.2, 4.0, 4.0, 60.0], rest_s=0.5)
    assert disturbed.steady(turn).decode_s == pytest.approx(3 * 1.2 + 3 * 4.0 + 0.5)
    tree = timed([(5, 5, 5), (5, 2, 5), (5, 5, 6)], [1.0, 2.0, 4.0])  # alike in drafts only
    assert disturbed.steady(tree).decode_s == pytest.approx(7.0)


def test_a_turn_without_step_times_has_no_steady_time_unless_it_took_none():
    (turn,) = some_turns(1, ("kangaroo",))
    assert disturbed.steady(turn) is None
    turn.token_ids, turn.decode_s = [1], 0.001  # EOS came with the prefill
    assert disturbed.steady(turn) is turn


def test_bursts_do_not_move_the_speedup_by_step_medians():
    turns = with_steps(some_turns(12))
    found = summary_of(turns).methods["kangaroo"]
    assert found.overall.speedup_decode_steps == found.overall.speedup_decode
    for turn in turns[::2]:  # every turn of vanilla: a median of questions would follow
        turn.per_step_s[3] += 9.0
        turn.decode_s += 9.0
    found = summary_of(turns).methods["kangaroo"]
    assert found.overall.speedup_decode.value == pytest.approx(3.0)
    for cell in found.tasks.values():
        assert cell.speedup_decode_steps.value == pytest.approx(1.5)
        assert cell.speedup_decode_steps.bounds is not None
    turns[0].per_step_s = []
    assert summary_of(turns).methods["kangaroo"].overall.speedup_decode_steps.value is None
