"""What a question teaches of its drafts: trees against brute force, and the bound on what useless drafts cost."""

from __future__ import annotations

import itertools
import random

import pytest

from bench.drafting.knobs import Costs
from bench.drafting.pace import Chances, Pace, grow
from bench.drafting.stopping import Candidate, GainRule

COSTS = [
    Costs(0.0, (0.0,), ((1, 1.0), (2, 1.1), (4, 1.3), (8, 1.8), (16, 3.0))),
    Costs(0.0, (0.0,), ((1, 1.0), (2, 1.4), (6, 1.4), (7, 2.0), (16, 2.0))),  # a staircase
    Costs(0.2, (0.1,), ((1, 0.8), (2, 0.9), (4, 1.0), (8, 1.6), (16, 2.8))),
]


@pytest.mark.parametrize(("most", "depth"), [(1, 9), (7, 3), (12, 1), (30, 4), (500, 3)])
def test_trees_have_the_most_probable_paths(most, depth):
    successors = {token: [(3 * token + rank) % 11 for rank in range(3)] for token in range(0, 11, 2)}
    chances = Chances([0.5, 0.31, 0.07])
    grown = grow(0, lambda token: ((r, t, t) for r, t in enumerate(successors.get(token, ()))), chances, most, depth)
    reached = {}
    for length in range(1, depth + 1):
        for ranks in itertools.product(range(3), repeat=length):
            token, path, chance = 0, [], 1.0
            for rank in ranks:
                if token not in successors:
                    break
                token = successors[token][rank]
                path.append(token)
                chance *= chances[rank]
            if len(path) == length and chance >= 0.005:
                reached[tuple(path)] = chance
    assert sorted(grown.chances, reverse=True) == grown.chances
    assert grown.chances == pytest.approx(sorted(reached.values(), reverse=True)[:most])
    paths = []
    for token, parent in zip(grown.tokens, grown.parents, strict=True):
        assert parent < len(paths)
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert len(set(paths)) == len(paths)
    assert [reached[path] for path in paths] == pytest.approx(grown.chances)


def test_chances_go_from_the_prior_to_what_is_seen():
    chances = Chances([0.3, 0.1])
    assert (chances[0], chances[1]) == pytest.approx((0.3, 0.1))
    for _ in range(4000):
        chances.learn((0, 1), 1)
    assert chances[0] < 0.01
    assert chances[1] > 0.99


def test_a_text_is_followed_as_far_as_it_was_foreseen():
    following = {"a": [(0, 7, "b"), (1, 8, "c")], "b": [(0, 9, "d")]}
    counted = []
    chances = Chances([0.5, 0.5])
    chances.learn = lambda ranks, right: counted.append((list(ranks), right))
    chances.follow("a", lambda place: following.get(place, ()), [7, 5, 9])
    assert counted == [([0, 1], 0), ([0], None)]


@pytest.mark.parametrize("costs", COSTS)
def test_as_many_drafts_as_gain_most_at_the_questions_rate(costs):
    rng = random.Random(3)
    for scouts in (0, 3):
        for _ in range(200):
            chances = sorted((rng.random() ** 2 for _ in range(rng.randrange(10))), reverse=True)
            pace = Pace(costs, lost=100.0)
            for _ in range(rng.randrange(20)):
                pace.end(rng.random(), rng.randrange(1, 5))
            gains = [
                sum(chances[:n]) - pace.rate * (costs.verifying(1 + scouts + n) - costs.verifying(1 + scouts))
                for n in range(len(chances) + 1)
            ]
            count = pace.worth(chances, scouts)
            assert gains[count] == pytest.approx(max(gains))


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("lost", [0.25, 0.5])
def test_useless_drafts_cost_no_more_than_the_allowance(costs, lost):
    pace, spent = Pace(costs, lost, 0.02), 0.0
    for step in range(1, 300):
        cost = pace.verifying(pace.worth([0.99] * 12))  # however much they promise
        spent += cost
        pace.end(cost, 1)
        assert spent <= lost + 0.02 * step + 1e-9
    assert spent > lost / 2  # it was tried


def steps_of(rule, answers):
    """(calls, drafts, accepted) of each step; `answers` yields (confidence, whether the draft is right)."""
    found = []
    for _ in range(200):
        rule.begin()
        called, kept = [], 0
        while len(called) < 6 and rule.goes_on():
            confidence, is_right = next(answers)
            called.append(is_right)
            if not rule.keep([Candidate(kept - 1, 5, confidence)], 1):
                break
            kept += 1
        accepted = [*called[:kept], False].index(False)
        is_bonus = len(called) > kept == accepted and called[-1]  # what was dropped was right
        rule.end([*[5] * accepted, 5 if is_bonus else 4])
        found.append((len(called), kept, accepted))
    return found


def cost_of(costs, steps):
    """Vanilla steps beyond the step itself."""
    return sum(
        calls * costs.draft[0] + kept * costs.shallow + costs.verifying(1 + kept) - costs.verifying(1)
        for calls, kept, _ in steps
    )


@pytest.mark.parametrize("confidence", [0.05, 0.5, 0.99])
def test_a_draft_model_that_is_never_right_is_hardly_called(confidence):
    costs = COSTS[2]
    steps = steps_of(GainRule(None, costs), itertools.repeat((confidence, False)))
    assert cost_of(costs, steps) <= 0.75 + 0.01 * len(steps)
    assert sum(calls for calls, _, _ in steps[100:]) > 0  # it is tried again


def test_a_draft_model_that_is_right_is_called_and_unsure_drafts_are_dropped():
    rng = random.Random(1)
    answers = (
        (confidence, rng.random() < (0.95 if confidence > 0.5 else 0.05))
        for confidence in iter(lambda: rng.choice([0.95, 0.95, 0.95, 0.1]), None)
    )
    steps = steps_of(GainRule(None, COSTS[2]), answers)
    late = steps[50:]
    accepted = sum(accepted for _, _, accepted in late)
    assert accepted > 2 * cost_of(COSTS[2], late)
    assert any(calls > kept for calls, kept, _ in late)


def test_a_draft_model_that_becomes_right_is_found_again():
    wrong, right = [(0.9, False)] * 3, itertools.repeat((0.9, True))
    steps = steps_of(GainRule(None, COSTS[2]), itertools.chain(wrong, right))
    assert sum(accepted for *_, accepted in steps[-50:]) > 100
