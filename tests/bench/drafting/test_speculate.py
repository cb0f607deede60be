"""The loop beyond one chain of one sequence: scouts, equal siblings, several sequences, what a method is shown."""

from __future__ import annotations

import pytest
import torch

from bench.drafting.loop import decode, open_sequence, speculate
from bench.drafting.method import NoKnobs, SpeculativeMethod
from bench.drafting.sequence import Draft
from tests.fakes import OneSequence

NEVER = frozenset()
LIMIT = 12


@pytest.fixture
def scene(tiny_model, tiny_decoder, random_ids, hf_greedy):
    """(hf_model, decoder, prompt, reference answer of 40 tokens)."""
    config, model = tiny_model("tied")
    prompt = random_ids(9, seed=4)
    return model, tiny_decoder(config, model), prompt, hf_greedy(model, prompt, 40)


def other(token, by=1):
    return (token + by) % 272


class Told(OneSequence):
    """Proposes the drafts that it is told, one a step, then nothing; keeps the outcomes."""

    def __init__(self, target, *drafts):
        super().__init__(target, NoKnobs())
        self.drafts, self.outcomes = iter(drafts), []

    def draft(self, room):
        return next(self.drafts, Draft([]))

    def observed(self, outcome):
        self.outcomes.append(outcome)


def test_scouts_are_seen_but_never_accepted_nor_counted(scene):
    _, decoder, prompt, answer = scene
    tokens = [answer[1], other(answer[2]), answer[2], answer[3]]
    method = Told(decoder, Draft(tokens, [-1, 0, 0, 2], offered=2))  # the right second token is a scout
    steps = decode(method, prompt, LIMIT, NEVER).steps
    assert (steps[0].emitted, steps[0].drafted, steps[0].accepted, steps[0].depth) == (answer[1:3], 2, 1, 2)
    assert method.outcomes[0].logits.shape == (5, 272)
    assert method.outcomes[0].logits[[0, 1, 3, 4]].argmax(-1).tolist() == answer[1:5]  # what the scouts' rows say
    assert len(method.outcomes[0].draft.tokens) == 4


def test_scouts_may_be_deeper_than_the_budget(scene):
    _, decoder, prompt, answer = scene
    method = Told(decoder, Draft(answer[1:6], offered=1))
    found = decode(method, prompt, 3, NEVER)
    assert found.token_ids == answer[:3]
    assert found.steps[0].drafted == 1


def test_logits_and_states_of_every_row_are_transformers(scene, hf_logits):
    model, decoder, prompt, answer = scene
    tokens = [other(answer[1]), answer[1], answer[2], other(answer[2], 5)]
    method = Told(decoder, Draft(tokens, [-1, -1, 1, 1]))
    method.taps = (1, 3)
    decode(method, prompt, LIMIT, NEVER)
    outcome, text = method.outcomes[0], [*prompt, answer[0]]
    for row, path in enumerate(([], [0], [1], [1, 2], [1, 3])):
        ids = [*text, *(tokens[i] for i in path)]
        torch.testing.assert_close(outcome.logits[row], hf_logits(model, ids)[-1], rtol=0, atol=1e-3)
        with torch.inference_mode():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in (1, 3):
            torch.testing.assert_close(outcome.verified.taps[layer][0, row], hidden[layer][0, -1], rtol=0, atol=1e-3)
    assert outcome.kept.final.shape[1] == len(outcome.accepted) + 1 == 3


def test_equal_siblings_are_one_so_that_no_longer_path_is_lost(scene):
    _, decoder, prompt, answer = scene
    tokens = [answer[1], other(answer[1]), answer[1], other(answer[2]), answer[2], answer[3]]
    draft = Draft(tokens, [-1, -1, -1, 0, 2, 4], confidences=[0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    assert draft.merged().tokens == [answer[1], other(answer[1]), other(answer[2]), answer[2], answer[3]]
    assert draft.merged().parents == [-1, -1, 0, 0, 3]
    method = Told(decoder, draft)
    step = decode(method, prompt, LIMIT, NEVER).steps[0]
    assert (step.emitted, step.drafted, step.accepted) == (answer[1:5], 5, 3)
    assert step.accepted_confidence == [0.5, 0.1, 0.05]
    assert method.outcomes[0].accepted == [0, 3, 4]


def test_merging_keeps_scouts_behind_proposals_and_leaves_other_drafts_alone():
    draft = Draft([7, 8, 7, 9, 7], [-1, -1, -1, 2, -1], offered=3).merged()
    assert (draft.tokens, draft.parents, draft.offered) == ([7, 8, 9], [-1, -1, 0], 2)
    for same in (Draft([7, 7, 7]), Draft([7, 8, 7], [-1, -1, 0]), Draft([7, 7], [-1, -1], states=torch.zeros(1, 3, 4))):
        assert same.merged() is same


class Copying(SpeculativeMethod):
    """Drafts from a list of answers, of each sequence its own; notes are the sequence's number."""

    def __init__(self, target, answers, widths):
        super().__init__(target, NoKnobs())
        self.answers, self.widths, self.calls = answers, widths, []

    def propose(self, sequences, budgets):
        self.calls.append([sequence.slot for sequence in sequences])
        drafts = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            text, width = self.answers[sequence.slot], self.widths[sequence.slot]
            drafts.append(Draft(text[len(sequence.context) :][: min(budget, width)]))
        return drafts


def test_sequences_that_are_decoded_together_are_as_each_alone(scene, hf_greedy, random_ids):
    model, decoder, *_ = scene
    prompts = [random_ids(length, seed=length) for length in (5, 11, 3)]
    answers = [prompt + hf_greedy(model, prompt, 20) for prompt in prompts]
    method = Copying(decoder, answers, widths=(2, 0, 5))
    sequences = [open_sequence(method, prompt, slot=slot) for slot, prompt in enumerate(prompts)]
    assert len({id(sequence.cache) for sequence in sequences}) == 3
    while going := [s for s in sequences if len(s.context) - len(prompts[s.slot]) < 20]:
        budgets = [20 - (len(s.context) - len(prompts[s.slot])) for s in going]
        for sequence, step in zip(going, speculate(method, going, budgets), strict=True):
            assert step.drafted <= (2, 0, 5)[sequence.slot]
    assert [sequence.context for sequence in sequences] == answers
    assert method.calls[0] == [0, 1, 2]
    assert method.calls[-1] == [1]  # the one without drafts takes longest
