"""Workers in the figures of a run: who did what, whether they differ, and intervals that allow for it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.figures import stats, workers
from bench.figures.machine import Machine, Worker
from bench.figures.metrics import pairs, summarize
from bench.figures.records import BatchInfo, MethodInfo, Run, Turn
from bench.report.cautions import cautions
from bench.report.sections import sections
from tests.bench.figures.test_compare import COSTS, a_run, some_turns

ONE, TWO = Worker(1, "here", Machine(name="A"), [0]), Worker(2, "there", Machine(name="A"), [3], "1")
TASKS = ("qa", "rag")


def turns_of(rng, speed=1.0, speedup=1.0, questions=12):
    """Twelve questions of two tasks by two workers in turn, the second with other speeds by these factors."""
    found = []
    for number in range(questions):
        worker = str(number % 2 + 1)
        faster, gain = (speed, speedup) if worker == "2" else (1.0, 1.0)
        second = 0.01 * math.exp(0.02 * rng.normal()) / faster
        for method, factor in (("vanilla", 1.0), ("mine", 2.0 * gain * math.exp(0.02 * rng.normal()))):
            turn = Turn(method, number, TASKS[number // 2 % 2], "qa", 0, 0, token_ids=[1] * 41, finish="length")
            turn.decode_s, turn.prefill_s, turn.worker = 40 * second / factor, 0.1, worker
            found.append(turn)
    return found


def run_of(by_name):
    infos = {label: MethodInfo(kind, True, 0, {}) for label, kind in (("vanilla", "vanilla"), ("mine", "method"))}
    run = Run("r", "c", {"name": "m"}, {}, Machine(name="A"), "float32", {}, infos, {}, {})
    run.workers = by_name
    return run


@pytest.fixture
def run():
    return run_of({"1": ONE, "2": TWO})


def test_each_worker_is_shown_with_what_it_did(run):
    summary = summarize(run, turns_of(np.random.default_rng(1), speed=2.0))
    first, second = summary.workers
    assert (first.name, first.host, first.device, first.questions) == ("1", "here", "core 0", 6)
    assert (second.name, second.host, second.device, second.questions) == ("2", "there", "GPU 1, core 3", 6)
    assert first.tok_per_s_vanilla == pytest.approx(100, rel=0.05)
    assert second.tok_per_s_vanilla == pytest.approx(200, rel=0.05)
    assert first.speedups == {"mine": pytest.approx(2, rel=0.05)}
    (shown,) = (section for section in sections(run, summary) if section.title == "Workers")
    assert [row[0] for row in shown.parts[1].rows] == ["1", "2"]
    assert summary.statistics.cluster == "question and worker"


def test_nothing_is_predicted_for_a_mixture_of_machines():
    """Costs are in steps of one kind of machine, and measured speedups are of all of them together."""
    run, turns = a_run(), some_turns()
    run.methods["vanilla"] = replace(run.methods["vanilla"], costs=COSTS)
    assert summarize(run, turns).methods["kangaroo"].overall.predicted is not None
    assert summarize(run, turns).hindsight
    run.kinds = {"another/2": {name: BatchInfo({}, COSTS) for name in run.methods}}
    mixed = summarize(run, turns)
    kangaroo = mixed.methods["kangaroo"].overall
    assert (kangaroo.predicted, kangaroo.prediction_error, kangaroo.perfect_stopping) == (None, None, None)
    assert mixed.hindsight == {}
    assert kangaroo.speedup_decode.value is not None


def test_a_run_by_one_process_has_no_workers():
    turns = turns_of(np.random.default_rng(1))
    for turn in turns:
        turn.worker = ""
    run = run_of({})
    summary = summarize(run, turns)
    assert (summary.workers, summary.worker_differences, summary.statistics.cluster) == ([], [], "question")
    assert "Workers" not in [section.title for section in sections(run, summary)]


def test_workers_that_differ_are_warned_of_and_others_are_not(run):
    def warned(**factors):
        summary = summarize(run, turns_of(np.random.default_rng(2), **factors))
        return [text for text in cautions(run, summary) if "Workers differ" in text]

    assert warned() == []
    (speed,) = warned(speed=1.5)
    assert "vanilla decodes 1.5" in speed
    assert "as fast on worker 2 as on worker 1" in speed
    (speedup,) = warned(speedup=0.5)
    assert "the decode speedup of mine is" in speedup
    assert "on worker 1 as on worker 2" in speedup


def test_equal_workers_are_called_unlike_once_in_a_hundred_runs(run):
    rng, found = np.random.default_rng(3), 0
    for _ in range(200):
        turns = turns_of(rng)
        paired = {label: pairs(turns, label, "vanilla") for label in run.methods}
        found += len(workers.differences(run, paired, "vanilla"))
    assert found <= 11  # 4 are expected of two figures each; 12 or more come by chance once in 1,000 times


def test_unlike_machines_are_told(run):
    run.workers["2"] = Worker(2, "there", Machine(name="B"), [3])
    summary = summarize(run, turns_of(np.random.default_rng(1)))
    assert any(text.startswith("**Unlike machines**") for text in cautions(run, summary))


# --- intervals -------------------------------------------------------------------------------------------------------


def split_of(rng, effects, questions=24):
    """A task's questions, shared equally by workers with these factors of speedup: its sums, and these by worker."""
    own = np.arange(questions) % len(effects)
    rate = 2.0 * np.asarray(effects)[own] * np.exp(0.1 * rng.normal(size=questions))
    sums = np.column_stack([np.full(questions, 40.0), 40 / rate, np.full(questions, 40.0), np.full(questions, 40.0)])
    return sums, stats.Split(sums, list(range(questions)), [str(worker) for worker in own])


def width(estimate):
    return math.log(estimate.high / estimate.low)


def test_equal_workers_leave_intervals_as_they_are():
    for seed in range(20):
        sums, split = split_of(np.random.default_rng(seed), [1.0] * 8)
        clustered, plain = (stats.estimates([sums], 500, by) for by in ([split], ()))
        for name in stats.ESTIMATORS:
            assert clustered[name].value == plain[name].value
            assert width(clustered[name]) >= width(plain[name]) * (1 - 1e-9)
        if width(clustered["geometric"]) == pytest.approx(width(plain["geometric"]), rel=1e-9):
            break
    else:
        pytest.fail("equal workers made every interval wider")


def test_workers_that_differ_make_intervals_wider_by_what_their_means_vary():
    """Eight workers of three questions: the mean is as uncertain as that of eight workers' means.

    Student's t has 7 degrees of freedom at least, so that half an interval is 1.96 to 2.36 standard errors.
    """
    effects = np.exp([-0.4, -0.3, -0.1, -0.05, 0.05, 0.1, 0.3, 0.4])
    sums, split = split_of(np.random.default_rng(1), effects)
    logs = np.log(sums[:, 0] / sums[:, 1])
    means = np.array([logs[np.arange(24) % 8 == worker].mean() for worker in range(8)])
    error = means.std(ddof=1) / math.sqrt(8)
    assert 1.9 < width(stats.estimates([sums], 5000, [split])["geometric"]) / (2 * error) < 2.45
    assert width(stats.estimates([sums], 5000)["geometric"]) / (2 * error) < 1.5


def test_two_workers_that_differ_say_too_little_for_an_interval():
    sums, split = split_of(np.random.default_rng(1), [0.7, 1.4])
    assert stats.estimates([sums], 500)["geometric"].bounds is not None
    assert stats.estimates([sums], 500, [split])["geometric"].bounds is None


def coverage(count, deviation, runs=250):
    """Per cent of runs whose intervals hold the truth: clustered by question alone, and by worker too."""
    rng, held = np.random.default_rng(5), np.zeros(2)
    for _ in range(runs):
        effects = np.exp(deviation * rng.normal(size=count))
        sums, split = split_of(rng, effects, questions=40)
        for place, by in enumerate(((), [split])):
            found = stats.estimates([sums], 500, by)["geometric"]
            held[place] += found.bounds is None or found.low <= 2.0 <= found.high
    return 100 * held / runs


def test_intervals_hold_the_truth_where_workers_differ():
    by_question, by_worker = coverage(4, 0.1)
    assert by_question < 70
    assert by_worker > 87
    assert coverage(4, 0.0)[1] > 91
