"""Rounding or a fault: ties and faults built on purpose, gaps taken from transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.drafting.loop import decode
from bench.drafting.method import NoKnobs
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.models.hf_peer import _put_on_the_grid
from bench.run.audit import Auditor
from methods.vanilla import Vanilla

LIMIT = 24
NEEDS_KERNELS = pytest.mark.skipif(bool(native.why_not()), reason="no compiler here")


def never():
    raise AssertionError("no second model is needed here")


@pytest.fixture
def scene(tiny_model, random_ids, hf_greedy):
    """(hf_config, hf_model, prompt, vanilla's answer) with an LM head of its own."""
    config, model = tiny_model("llama3")
    prompt = random_ids(10, seed=6)
    return config, model, prompt, hf_greedy(model, prompt, LIMIT)


@pytest.fixture
def tied_at(scene, hf_logits):
    """(position, scale) -> a copy of the model in whose head a token's row is `scale` times the answer's token there.

    Returns the model, that other token and the float32 gap between the two.
    """
    _, model, prompt, answer = scene

    def build(position: int, scale: float):
        token = answer[position]
        other = next(i for i in range(272) if i not in answer and i not in prompt)
        changed = copy.deepcopy(model)
        head = changed.lm_head.weight.data
        head[other] = head[token] * scale
        logits = hf_logits(changed, prompt + answer[:position])[-1]
        return changed, other, float(logits[token] - logits[other])

    return build


def test_the_same_answer_is_identical(scene, tiny_decoder):
    config, model, prompt, answer = scene
    auditor = Auditor(tiny_decoder(config, model, dtype=torch.bfloat16), never)
    audit = auditor.compare(prompt, tuple(answer), answer)
    assert (audit.verdict, audit.position, audit.token, audit.gap) == ("identical", None, None, None)


@pytest.mark.parametrize("position", [0, 5, 23])
def test_a_tie_is_numerical(position, scene, tied_at, tiny_decoder):
    config, _, prompt, answer = scene
    model, other, gap = tied_at(position, 1.0)
    assert gap == 0
    swapped = [*answer[:position], other, *answer[:4]][:LIMIT]  # what follows a divergence does not matter
    audit = Auditor(tiny_decoder(config, model), never).compare(prompt, swapped, answer)
    assert (audit.verdict, audit.position) == ("numerical", position)
    assert (audit.token, audit.vanilla_token) == (other, answer[position])
    assert audit.gap == pytest.approx(0, abs=1e-5)
    assert abs(audit.gap) <= audit.tolerance < 1e-3


@pytest.mark.parametrize("position", [0, 5, 23])
def test_a_clear_gap_is_a_difference(position, scene, tied_at, tiny_decoder):
    config, _, prompt, answer = scene
    model, other, gap = tied_at(position, 0.99)
    assert 0.01 < gap < 0.1
    audit = Auditor(tiny_decoder(config, model), never).compare(prompt, [*answer[:position], other], answer)
    assert (audit.verdict, audit.position) == ("different", position)
    assert (audit.token, audit.vanilla_token) == (other, answer[position])
    assert audit.gap == pytest.approx(gap, abs=1e-4)
    assert audit.tolerance < 1e-3


def test_a_token_that_vanilla_should_have_taken_is_a_difference_too(scene, tied_at, tiny_decoder):
    """The fault may be vanilla's: then the gap is negative."""
    config, _, prompt, answer = scene
    model, other, gap = tied_at(5, 1.05)
    audit = Auditor(tiny_decoder(config, model), never).compare(prompt, [*answer[:5], other], answer)
    assert gap < -0.1
    assert (audit.verdict, audit.gap) == ("different", pytest.approx(gap, abs=1e-4))


@pytest.mark.parametrize("shorter", [0, 3, LIMIT - 1])
def test_an_answer_that_stops_elsewhere_is_a_difference(shorter, scene, tiny_decoder):
    config, model, prompt, answer = scene
    auditor = Auditor(tiny_decoder(config, model), never)
    audit = auditor.compare(prompt, answer[:shorter], answer)
    assert (audit.verdict, audit.position) == ("different", shorter)
    assert (audit.token, audit.vanilla_token) == (None, answer[shorter])
    audit = auditor.compare(prompt, answer, answer[:shorter])
    assert (audit.verdict, audit.position) == ("different", shorter)
    assert (audit.token, audit.vanilla_token) == (answer[shorter], None)


def test_bfloat16_is_measured_against_a_float32_reference(scene, tied_at, tiny_decoder):
    config, _, prompt, answer = scene
    model, other, gap = tied_at(5, 0.998)
    assert 1e-3 < gap < 2e-2
    exact = tiny_decoder(config, model)
    made = []

    def reference():
        made.append(1)
        return exact

    swapped = [*answer[:5], other]
    assert Auditor(exact, never).compare(prompt, swapped, answer).verdict == "different"
    auditor = Auditor(tiny_decoder(config, model, dtype=torch.bfloat16), reference)
    assert auditor.compare(prompt, answer, answer).verdict == "identical"
    assert auditor.compare(prompt, answer[:7], answer).verdict == "different"
    assert made == []  # not needed until logits are
    for _ in range(2):
        audit = auditor.compare(prompt, swapped, answer)
        assert audit.verdict == "numerical"
        assert audit.gap == pytest.approx(gap, abs=1e-4)  # float32's, not bfloat16's
        assert gap < audit.tolerance < 2
    assert made == [1]  # and then kept


def test_a_clear_gap_is_a_difference_in_bfloat16_too(scene, tied_at, tiny_decoder):
    config, _, prompt, answer = scene
    model, other, gap = tied_at(5, 0.7)
    target = tiny_decoder(config, model, dtype=torch.bfloat16)
    auditor = Auditor(target, lambda: tiny_decoder(config, model))
    audit = auditor.compare(prompt, [*answer[:5], other], answer)
    assert (audit.verdict, audit.gap) == ("different", pytest.approx(gap, abs=1e-4))


@pytest.fixture
def quantised(tiny_config, hf_greedy, random_ids):
    """(position, scale) -> (four-bit target, its float32 weights as transformers' model, prompt, answer, other token).

    `other`'s row of the LM head is `scale` times that of the answer's token at that position.
    """
    config = tiny_config("llama3", hidden_size=96, intermediate_size=160)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        weight.data *= 3 if weight.dim() == 2 else 1
    prompt = random_ids(20, seed=6)

    def build(position: int, scale: float):
        target = Decoder.from_weights(config, model.state_dict().items(), max_len=128, quantize="q4")
        answer = decode(Vanilla(target, NoKnobs()), prompt, LIMIT, frozenset()).token_ids
        other = next(i for i in range(272) if i not in answer and i not in prompt)
        changed = copy.deepcopy(model)
        changed.lm_head.weight.data[other] = changed.lm_head.weight.data[answer[position]] * scale
        target = Decoder.from_weights(config, changed.state_dict().items(), max_len=128, quantize="q4")
        with torch.no_grad():
            _put_on_the_grid(changed)
        return target, changed, prompt, answer, other

    return build


@NEEDS_KERNELS
@pytest.mark.parametrize("position", [2, 20])
def test_a_quantised_targets_methods_are_held_against_its_own_arithmetic(position, quantised):
    target, _, prompt, answer, other = quantised(position, 0.98)
    auditor, swapped = Auditor(target, never), [*answer[:position], other]
    own, peers = (auditor.compare(prompt, swapped, answer, by_peer=by_peer) for by_peer in (False, True))
    assert (own.verdict, peers.verdict) == ("different", "numerical")
    assert 0 <= own.tolerance < 0.1 * own.gap
    assert own.gap < peers.tolerance
    target, _, prompt, answer, other = quantised(position, 1.0)
    tied = Auditor(target, never).compare(prompt, [*answer[:position], other], answer)
    assert (tied.verdict, tied.gap) == ("numerical", 0)


@NEEDS_KERNELS
def test_transformers_on_the_four_bit_weights_differs_within_the_rounding_of_activations(
    quantised, random_ids, hf_greedy
):
    target, model, *_ = quantised(0, 1.0)
    auditor, verdicts = Auditor(target, never), []
    for seed in range(8):
        prompt = random_ids(20, seed=seed)
        answer = decode(Vanilla(target, NoKnobs()), prompt, LIMIT, frozenset()).token_ids
        verdicts.append(auditor.compare(prompt, hf_greedy(model, prompt, LIMIT), answer, by_peer=True).verdict)
    assert set(verdicts) == {"identical", "numerical"}


def test_one_stale_row_in_a_cache_is_found(scene, tiny_decoder):
    config, model, prompt, answer = scene
    decoder = tiny_decoder(config, model)

    class Stale(Vanilla):
        """Its fifth step leaves another token's keys and values in one layer's row of the newest position."""

        def observe(self, sequences, outcomes):
            (sequence,) = sequences
            if len(sequence.context) == len(prompt) + 6:
                cache, last = sequence.cache, sequence.length - 1
                cache.keys[1, :, :, last] = cache.keys[1, :, :, 2]
                cache.values[1, :, :, last] = cache.values[1, :, :, 2]

    found = decode(Stale(decoder, NoKnobs()), prompt, LIMIT, frozenset()).token_ids
    right = decode(Vanilla(decoder, NoKnobs()), prompt, LIMIT, frozenset()).token_ids
    audit = Auditor(decoder, never).compare(prompt, found, right)
    assert right == answer
    assert audit.verdict == "different"
    assert 6 <= audit.position < LIMIT
    assert abs(audit.gap) > 100 * audit.tolerance


def test_a_reference_that_cannot_be_had_is_tried_for_once(scene, tiny_decoder):
    """Loading a model for every answer that differs would take longer than the run."""
    config, model, prompt, answer = scene
    tried = []

    def reference():
        tried.append(1)
        raise MemoryError("no room")

    auditor = Auditor(tiny_decoder(config, model, dtype=torch.bfloat16), reference)
    changed = [*answer[:3], (answer[3] + 1) % 272, *answer[4:]]
    for _ in range(3):
        with pytest.raises(MemoryError, match="no room"):
            auditor.compare(prompt, changed, answer)
    assert tried == [1]
