"""Prompts decoded in a batch: slots stay full, each answer is its own, and times add up."""

from __future__ import annotations

import math

import pytest

from bench.drafting import costs
from bench.drafting.batch import Request, Slots, decode_batch
from bench.drafting.loop import decode
from bench.drafting.method import NoKnobs, SpeculativeMethod
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import NO_DRAFT, Draft
from bench.drafting.together import in_step
from bench.engine.joined import for_batch, run_joined
from methods.kangaroo.knobs import KangarooConfig
from methods.kangaroo.method import Kangaroo
from methods.layer_skip import LayerSkip, LayerSkipConfig
from methods.vanilla import Vanilla

NEVER = frozenset()
LENGTHS = (9, 2, 17, 5, 1, 12, 3)
LIMITS = (12, 20, 1, 7, 15, 2, 9)


class Knowing(SpeculativeMethod):
    """Drafts what comes, of each text a different number of tokens, and at the end a wrong one."""

    def __init__(self, target, texts):
        super().__init__(target, NoKnobs())
        self.texts = texts

    def propose(self, sequences, budgets):
        drafts = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            number = next(i for i, text in enumerate(self.texts) if text[: len(sequence.context)] == sequence.context)
            coming = self.texts[number][len(sequence.context) :][: number % 4]
            drafts.append(Draft([*coming, 5][:budget]))
        return drafts


@pytest.fixture
def scene(tiny_model, tiny_decoder, random_ids, hf_greedy):
    """(decoder, requests, transformers' answers)."""
    config, model = tiny_model("tied")
    prompts = [random_ids(length, seed=length) for length in LENGTHS]
    requests = [Request(prompt, limit) for prompt, limit in zip(prompts, LIMITS, strict=True)]
    answers = [hf_greedy(model, request.prompt, request.limit) for request in requests]
    return tiny_decoder(config, model), requests, answers


def knowing(scene):
    decoder, requests, answers = scene
    return Knowing(decoder, [[*request.prompt, *answer] for request, answer in zip(requests, answers, strict=True)])


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 20])
def test_every_answer_is_what_it_is_alone(scene, slots):
    decoder, requests, answers = scene
    for method in (Vanilla(decoder, NoKnobs()), knowing(scene)):
        batch = decode_batch(method, requests, Slots(decoder, slots), NEVER)
        assert [served.answer.token_ids for served in batch.served] == answers
        alone = [decode(method, request.prompt, request.limit, NEVER) for request in requests]
        for one, served in zip(alone, batch.served, strict=True):
            assert [step.accepted for step in served.answer.steps] == [step.accepted for step in one.steps]


def test_the_batch_stays_full_until_the_prompts_run_out(scene):
    decoder, requests, answers = scene
    batch = decode_batch(Vanilla(decoder, NoKnobs()), requests, Slots(decoder, 3), NEVER)
    live = [wave.live for wave in batch.waves]
    drain = live.index(2)  # from here on nobody waits
    assert live[:drain] == [3] * drain
    assert live == sorted(live, reverse=True)
    last = max(served.first_wave for served in batch.served)
    assert last <= drain
    assert sum(live) == sum(len(answer) - 1 for answer in answers)
    for wave, width in enumerate(live):
        assert sum(s.first_wave <= wave < s.first_wave + len(s.answer.steps) for s in batch.served) == width


def test_shares_of_a_waves_time_add_up_to_it(scene):
    decoder, requests, _ = scene
    batch = decode_batch(knowing(scene), requests, Slots(decoder, 3), NEVER)
    assert math.isclose(sum(s.answer.decode_s for s in batch.served), sum(wave.wall_s for wave in batch.waves))
    assert all(0 < wave.verify_s + wave.draft_s <= wave.wall_s for wave in batch.waves)
    assert all(served.answer.prefill_s > 0 for served in batch.served)


def test_an_answer_that_ends_with_its_first_token_takes_no_wave(scene):
    decoder, requests, answers = scene
    batch = decode_batch(Vanilla(decoder, NoKnobs()), [requests[2]] * 3, Slots(decoder, 2), NEVER)  # a limit of 1
    assert (batch.waves, [s.answer.token_ids for s in batch.served]) == ([], [answers[2]] * 3)


@pytest.mark.parametrize("drafts", [False, True])
def test_a_sequences_draws_do_not_depend_on_its_neighbours(scene, drafts):
    decoder, requests, _ = scene
    method = Vanilla(decoder, NoKnobs())
    if drafts:  # drawn, too
        method = LayerSkip(decoder, LayerSkipConfig(stop="threshold", gamma=3))

    def asked(number):
        sampler = Sampler(1.0)
        sampler.seed(f"question {number}")
        return Request(requests[number].prompt, 12, sampler)

    def alone(number):
        request = asked(number)
        return decode(method, request.prompt, request.limit, NEVER, request.sampler).token_ids

    for chosen in ((0, 1, 3), (3, 6, 5, 0), (5, 1)):
        batch = decode_batch(method, map(asked, chosen), Slots(decoder, 2), NEVER)
        assert [served.answer.token_ids for served in batch.served] == [alone(number) for number in chosen]
    assert alone(0) != alone(3)


def test_questions_of_all_are_answered_together_and_each_gets_its_own():
    asked = []

    def asking(count, name):
        total = 0
        for i in range(count):
            total += yield (name, i)
        return name, total

    def answer(questions):
        asked.append([name for name, _ in questions])
        return [10 * i + len(name) for name, i in questions]

    found = in_step([asking(2, "a"), asking(0, "bb"), asking(3, "ccc")], answer)
    assert found == [("a", 1 + 11), ("bb", 0), ("ccc", 3 + 13 + 23)]
    assert asked == [["a", "ccc"], ["a", "ccc"], ["ccc"]]


class Skipping(SpeculativeMethod):
    """Drafts with one layer for some sequences, with two or with none for others: rows are not equally far."""

    def __init__(self, target):
        super().__init__(target, NoKnobs())
        knobs = {"stop": "threshold", "gamma": 2}
        self.members = [None, *(LayerSkip(target, LayerSkipConfig(exit_layer=n, **knobs)) for n in (1, 2))]

    def member(self, sequence):
        return self.members[sequence.slot % 3]

    def open(self, sequence, prompt):
        if (member := self.member(sequence)) is not None:
            member.open(sequence, prompt)

    def propose(self, sequences, budgets):
        return [
            NO_DRAFT if (member := self.member(one)) is None else member.propose([one], [budget])[0]
            for one, budget in zip(sequences, budgets, strict=True)
        ]


def test_rows_that_drafting_has_taken_further_wait_for_the_others(scene):
    decoder, requests, answers = scene
    batch = decode_batch(Skipping(decoder), requests, Slots(decoder, 6), NEVER)
    assert [served.answer.token_ids for served in batch.served] == answers


def test_costs_are_of_passes_over_all_sequences(scene, monkeypatch):
    decoder, seen = scene[0], set()

    def noting(target, x, parts, *layers):
        seen.add((len(parts), x.shape[1], len({id(part.cache) for part in parts})))
        return run_joined(target, x, parts, *layers)

    monkeypatch.setattr(costs, "run_joined", noting)
    three = costs.measure(for_batch(decoder, 3), 0, [])
    assert {sequences for sequences, *_ in seen} == {3}
    assert {rows // 3 for _, rows, _ in seen} >= {1, 2}
    assert {caches for *_, caches in seen} == {3}
    assert three.verifying(1) == pytest.approx(1, abs=0.01)
    seen.clear()
    costs.measure(decoder, 0, [])  # has a table of its own
    assert {sequences for sequences, *_ in seen} == {1}


@pytest.mark.parametrize("method", ["level", "blocks"])
def test_drafts_are_made_in_one_call_for_all(method, scene, tiny_model, tiny_adapter, monkeypatch):
    """Of Kangaroo a level, of LayerSkip a token of all sequences that still draft."""
    decoder, requests, answers = scene
    rows: list[int] = []
    if method == "level":
        made = Kangaroo(decoder, KangarooConfig(weights=str(tiny_adapter(tiny_model("tied")[1])), threshold=0, gamma=3))
        model = made.draft_model
        made.draft_model = lambda levels, best: rows.append(len(levels)) or model(levels, best)
    else:
        made = LayerSkip(decoder, LayerSkipConfig(stop="threshold", gamma=3))
        answer = made._answer
        made._answer = lambda asked: rows.append(len(asked)) or answer(asked)
    batch = decode_batch(made, requests, Slots(decoder, 4), NEVER)
    assert [served.answer.token_ids for served in batch.served] == answers
    assert max(rows) == 4
    assert sum(rows) >= sum(step.calls for served in batch.served for step in served.answer.steps)
