"""The gate's test: levels add up, unchanged code passes, a slow-down is seen, single slow moments decide nothing."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.figures.compare import DECODE, PREFILL
from bench.figures.rules import Rules
from bench.gate.sequential import (
    FINE,
    LEAST,
    UNDECIDED,
    WORSE,
    SequentialTest,
    mean_of_tasks,
    new_tests,
    spending,
    trimmed,
)


def test_spending_rises_to_the_whole_and_no_further():
    spent = [spending(0.01, used) for used in np.linspace(0, 1, 21)]
    assert spent == sorted(spent)
    assert spent[0] == 0
    assert spent[-1] == pytest.approx(0.01)
    assert spending(0.01, 1.5) == pytest.approx(0.01)
    assert spent[5] < 0.01 / 100  # O'Brien and Fleming: hardly anything early


def test_spending_is_lan_and_demets_formula():
    for alarm, used in ((0.02, 0.5), (0.005, 0.9)):
        expected = 2 - 2 * scipy_stats.norm.cdf(scipy_stats.norm.ppf(1 - alarm / 2) / math.sqrt(used))
        assert spending(alarm, used) == pytest.approx(expected)


def test_trimmed_mean_and_error_are_yuens():
    """Against scipy's trimmed mean and a winsorised variance written out."""
    values = np.random.default_rng(1).normal(size=30)
    mean, error, freedom = trimmed(values)
    assert mean == pytest.approx(scipy_stats.trim_mean(values, 0.2))
    ordered = np.sort(values)
    ordered[:6], ordered[-6:] = ordered[6], ordered[-7]
    assert error == pytest.approx(math.sqrt(29 * ordered.var(ddof=1) / (18 * 17)))
    assert freedom == 17


def test_one_slow_moment_does_not_decide():
    ratios = [0.001, -0.001] * 10
    quiet, disturbed = trimmed(ratios), trimmed([*ratios[:-1], 3.0])
    assert disturbed[0] == pytest.approx(quiet[0], abs=2e-3)


def looked(values, uses, **more):
    """The test after looks at growing parts of the values."""
    test = SequentialTest(effect=0.02, alarm=0.01, **more)
    for used in uses:
        seen = values[: int(used * len(values))]
        test.look([list(seen[::2]), list(seen[1::2])], used)  # of two tasks
    return test


def test_a_clear_slow_down_is_worse_and_stays_so():
    rng = np.random.default_rng(2)
    test = looked(rng.normal(math.log(1.05), 0.02, 80), [0.25, 0.5, 0.75, 1.0])
    assert test.verdict == WORSE
    assert test.change == pytest.approx(math.log(1.05), abs=0.01)
    assert len(test.looks) < 4  # decided before the end
    assert test.look([[0.0] * 100], 1.0) == WORSE


def test_unchanged_code_is_fine_before_the_budget_is_gone():
    test = looked(np.random.default_rng(3).normal(0, 0.02, 80), [0.25, 0.5, 0.75, 1.0])
    assert test.verdict == FINE
    assert len(test.looks) < 4


def test_a_faster_new_is_fine():
    assert looked(np.random.default_rng(4).normal(-0.1, 0.02, 40), [0.5, 1.0]).verdict == FINE


def test_what_is_too_noisy_stays_undecided():
    assert looked(np.random.default_rng(5).normal(0.02, 0.5, 40), [0.5, 1.0]).verdict == UNDECIDED


def test_a_significant_change_below_the_effect_is_not_worse():
    assert looked(np.random.default_rng(6).normal(math.log(1.01), 0.005, 200), [0.5, 1.0]).verdict == FINE


def test_nothing_is_said_of_a_few_pairs():
    test = SequentialTest(effect=0.02, alarm=0.01)
    assert test.look([[1.0] * (LEAST - 1), [1.0] * 50], 0.5) == UNDECIDED
    assert test.looks == []
    assert test.look([[], []], 0.5) == UNDECIDED


def test_a_task_is_not_traded_against_others():
    """One task of six 20% slower is 3% over all: no trimming may take it out."""
    rng = np.random.default_rng(9)
    tasks = [list(rng.normal(math.log(1.2) if task == 5 else 0.0, 0.01, 20)) for task in range(6)]
    test = SequentialTest(effect=0.02, alarm=0.01)
    assert test.look(tasks, 1.0) == WORSE
    assert math.exp(test.change) == pytest.approx(1.2 ** (1 / 6), abs=0.005)


def test_the_mean_of_tasks_is_welchs():
    rng = np.random.default_rng(10)
    tasks = [list(rng.normal(size=n)) for n in (9, 30)]
    (a, ea, fa), (b, eb, fb) = map(trimmed, tasks)
    mean, error, freedom = mean_of_tasks(tasks)
    assert mean == pytest.approx((a + b) / 2)
    assert error == pytest.approx(math.hypot(ea, eb) / 2)
    assert freedom == pytest.approx((ea**2 + eb**2) ** 2 / (ea**4 / fa + eb**4 / fb))


def test_methods_and_times_share_the_false_alarms():
    tests = new_tests(["a", "b"], Rules(), 0.02)
    assert len(tests) == 4
    assert sum(test.alarm for test in tests.values()) == pytest.approx(0.02)
    assert {(metric, test.effect) for (_, metric), test in tests.items()} == {(DECODE, 0.02), (PREFILL, 0.1)}


def test_looks_spend_no_more_than_was_given():
    """By the levels themselves: what each look may use adds up to the alarm."""
    test = SequentialTest(effect=0.02, alarm=0.01)
    values = list(np.random.default_rng(7).normal(0.02, 0.5, 100))
    for used in (0.2, 0.3, 0.3, 0.7, 1.0, 1.0):
        test.look([values], used)
    assert test.spent == pytest.approx(0.01)


@pytest.mark.parametrize("spread", [0.02, 0.06])
def test_false_alarms_and_misses_by_simulation(spread):
    """Ten looks, heavy tails: false alarms within their level, a 5% slow-down seen where 60 pairs can show it."""
    rng = np.random.default_rng(8)
    uses = np.linspace(0.1, 1.0, 10)

    def verdicts(change):
        draws = spread / math.sqrt(2) * rng.standard_t(4, size=(400, 60)) + change
        return [looked(draw, uses).verdict for draw in draws]

    assert np.mean([v == WORSE for v in verdicts(0.0)]) <= 0.02  # level 0.01; 400 gates
    if spread == 0.02:
        assert np.mean([v == WORSE for v in verdicts(math.log(1.05))]) >= 0.98
