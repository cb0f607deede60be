"""What a step records of itself besides its tokens: who lost, how sure the drafts were, what it took, how long."""

import dataclasses

import pytest
import torch

from bench.drafting import loop
from bench.drafting.loop import decode, open_sequence, probe, speculate
from bench.drafting.method import NoKnobs
from bench.drafting.sequence import Draft, Step
from tests.fakes import OneSequence

NEVER = frozenset()


class Told(OneSequence):
    """Proposes the drafts that it is told, one `Draft` a step, then nothing."""

    def __init__(self, target, drafts):
        super().__init__(target, NoKnobs())
        self.drafts = iter(drafts)

    def draft(self, room):
        return next(self.drafts, Draft([]))


@pytest.fixture
def scene(tiny_model, tiny_decoder, random_ids, hf_greedy):
    """(decoder, prompt, reference answer of 12 tokens)."""
    config, model = tiny_model("tied")
    prompt = random_ids(9, seed=4)
    return tiny_decoder(config, model), prompt, hf_greedy(model, prompt, 12)


def first_step(decoder, prompt, draft):
    return decode(Told(decoder, [draft]), prompt, 12, NEVER).steps[0]


def other(token, by=1):
    return (token + by) % 272


def test_chain_loses_the_draft_where_verification_ended(scene):
    decoder, prompt, answer = scene
    drafts = [answer[1], other(answer[2]), answer[3]]
    step = first_step(decoder, prompt, Draft(drafts, confidences=[0.9, 0.5, 0.25]))
    assert step.rejected == [other(answer[2])]
    assert (step.accepted_confidence, step.rejected_confidence) == ([0.9], [0.5])
    assert (step.depth, step.calls) == (3, 1)


def test_chain_that_is_right_to_its_end_loses_nothing(scene):
    decoder, prompt, answer = scene
    step = first_step(decoder, prompt, Draft(answer[1:4], confidences=[0.9, 0.8, 0.7], calls=4))
    assert step.rejected == step.rejected_confidence == []
    assert step.accepted_confidence == [0.9, 0.8, 0.7]
    assert (step.depth, step.calls) == (3, 4)


def test_tree_loses_the_siblings_where_verification_ended(scene):
    decoder, prompt, answer = scene
    tokens = [other(answer[1]), answer[1], other(answer[2]), other(answer[2], 2), answer[2]]
    step = first_step(decoder, prompt, Draft(tokens, [-1, -1, 1, 1, 0], confidences=[0.1, 0.2, 0.3, 0.4, 0.5]))
    assert step.emitted == answer[1:3]
    assert step.rejected == [other(answer[2]), other(answer[2], 2)]
    assert (step.accepted_confidence, step.rejected_confidence) == ([0.2], [0.3, 0.4])
    assert (step.drafted, step.depth) == (5, 2)


def test_scouts_are_counted_apart(scene):
    decoder, prompt, answer = scene
    step = first_step(decoder, prompt, Draft([answer[1], other(answer[2]), answer[2]], [-1, 0, 0], offered=1))
    assert (step.drafted, step.scouts, step.accepted, step.depth) == (1, 2, 1, 1)
    assert step.rejected == []


def test_without_drafts_nothing_was_run_or_lost(scene):
    decoder, prompt, _ = scene
    step = first_step(decoder, prompt, Draft([]))
    assert (step.drafted, step.depth, step.calls, step.rejected) == (0, 0, 0, [])


def test_unknown_confidences_stay_unknown(scene):
    decoder, prompt, answer = scene
    step = first_step(decoder, prompt, Draft([answer[1], other(answer[2])]))
    assert step.rejected == [other(answer[2])]
    assert step.accepted_confidence == step.rejected_confidence == []


def test_what_eos_cuts_off_is_neither_accepted_nor_lost():
    step = Step([4, 9, 6], 4, 2, 4, 1, [7], [0.9, 0.8], [0.3], draft_s=1.0, verify_s=2.0)
    kept = step.cut_at(frozenset({4}))
    assert (kept.emitted, kept.accepted, kept.accepted_confidence) == ([4], 1, [0.9])
    assert kept.rejected == kept.rejected_confidence == []
    assert (kept.drafted, kept.depth, kept.calls, kept.draft_s, kept.verify_s) == (4, 4, 1, 1.0, 2.0)
    assert step.cut_at(frozenset({6})) == step


def test_times_are_those_between_the_marks(scene, monkeypatch):
    """A scripted clock: the first mark of each step, then 2 s of drafting and 5 s of verification."""
    decoder, prompt, _ = scene
    moments = iter([base + at for base in range(0, 1000, 100) for at in (0.0, 2.0, 7.0)])
    monkeypatch.setattr(loop, "mark", lambda device: next(moments))
    steps = decode(Told(decoder, []), prompt, 5, NEVER).steps
    assert [(step.draft_s, step.verify_s) for step in steps] == [(2.0, 5.0)] * 4


def test_parts_of_a_step_fit_into_the_decode_time(scene):
    decoder, prompt, answer = scene
    made = decode(Told(decoder, [Draft(answer[1:3])]), prompt, 12, NEVER)
    assert all(step.draft_s > 0 and step.verify_s > 0 for step in made.steps)
    assert sum(step.draft_s + step.verify_s for step in made.steps) <= made.decode_s


def test_probe_counts_right_drafts_at_every_position_of_a_given_answer(scene, random_ids):
    """Teacher-forced: the answer need not be the target's own."""
    decoder, prompt, _ = scene
    answer = random_ids(6, seed=9)
    told = [
        Draft(answer[1:4]),  # all three right
        Draft([answer[2], other(answer[3]), answer[4]]),  # what is right after an error does not count
        Draft([]),
        Draft([other(answer[4]), answer[4]], [-1, -1]),  # of a tree, the first path
        Draft([answer[5], 7, 7]),  # beyond the answer's end nothing is known
    ]
    method = Told(decoder, told)
    assert probe(method, prompt, answer, 3) == [3, 1, 0, 0, 1]
    assert method.context == prompt + answer


def test_probe_leaves_the_cache_as_reading_the_answer_would(scene, random_ids):
    """Drafts must not stay in it: the next token is that of a fresh pass over prompt and answer."""
    decoder, prompt, _ = scene
    answer = random_ids(6, seed=9)
    method = Told(decoder, [Draft([1, 2, 3]) for _ in range(5)])
    probe(method, prompt, answer, 3)
    fresh = decode(Told(decoder, []), [*prompt, *answer], 4, NEVER).token_ids
    (step,) = speculate(method, [method.sequence], [4])
    assert step.emitted == fresh[:1]


@pytest.mark.parametrize("name", ["kangaroo", "medusa"])
def test_probing_drafts_as_many_as_asked_whatever_the_chances(name, tiny_model, tiny_decoder, tiny_adapter, tiny_heads):
    from methods import load

    config, model = tiny_model("tied", True)
    folder = tiny_adapter(model) if name == "kangaroo" else tiny_heads(model, heads=4)
    method = load(name)
    timid = {"kangaroo": {"threshold": 0.999}, "medusa": {"tree": "0"}}[name]
    asked = method.Config(weights=str(folder), **timid)
    made = method(tiny_decoder(config, model), asked)
    probing, reach = made.probing(3)
    assert reach == 3
    forced = method(made.target, probing)
    for one, drafts in ((forced, 3), (made, 1)):
        with torch.inference_mode():
            (draft,) = one.propose([open_sequence(one, [1, 2, 3])], [10])
        assert len(draft.tokens) == drafts
    assert dataclasses.asdict(made.config) != dataclasses.asdict(forced.config)
