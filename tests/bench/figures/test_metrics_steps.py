"""Clusters, the cost of steps, predictions and peers: every figure worked out by hand from the records above it."""

from __future__ import annotations

import json
import statistics

import pytest

from bench.figures import breakdown, metrics
from bench.figures.records import MethodInfo, Turn
from tests.bench.figures.test_metrics import SPEEDUPS, cell, make_run, make_turn, plain, summarized
from tests.bench.figures.test_metrics import turns as turns


def many_turns(questions: int = 8, rounds: int = 1, tasks: tuple[str, ...] = ("qa", "rag")) -> list[Turn]:
    """Vanilla and kangaroo on questions of two turns each, with different lengths, times and accepted drafts."""
    turns = []
    for task_place, task in enumerate(tasks):
        for place in range(questions):
            question = 100 * task_place + place
            for turn in range(2):
                for round_ in range(rounds):
                    where = {"task": task, "turn": turn, "round": round_}
                    steps = [(2, 1, 2), (2, 2, 3)] * (1 + place % 3 + turn)
                    tokens = 1 + sum(step[2] for step in steps)
                    slow = 1 + 0.1 * (place * (3 + turn) % 5)
                    turns.append(make_turn("vanilla", question, tokens, 0.03 * tokens, steps=plain(tokens), **where))
                    decode_s = 0.02 * tokens * slow
                    turns.append(make_turn("kangaroo", question, tokens, decode_s, steps=steps, prefill_s=1.1, **where))
    return turns


def test_figures_agree_with_spec_benchs_own_script():
    """Its evaluation/speed.py: mean over questions of sum(new_tokens) / sum(wall_time); mean of all accept_lengths."""
    turns = many_turns()
    tasks = summarized(make_run(kangaroo="method"), turns)["methods"]["kangaroo"]["tasks"]

    def answers(method, task):
        wanted = [turn for turn in turns if turn.method == method and task in (turn.task, "overall")]
        questions = {turn.question_id: {"new_tokens": [], "wall_time": [], "accept_lengths": []} for turn in wanted}
        for turn in wanted:
            choice = questions[turn.question_id]
            choice["new_tokens"].append(len(turn.token_ids))
            choice["wall_time"].append(turn.prefill_s + turn.decode_s)
            choice["accept_lengths"] += turn.per_step_emitted
        return list(questions.values())

    def mean_speed(choices):
        return statistics.mean(sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in choices)

    for task in ("qa", "rag", "overall"):
        ours = tasks[task]["speedup_total_mean_rates"]["value"]
        theirs = mean_speed(answers("kangaroo", task)) / mean_speed(answers("vanilla", task))
        assert ours == pytest.approx(theirs, rel=1e-9)
    for task in ("qa", "rag"):
        lengths = [length for choice in answers("kangaroo", task) for length in choice["accept_lengths"]]
        assert tasks[task]["compression_rate"] == pytest.approx(statistics.mean(lengths), rel=1e-9)


def test_a_question_of_several_turns_and_rounds_is_one_cluster():
    once, thrice = (cell(many_turns(rounds=rounds)) for rounds in (1, 3))
    for key in SPEEDUPS:
        # The same answers three times over are no more evidence than once.
        assert thrice[key] == pytest.approx(once[key], rel=1e-9)
        assert once[key]["low"] < once[key]["value"] < once[key]["high"]


def test_the_six_speedups_differ_as_their_definitions_do(turns):
    qa = cell(turns)
    # Decode tokens/s by question: 8 and 2 against 2 and 2.
    assert qa["speedup_decode_mean_rates"]["value"] == pytest.approx(10 / 4)
    assert qa["speedup_decode_geometric"]["value"] == pytest.approx(2.0)
    # End to end: 9 / 1.5 and 5 / 3.5 against 9 / 5 and 5 / 3.
    assert qa["speedup_total_mean_rates"]["value"] == pytest.approx((6 + 5 / 3.5) / (9 / 5 + 5 / 3))
    assert qa["speedup_total_geometric"]["value"] == pytest.approx((6 * 5 / 9 * 3 / 3.5) ** 0.5)
    overall = cell(turns, "overall")
    assert overall["speedup_decode_mean_rates"]["value"] == pytest.approx((8 + 2 + 2) / (2 + 2 + 4))
    assert overall["speedup_decode_geometric"]["value"] == pytest.approx((2 + 0.5) / 2)
    assert overall["speedup_decode"]["low"] is None  # translation has one question


def test_vanilla_against_itself_is_exactly_one():
    qa = cell(many_turns(), method="vanilla", kind="vanilla")
    for key in SPEEDUPS:
        assert qa[key] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0}, abs=1e-12)


def with_parts(turns: list[Turn]) -> list[Turn]:
    """As a newer record says it: half of what is not drafting is verification."""
    for turn in turns:
        turn.verify_s = (turn.decode_s - turn.draft_s) / 2
    return turns


def test_a_steps_time_is_told_in_vanilla_steps(turns):
    # Vanilla: 12 steps in 6 s. Kangaroo: 5 steps in 3 s, 0.75 s of them drafting, 1.125 s verifying.
    expected = {"draft": 0.15 / 0.5, "verify": 0.225 / 0.5, "rest": 0.225 / 0.5, "total": 0.6 / 0.5}
    assert cell(with_parts(turns))["step_time"] == pytest.approx(expected)
    own = cell(turns, method="vanilla", kind="vanilla")["step_time"]
    assert own == pytest.approx({"draft": 0.0, "verify": 0.5, "rest": 0.5, "total": 1.0})
    # Translation: 2 steps in 1 s against 2 in 0.5 s.
    assert cell(turns, "translation")["step_time"]["total"] == pytest.approx(2.0)
    assert cell(turns, "overall")["step_time"]["total"] == pytest.approx((1.2 + 2.0) / 2)


def test_an_older_record_does_not_split_verification_from_the_rest(turns):
    assert cell(turns)["step_time"] == {"draft": pytest.approx(0.3), "verify": None, "rest": None, "total": 1.2}
    assert cell(turns, "overall")["step_time"]["verify"] is None


COSTS = {"draft": 0.1, "shallow": 0.05, "verify": {"1": 0.8, "2": 0.9, "4": 1.0, "16": 2.2}, "rest": 0.07}


def predicted(turns: list[Turn], task: str = "qa", costs=COSTS) -> dict:
    run = make_run(kangaroo="method")
    run.methods["kangaroo"] = MethodInfo("method", True, 7, {}, costs=costs)
    return summarized(run, turns)["methods"]["kangaroo"]["tasks"][task]


def with_shapes(turns: list[Turn]) -> list[Turn]:
    for turn in turns:
        turn.per_step_depth = [min(drafted, 2) for drafted in turn.per_step_drafted]
        turn.per_step_calls = [min(drafted, 3) for drafted in turn.per_step_drafted]
    return turns


def test_a_predicted_speedup_is_cr_over_the_predicted_cost_of_the_recorded_steps(turns):
    qa = predicted(with_shapes(turns))
    # (drafted, depth, calls): (4, 2, 3) (2, 2, 2) (3, 2, 3) (1, 1, 1) (4, 2, 3); verify of 5, 3, 4, 2, 5 tokens.
    verify = (1.1 + 0.95 + 1.0 + 0.9 + 1.1) / 5
    cost = 0.1 * 12 / 5 + 0.05 * 14 / 5 + verify + 0.07
    assert qa["predicted"] == pytest.approx({"step_cost": cost, "speedup": 12 / 5 / cost})
    assert qa["prediction_error"] == pytest.approx(12 / 5 / cost / 2.0 - 1)
    translation = predicted(turns, "translation")["predicted"]
    assert translation["step_cost"] == pytest.approx(0.1 + 0.05 * 2 + 0.9 + 0.07)
    overall = predicted(turns, "overall")
    speedup = (12 / 5 / cost + 1 / translation["step_cost"]) / 2
    assert overall["predicted"] == pytest.approx(
        {"step_cost": (cost + translation["step_cost"]) / 2, "speedup": speedup}
    )
    assert overall["prediction_error"] == pytest.approx(speedup / 1.25 - 1)


def test_scouts_are_verified_as_well(turns):
    without, scouts = predicted(with_shapes(turns))["predicted"]["step_cost"], 0
    for turn in turns:
        if turn.task == "qa" and turn.method == "kangaroo":
            turn.per_step_scouts = [4] * len(turn.per_step_drafted)
            scouts += len(turn.per_step_scouts)
    assert scouts == 5
    # Of 9, 7, 8, 6, 9 tokens in place of 5, 3, 4, 2, 5: 0.1 a token beyond 4.
    verify = (1.5 + 1.3 + 1.4 + 1.2 + 1.5) / 5
    assert predicted(turns)["predicted"]["step_cost"] == pytest.approx(
        without - (1.1 + 0.95 + 1.0 + 0.9 + 1.1) / 5 + verify
    )


def test_vanilla_is_predicted_to_be_itself(turns):
    run = make_run()
    costs = {"draft": 0, "shallow": 0, "verify": {"1": 0.9}, "rest": 0.1}
    run.methods["vanilla"] = MethodInfo("vanilla", True, 0, {}, costs=costs)
    qa = summarized(run, with_shapes(turns))["methods"]["vanilla"]["tasks"]["qa"]
    assert qa["predicted"] == pytest.approx({"step_cost": 1.0, "speedup": 1.0})
    assert qa["prediction_error"] == pytest.approx(0.0, abs=1e-12)


def test_nothing_is_predicted_beyond_the_measured_widths_or_from_an_older_record(turns):
    nothing = (None, None)
    narrow = {**COSTS, "verify": {"1": 0.8, "4": 1.0}}
    for found in (predicted(turns), predicted(with_shapes(turns), costs=None), predicted(turns, costs=narrow)):
        assert (found["predicted"], found["prediction_error"]) == nothing
    assert predicted(turns, "translation", narrow)["predicted"] is not None
    # The measured overall speedup has both tasks, so a prediction of one cannot be compared with it.
    overall = predicted(turns, "overall", narrow)
    assert (overall["predicted"], overall["prediction_error"]) == nothing


def test_steps_are_counted_by_what_they_emitted(turns):
    assert cell(turns)["emitted_histogram"] == [1, 2, 1, 1]  # 3 1 4 2 2
    assert cell(turns, "translation")["emitted_histogram"] == [2, 0, 0, 0]
    assert cell(turns, "overall")["emitted_histogram"] == [3, 2, 1, 1]
    assert cell(turns, method="vanilla", kind="vanilla")["emitted_histogram"] == [12]


def test_confidence_is_counted_in_twentieths_of_accepted_and_of_rejected_drafts(turns):
    turns[3].accepted_confidence = [1.0, 0.97, 0.5]
    turns[3].rejected_confidence = [0.02]
    turns[5].rejected_confidence = [0.07, 1.0000001]
    qa, overall = cell(turns)["confidence"], cell(turns, "overall")["confidence"]
    assert qa["edges"] == pytest.approx([0.05 * i for i in range(21)])
    assert {i: count for i, count in enumerate(qa["accepted"]) if count} == {10: 1, 19: 2}
    assert {i: count for i, count in enumerate(qa["rejected"]) if count} == {0: 1}
    assert {i: count for i, count in enumerate(overall["rejected"]) if count} == {0: 1, 1: 1, 19: 1}
    assert cell(turns, method="vanilla", kind="vanilla")["confidence"] is None


def probed(turns: list[Turn], windows: int, task: str = "qa") -> dict:
    run = make_run(kangaroo="method")
    run.config["probe_windows"] = windows
    return summarized(run, turns)["methods"]["kangaroo"]["tasks"][task]


def test_window_ctar_counts_only_positions_with_enough_answer_left(turns):
    turns[3].windows = [3, 2, 0, 1, 1]
    turns[4].windows = [2, 1]
    # w = 1: 6 of 7 positions. w = 2: positions 0-3 and 0: 3, 2, and 2 reach it, of 5. w = 3: position 0-2: 1 of 3.
    assert probed(turns, 3)["window_ctar"] == pytest.approx([6 / 7, 3 / 5, 1 / 3])
    turns[5].windows = [0]
    assert probed(turns, 3, "translation")["window_ctar"] == [0.0, None, None]
    assert probed(turns, 3, "overall")["window_ctar"] == pytest.approx([3 / 7, 3 / 5, 1 / 3])


def test_without_a_probe_there_is_no_window_ctar(turns):
    assert probed(turns, 3)["window_ctar"] is None
    assert probed(turns, 3, "overall")["window_ctar"] is None
    turns[3].windows = [1]
    assert probed(turns, 0)["window_ctar"] is None


def test_time_per_token_is_told_by_context_in_bins_of_equally_many_turns():
    turns = []
    for place in range(12):
        where = {"prompt_tokens": 100 * (11 - place)}
        turns.append(make_turn("vanilla", place, 11, 1.0, **where))
        turns.append(make_turn("kangaroo", place, 11, 0.1 * (12 - place), **where))
    low, high = cell(turns)["context"]
    # Contexts 0..500 and 600..1,100, and half of 11 tokens; 10 decode tokens a turn.
    assert (low["turns"], high["turns"]) == (6, 6)
    assert (low["context"], high["context"]) == (255.5, 855.5)
    assert (low["ms_per_token"], high["ms_per_token"]) == pytest.approx((100 * 3.5 / 10, 100 * 9.5 / 10))
    assert low["vanilla_ms_per_token"] == high["vanilla_ms_per_token"] == 100.0
    assert len(cell(many_turns(questions=40))["context"]) == 6
    assert cell(turns[:8])["context"] == []
    # Tasks with too few turns of their own have a curve together.
    for turn in turns[:8]:
        turn.task = "rag"
    assert cell(turns, "rag")["context"] == []
    assert len(cell(turns, "overall")["context"]) == 2


def test_the_numerical_rate_is_of_the_audited_turns(turns):
    assert cell(turns)["numerical_rate"] == 0.5
    assert cell(turns, "translation")["numerical_rate"] == 0.0
    assert cell(turns, "overall")["numerical_rate"] == pytest.approx(1 / 3)  # of all turns, no mean of the tasks
    assert cell(turns, kind="lossy")["numerical_rate"] is None


def test_conditional_acceptance_goes_by_the_longest_path_where_it_is_known():
    tree = make_turn("kangaroo", 1, 6, 1.0, steps=[(6, 1, 2), (6, 2, 3)])
    # By its six nodes the first step drafted two in a row and missed the second.
    assert metrics.conditional_acceptance([tree], 2) == [1.0, 0.5]
    tree.per_step_depth = [1, 2]
    assert metrics.conditional_acceptance([tree], 2) == [1.0, 1.0]


def test_a_summary_of_everything_recorded_is_json(turns):
    turns = with_shapes(with_parts(many_turns()))
    for turn in turns:
        turn.windows, turn.accepted_confidence = [1, 0], [0.5]
    run = make_run(kangaroo="method")
    run.config["probe_windows"] = 2
    run.methods["kangaroo"] = MethodInfo("method", True, 7, {}, costs=COSTS)
    summary = summarized(run, turns)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    for figures in summary["methods"]["kangaroo"]["tasks"].values():
        assert None not in [figures[key] for key in ("confidence", "predicted", "window_ctar", "step_time")]


def test_a_method_that_failed_everywhere_takes_no_question_from_the_others(turns):
    """A peer too: asked one question, it would otherwise cost everybody that question."""
    dead = [
        make_turn("dead", question, 0, 0.0, task=task, error="boom")
        for question, task in ((1, "qa"), (3, "translation"))
    ]
    peer = make_turn("peer", 2, 0, 0.0, error="bang")
    run = make_run(kangaroo="method", dead="method", peer="peer")
    summary = summarized(run, [*turns, *dead, peer])
    assert summary["failed_methods"] == {"dead": "boom", "peer": "bang"}
    assert summary["excluded_questions"] == []
    assert len(summary["failed"]) == 3
    alone = summarized(make_run(kangaroo="method"), turns)
    assert summary["methods"]["kangaroo"] == alone["methods"]["kangaroo"]
    assert summary["methods"]["dead"]["tasks"]["overall"]["speedup_decode"]["value"] is None
    json.dumps(summary, allow_nan=False)


def test_what_vanilla_is_worth_beside_a_peer_is_the_mean_of_the_tasks_own(turns):
    peers = [
        make_turn("peer", 1, 9, 2.0),  # vanilla: 8 tokens in 4 s
        make_turn("peer", 3, 3, 2.0, task="translation"),  # vanilla: 2 tokens in 0.5 s
    ]
    tasks = summarized(make_run(peer="peer"), [*turns, *peers])["methods"]["peer"]["tasks"]
    assert tasks["qa"]["worth_decode"]["value"] == pytest.approx(2 / 4)
    assert tasks["translation"]["worth_decode"]["value"] == pytest.approx(2 / 0.5)
    assert tasks["overall"]["worth_decode"]["value"] == pytest.approx((0.5 + 4) / 2)
    assert tasks["overall"]["speedup_decode"]["value"] == pytest.approx((2 + 0.25) / 2)


def test_a_peer_that_was_asked_less_says_so(turns):
    summary = summarized(make_run(peer="peer"), [*turns, make_turn("peer", 1, 9, 2.0)])
    assert summary["methods"]["peer"]["answered"] == {"questions": 1, "of": 3}
    assert summary["methods"]["vanilla"]["answered"] == {"questions": 3, "of": 3}


def test_tokens_that_came_with_the_prefill_are_not_counted_as_decoded():
    turns = [make_turn("vanilla", 1, 9, 4.0, steps=plain(9)), make_turn("peer", 1, 9, 2.0, first_tokens=5)]
    cell = summarized(make_run(peer="peer"), turns)["methods"]["peer"]["tasks"]["qa"]
    assert cell["tok_per_s"] == pytest.approx(4 / 2.0)
    assert cell["speedup_decode"]["value"] == pytest.approx((4 / 2.0) / (8 / 4.0))
    assert cell["speedup_total"]["value"] == pytest.approx((9 / 3.0) / (9 / 5.0))


def test_a_peer_that_counts_its_passes_has_a_compression_rate():
    """Passes of answers in qa: none counted, 3 for 8 tokens, none needed; another task's 2 for 6."""
    peers = [
        make_turn("peer", 1, 9, 2.0),
        make_turn("peer", 1, 9, 2.0, turn=1, first_tokens=1, decode_passes=3),
        make_turn("peer", 2, 1, 0.0, decode_passes=0),
        make_turn("peer", 3, 10, 2.0, task="translation", first_tokens=4, decode_passes=2),
    ]
    base = [make_turn("vanilla", t.question_id, 9, 4.0, task=t.task, turn=t.turn, steps=plain(9)) for t in peers]
    tasks = summarized(make_run(peer="peer"), [*base, *peers])["methods"]["peer"]["tasks"]
    assert [(cell["compression_rate"], cell["steps"]) for cell in tasks.values()] == [
        (3, 2),
        (pytest.approx(8 / 3), 3),
        (pytest.approx((8 / 3 + 3) / 2), 5),
    ]
    assert {tasks["qa"][key] for key in ("ctar", "emitted_histogram", "draft_token_share")} == {None}


def test_methods_are_compared_with_each_other_on_the_questions_that_both_answered(turns):
    other = [
        make_turn("other", 1, 9, 8.0, steps=plain(9)),
        make_turn("other", 3, 3, 1.0, task="translation", steps=plain(3)),
    ]
    against = summarized(make_run(kangaroo="method", other="method"), [*turns, *other])["against"]
    ours = {t.question_id: t for t in turns if t.method == "kangaroo"}
    qa, translation = 8.0 / ours[1].decode_s, 1.0 / ours[3].decode_s  # equal tokens: times alone
    assert against["kangaroo"]["other"]["value"] == pytest.approx((qa + translation) / 2)
    assert against["other"]["kangaroo"]["value"] == pytest.approx((1 / qa + 1 / translation) / 2)
    assert summarized(make_run(kangaroo="method"), turns)["against"] == {}


def test_window_ctar_is_undefined_beyond_what_a_method_can_be_made_to_draft(turns):
    run = make_run(kangaroo="method")
    run.config["probe_windows"] = 3
    run.methods["kangaroo"].notes["probe_windows"] = 2
    for turn in turns:
        if turn.method == "kangaroo":
            turn.windows = [2, 2, 1, 0]
    cell = summarized(run, turns)["methods"]["kangaroo"]["tasks"]["qa"]
    assert cell["window_ctar"] == [pytest.approx(3 / 4), pytest.approx(2 / 3), None]


def test_where_every_answer_was_its_first_token_there_is_no_speed():
    turns = [Turn("m", i, "qa", "qa", 0, 0, token_ids=[2], prefill_s=0.1, decode_s=1e-6, finish="eos") for i in (1, 2)]
    assert breakdown.decode_tok_per_s(turns) is None
    assert breakdown.speedup(turns, turns) is None
