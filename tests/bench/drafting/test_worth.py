"""Drafts from text are verified as far as they are worth it, and a useless drafter costs almost nothing."""

from __future__ import annotations

import itertools
import random

import pytest

from bench.drafting.knobs import Costs
from bench.drafting.tree import tree_of
from bench.drafting.worth import LENGTHS, NOTHING, PRIOR, Found, WorthRule

LAPTOP = Costs.parse("0.000/0.000/1:1.000/2:1.112/4:1.200/8:1.500/12:1.950/16:2.480/24:3.500")
DEAR = Costs.parse("0.000/0.000/1:1.000/2:1.900/3:2.900")
CHEAP = Costs.parse("0.000/0.000/1:1.000/24:1.010/128:1.100")


def chain(length: int, tokens: int) -> Found:
    return Found(length, list(range(tokens)))


def test_chances_start_at_the_prior_and_rise_with_the_match():
    rule = WorthRule(LAPTOP)
    assert [rule.chance(length) for length in LENGTHS] == pytest.approx(PRIOR)
    assert (rule.chance(5), rule.chance(8), rule.chance(999)) == pytest.approx((PRIOR[3], PRIOR[4], PRIOR[-1]))
    assert sorted(PRIOR) == list(PRIOR)


def expected(found: Found, nodes: tuple[int, ...], rule: WorthRule) -> float:
    """Tokens that these nodes are expected to add, path by path."""
    total = 0.0
    depths = tree_of(found.parents).depths if found.parents else None
    for node in nodes:
        chance, at = 1.0, node
        while at != -1:
            depth = depths[at + 1] - 1 if depths else at
            chance *= rule.chance(found.length + depth) * (found.shares[at] if found.shares else 1.0)
            at = found.parents[at] if found.parents else at - 1
        total += chance
    return total


@pytest.mark.parametrize("costs", [LAPTOP, DEAR, CHEAP], ids=["laptop", "dear", "cheap"])
def test_the_choice_is_the_best_of_all_subtrees(costs):
    rng = random.Random(0)
    for _ in range(60):
        size = rng.randint(1, 7)
        parents = None if rng.random() < 0.3 else [rng.randint(-1, i - 1) for i in range(size)]
        shares = None if rng.random() < 0.3 else [rng.random() for _ in range(size)]
        found = Found(rng.randint(1, 20), list(range(size)), parents, shares)
        rule = WorthRule(costs)
        rule.pace.tokens, rule.pace.allowance = rng.choice((8.0, 16.0)), 99.0
        rate = max(1.0, rule.pace.tokens / rule.pace.time)

        def gain(nodes: tuple[int, ...], found=found, rule=rule, rate=rate) -> float:
            return expected(found, nodes, rule) - rate * (costs.verifying(1 + len(nodes)) - 1)

        follows = parents or [i - 1 for i in range(size)]
        subtrees = [
            nodes
            for n in range(size + 1)
            for nodes in itertools.combinations(range(size), n)
            if all(follows[node] in (-1, *nodes) for node in nodes)
        ]
        chosen, worth = rule.choose(found, size)
        assert all(follows[node] in (-1, *chosen[:place]) for place, node in enumerate(chosen))
        assert worth == pytest.approx(gain(tuple(chosen)))
        assert worth == pytest.approx(max(map(gain, subtrees)))


def test_at_most_as_many_as_asked_for_and_none_where_one_more_row_costs_a_step():
    assert WorthRule(CHEAP).choose(chain(16, 20), 7)[0] == list(range(7))
    assert WorthRule(CHEAP).choose(NOTHING, 7) == ([], 0.0)
    assert WorthRule(DEAR).choose(chain(16, 20), 7) == ([], 0.0)


def test_what_is_found_counts_whether_or_not_it_is_drafted():
    rule, before = WorthRule(DEAR), WorthRule(DEAR)
    found = Found(1, [5, 6, 7, 8])
    assert rule.choose(found, 4)[0] == []
    rule.learn(found, [5, 6, 9])
    assert [now > then for now, then in zip(rule.hits, before.hits, strict=True)][:3] == [True, True, False]
    assert rule.chance(1) > before.chance(1)
    assert rule.chance(3) < before.chance(3)
    assert rule.chance(4) == before.chance(4)  # nothing was seen of the last token


def test_of_several_that_may_follow_one_is_right():
    rule = WorthRule(LAPTOP, [[0.5] * len(PRIOR)])
    found = Found(1, [5, 6, 7], [-1, -1, 1], [0.6, 0.4, 1.0])
    for _ in range(400):
        rule.learn(found, [6, 7])
    assert rule.chance(1) == pytest.approx(1.0, abs=0.02)
    assert rule.chance(2) == pytest.approx(1.0, abs=0.02)
    for _ in range(4000):
        rule.learn(found, [9])
    assert rule.chance(1) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("length", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("costs", [LAPTOP, DEAR, CHEAP], ids=["laptop", "dear", "cheap"])
def test_a_useless_drafter_costs_at_most_three_percent(length, costs):
    rule, spent, rows = WorthRule(costs), 0.0, []
    for step in range(1, 401):
        found = chain(length, 24)
        rows.append(len(rule.choose(found, 24)[0]))
        spent += costs.verifying(1 + rows[-1])
        rule.learn(found, [-7])
        rule.end(rows[-1], 1)
        assert spent <= 1.02 * step + 0.5
    assert spent <= 1.03 * 400
    assert sum(rows[200:]) <= sum(rows[:200])


def test_a_drafter_that_turns_useless_has_to_earn_no_more_than_it_gained():
    rule, spent, emitted = WorthRule(LAPTOP), 0.0, 0
    for step in range(300):
        found = chain(16, 12)
        drafted = len(rule.choose(found, 12)[0])
        kept = [*range(drafted), -7] if step < 20 else [-7]
        spent, emitted = spent + LAPTOP.verifying(1 + drafted), emitted + len(kept)
        rule.learn(found, kept)
        rule.end(drafted, len(kept))
    assert spent < emitted


def test_a_drafter_that_is_always_right_soon_drafts_as_much_as_pays():
    rule = WorthRule(LAPTOP)
    for _ in range(30):
        drafted = len(rule.choose(chain(16, 24), 24)[0])
        rule.learn(chain(16, 24), list(range(drafted + 1)))
        rule.end(drafted, drafted + 1)
    best = max(range(25), key=lambda n: (1 + n) / LAPTOP.verifying(1 + n))
    assert abs(drafted - best) <= 1


def test_kinds_of_text_have_chances_of_their_own():
    rule = WorthRule(LAPTOP, (PRIOR, [0.1] * len(PRIOR)))
    assert (rule.chance(4, 0), rule.chance(4, 1)) == pytest.approx((PRIOR[3], 0.1))
    rule.learn(Found(4, [5], kind=1), [5])
    assert rule.chance(4, 0) == pytest.approx(PRIOR[3])
    assert rule.chance(4, 1) > 0.1
