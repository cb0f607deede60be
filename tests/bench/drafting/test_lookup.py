"""What lookup methods share: which of what was found is drafted, and whose steps count."""

from __future__ import annotations

import pytest

from bench.drafting.composition import Composition, CompositionConfig, Member
from bench.drafting.lookup import FOLLOWED, Lookup, LookupConfig, matching
from bench.drafting.sequence import NO_DRAFT, Draft, Outcome, Sequence
from bench.drafting.worth import Found

COSTS = "0.000/0.000/1:1.000/2:1.112/4:1.200/8:1.500/12:1.950/16:2.480"


class Told(Lookup):
    """Finds what a test puts in `found`."""

    found: tuple[Found, ...] = ()

    def index(self, context):
        return list(context)

    def find(self, index, most, depth):
        return self.found


def opened(**knobs):
    method = Told(None, LookupConfig(costs=COSTS, **knobs))
    sequence = Sequence([1, 2, 3], 2, None)
    method.open(sequence, None)
    return method, sequence


def step(method: Lookup, sequence: Sequence, emitted: list[int], *, other: Draft | None = None) -> Draft:
    """Propose and observe; `other`: another method's draft is verified in place of its own."""
    (draft,) = method.propose([sequence], [20])
    accepted = [place for place, _ in enumerate(emitted[:-1])]
    verified = other or draft
    assert [verified.tokens[place] for place in accepted] == emitted[:-1]
    sequence.context += emitted
    method.observe([sequence], [Outcome(verified, accepted, emitted[-1], None, None)])
    return draft


def test_the_found_text_that_is_worth_most_is_drafted():
    method, sequence = opened()
    method.found = (Found(1, [5, 6]), Found(16, [7, 8]), Found(2, [9]))
    assert list(step(method, sequence, [0]).tokens) == [7, 8]
    method, sequence = opened(stop="never")
    method.found = (Found(1, [5, 6]), Found(16, [7, 8]))
    assert list(step(method, sequence, [0]).tokens) == [5, 6]


def test_of_a_tree_a_part_is_drafted_with_its_parents():
    method, sequence = opened()
    tree = Found(16, [5, 6, 7, 8, 9], [-1, -1, 0, 0, 3], [0.99, 0.01, 0.01, 0.99, 0.99])
    method.found = (tree,)
    draft = step(method, sequence, [0])
    assert (list(draft.tokens), list(draft.parents)) == ([5, 8, 9], [-1, 0, 1])


def test_only_own_steps_and_those_without_drafts_count_but_all_teach():
    method, sequence = opened()
    rule = sequence.notes.rule
    method.found = (Found(16, [5, 6, 7, 8]),)
    before = rule.pace.tokens, rule.pace.time
    step(method, sequence, [5, 4], other=Draft([5, 9]))
    assert (rule.pace.tokens, rule.pace.time) == before  # another member's draft was verified
    assert rule.tries[-1] > 12
    made = step(method, sequence, [5, 4])
    assert (rule.pace.tokens, rule.pace.time) == (before[0] + 2, before[1] + rule.costs.verifying(1 + len(made.tokens)))
    method.found = ()
    assert step(method, sequence, [4]) is NO_DRAFT
    assert rule.pace.tokens == before[0] + 3
    method.observe([sequence], [Outcome(Draft([9]), [], 4, None, None)])  # it was not even asked
    assert rule.pace.tokens == before[0] + 3
    assert sequence.notes.index == [*sequence.context, 4]


def test_in_front_of_another_member_a_match_needs_more_tokens():
    built = []

    def make(target, config):
        built.append(Told(target, config))
        built[-1].found = (Found(FOLLOWED - 1, [5, 6]),)
        return built[-1]

    config = LookupConfig(stop="never")
    members = [Member("first", make, config), Member("own", make, LookupConfig(stop="never", least=1))]
    both = Composition(None, CompositionConfig((*members, Member("last", make, config))))
    assert [one.followed for one in built] == [True, True, False]
    assert [one.least for one in built] == [FOLLOWED, 1, 1]
    sequence = Sequence([1, 2, 3], 2, None)
    both.open(sequence, None)
    (draft,) = both.propose([sequence], [9])
    assert draft.part == 1
    built[0].found = (Found(FOLLOWED, [5, 6]),)
    (draft,) = both.propose([sequence], [9])
    assert draft.part == 0
    assert both.memory == "question"
    built[1].memory, built[2].memory = "run", "corpus:ab"
    again = Composition(None, CompositionConfig(tuple(Member("x", lambda t, c, one=one: one, config) for one in built)))
    assert again.memory == "run, corpus:ab"


def test_costs_are_recorded_and_a_repeated_run_decides_by_them(tiny_model, tiny_decoder):
    target = tiny_decoder(*tiny_model("tied"))
    first = Told(target, LookupConfig())
    assert first.measured == {"costs": str(first.costs)}
    again = Told(target, Told.repeated(LookupConfig(), first.measured))
    assert (again.costs, again.measured) == (first.costs, {})
    never = Told(target, LookupConfig(stop="never", tokens=7))
    assert (never.measured, never.widest, first.widest) == ({}, 8, 1)


def test_the_length_of_a_match_is_counted_as_far_as_it_matters():
    assert matching([1, 2, 3, 9, 2, 3], 3) == 2
    assert matching([2, 3, 9, 2, 3], 2) == 2
    assert matching([*range(20), *range(20)], 20) == 16
    assert matching([*range(20), *range(20)], 20, 18) == 18
    assert matching([1, 1, 1, 1], 3) == 3


@pytest.mark.parametrize("knob", ["tokens=0", "tokens=128", "stop=early", "least=-1", "costs=1"])
def test_knobs_out_of_range_are_refused(knob):
    key, _, value = knob.partition("=")
    with pytest.raises(ValueError, match=key):
        LookupConfig(**{key: int(value) if value.lstrip("-").isdecimal() and key != "costs" else value})
