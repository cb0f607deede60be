"""When drafting stops, against simulated draft models: as good as promised, half as good, and useless."""

from __future__ import annotations

import random

import pytest

from bench.drafting.knobs import Costs
from bench.drafting.pace import Trust
from bench.drafting.stopping import CALIBRATED_AT, Calibration, Candidate, GainRule, TreeRule

ANSWER = 128  # tokens
RIGHT, WRONG = 7, 8  # the token that is always drafted, and the target's where it is not right
# As of the packaged adapter: what follows depends little on the confidence before.
CALIBRATION = Calibration(CALIBRATED_AT, tuple(0.35 + 0.2 * at for at in CALIBRATED_AT))
COSTS = [Costs(0.0, (0.1,), ((1, 1.0), (9, 1 + 8 * slope))) for slope in (0.02, 0.05)]
SHARED = Costs(0.1, (0.08,), ((1, 0.9), (9, 1.2)))  # the first layers are the draft model's, too
# How confidences are distributed (beta): of an adapter right in 45%, of a weak one (25%), of one all but sure.
TYPICAL, WEAK, SURE = (0.5, 0.6), (0.6, 1.8), (8.0, 1.0)


class Uncorrected:
    """What a calibration says, whatever is seen."""

    lost = 1e9
    first = 1.0

    def accepted(self, confidence):
        return confidence

    def following(self, confidence):
        return 0.35 + 0.2 * confidence

    def learn(self, offered, right):
        """Nothing."""


def uncorrected(costs):
    rule = GainRule(CALIBRATION, costs)
    rule.estimate, rule.pace.allowance = Uncorrected(), 1e9
    return rule


def answer_of(rule, costs, rng, confidences, honesty, gamma=6):
    """(vanilla steps, calls) of an answer; a draft of confidence c is right with a chance of `honesty` x c."""
    tokens, spent, calls = 1, 0.0, 0
    while tokens < ANSWER:
        rule.begin()
        right, kept = [], 0
        while len(right) < min(gamma, ANSWER - tokens - 1) and rule.goes_on():
            confidence = rng.betavariate(*confidences)
            right.append(rng.random() < honesty * confidence)
            if not rule.keep([Candidate(kept - 1, RIGHT, confidence)], 1):
                break
            kept += 1
        accepted = [*right[:kept], False].index(False)
        dropped_one_was_right = accepted == kept < len(right) and right[-1]
        rule.end([*[RIGHT] * accepted, RIGHT if dropped_one_was_right else WRONG])
        tokens += accepted + 1
        calls += len(right)
        spent += costs.shallow * (1 + kept) + costs.draft[0] * len(right) + costs.verifying(1 + kept)
    return spent, calls


def mean_steps(make, costs, confidences, honesty, answers=150):
    rng = random.Random(5)
    return sum(answer_of(make(), costs, rng, confidences, honesty)[0] for _ in range(answers)) / answers


@pytest.mark.parametrize("costs", [*COSTS, SHARED])
@pytest.mark.parametrize("confidences", [TYPICAL, SURE])
def test_a_draft_model_as_good_as_promised_loses_next_to_nothing(costs, confidences):
    plain = mean_steps(lambda: uncorrected(costs), costs, confidences, 1.0)
    corrected = mean_steps(lambda: GainRule(CALIBRATION, costs), costs, confidences, 1.0)
    assert plain < 0.9 * (ANSWER - 1)
    assert corrected < 1.02 * plain


@pytest.mark.parametrize("costs", [*COSTS, SHARED])
@pytest.mark.parametrize("confidences", [TYPICAL, WEAK, SURE])
def test_a_useless_draft_model_costs_at_most_three_percent(costs, confidences):
    rng = random.Random(6)
    for _ in range(40):
        spent, calls = answer_of(GainRule(CALIBRATION, costs), costs, rng, confidences, 0.0)
        assert spent <= 1.03 * (ANSWER - 1)
        assert calls >= 3  # it was tried, and again later
    assert mean_steps(lambda: uncorrected(costs), costs, confidences, 0.0) > 1.08 * (ANSWER - 1)


@pytest.mark.parametrize("costs", [*COSTS, SHARED])
@pytest.mark.parametrize("confidences", [TYPICAL, SURE])
def test_one_that_is_right_half_as_often_as_promised_is_not_below_vanilla(costs, confidences):
    plain = mean_steps(lambda: uncorrected(costs), costs, confidences, 0.5)
    corrected = mean_steps(lambda: GainRule(CALIBRATION, costs), costs, confidences, 0.5)
    assert corrected < min(0.97 * plain, ANSWER - 1)


def test_one_that_becomes_useful_is_found_again():
    rule, rng = GainRule(CALIBRATION, COSTS[0]), random.Random(4)
    answer_of(rule, COSTS[0], rng, SURE, 0.0)
    assert rule.estimate.trust.factor < 0.2
    answer_of(rule, COSTS[0], rng, SURE, 1.0)
    assert rule.estimate.trust.factor > 0.9


def test_trust_is_bayes_rule_over_the_factors():
    trust = Trust()
    assert trust.factor == 1
    trust.learn(0.6, False)
    weights = {1.0: 0.8 * 0.4, 0.5: 0.1 * 0.7, 0.25: 0.05 * 0.85, 0.05: 0.05 * 0.97}
    whole, start = sum(weights.values()), 0.8 + 0.05 + 0.0125 + 0.0025
    posterior = sum(factor * weight for factor, weight in weights.items()) / whole
    assert trust.factor == pytest.approx((0.98 * posterior + 0.02 * start) / start)
    sure, doubtful = Trust(), Trust()
    for _ in range(3):
        sure.learn(1.0, False)
        doubtful.learn(0.2, False)
    assert sure.factor < 0.3 < 0.9 < doubtful.factor
    sure.learn(1.0, True)
    assert sure.factor > 0.5


def test_what_was_dropped_and_came_true_counts_as_right():
    rule = GainRule(CALIBRATION, COSTS[0])
    for _ in range(8):
        rule.estimate.trust.learn(0.9, False)
    low = rule.estimate.trust.factor
    rule.begin()
    assert not rule.goes_on()
    for _ in range(16):
        rule.end([WRONG])
        rule.begin()
    assert rule.goes_on()  # a retry
    assert rule.keep([Candidate(-1, RIGHT, 0.1)], 1) == []
    rule.end([RIGHT])
    assert rule.estimate.trust.factor > 2 * low


def test_calls_count_where_another_method_drafted_in_the_end():
    rule = GainRule(CALIBRATION, COSTS[0])
    before = rule.pace.allowance
    for _ in range(3):
        rule.begin()
        rule.goes_on()
        assert rule.keep([Candidate(-1, RIGHT, 0.0)], 1) == []
    rule.end([WRONG])
    assert rule.pace.allowance == pytest.approx(before - 0.3 + 0.01)


# --- trees -----------------------------------------------------------------------------------------------------------

PARENTS = [-1, -1, 0, 2]
SHARES = [0.45, 0.15, 0.25, 0.15]  # so 1.0 tokens a step are expected of the tree


def steps_of_trees(rule, costs, rng, honesty):
    """(vanilla steps, trees verified) of an answer; the chances of the tree are `honesty` x what was promised."""
    tokens, spent, trees = 1, 0.0, 0
    while tokens < ANSWER:
        drafts = len(PARENTS) if rule.pays(len(PARENTS)) else 0
        accepted, node, reached = [], -1, 1.0
        while drafts:
            children = [child for child, parent in enumerate(PARENTS) if parent == node]
            at = rng.random()
            for child in children:
                at -= honesty * SHARES[child] / reached
                if at < 0:
                    break
            else:
                break
            accepted.append(child)
            node, reached = child, SHARES[child]
        rule.end(drafts, accepted)
        tokens += len(accepted) + 1
        trees += bool(drafts)
        spent += (costs.draft[0] if drafts else 0.0) + costs.verifying(1 + drafts)
    return spent, trees


def trees_of(costs, honesty, answers=150):
    rng = random.Random(7)
    rules = (TreeRule(SHARES, PARENTS, costs.draft[0], costs) for _ in range(answers))
    return [steps_of_trees(rule, costs, rng, honesty) for rule in rules]


@pytest.mark.parametrize("costs", COSTS)
def test_a_tree_as_good_as_promised_is_verified_in_nearly_every_step(costs):
    found = trees_of(costs, 1.0)
    cost = costs.draft[0] + costs.verifying(1 + len(PARENTS))
    always = (ANSWER - 1) / (1 + sum(SHARES)) * cost
    assert sum(spent for spent, _ in found) / len(found) < 1.03 * always


@pytest.mark.parametrize("costs", COSTS)
def test_a_useless_tree_costs_at_most_three_percent(costs):
    found = trees_of(costs, 0.0)
    assert max(spent for spent, _ in found) <= 1.03 * (ANSWER - 1)
    assert min(trees for _, trees in found) >= 3  # it was tried, and again later


@pytest.mark.parametrize("costs", COSTS)
def test_a_tree_half_as_good_as_promised_is_not_below_vanilla(costs):
    found = trees_of(costs, 0.5)
    assert sum(spent for spent, _ in found) / len(found) <= ANSWER - 1
