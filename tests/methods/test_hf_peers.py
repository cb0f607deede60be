"""Transformers' two peers on one loaded model.

That they answer as plain greedy `generate` does is asked in `test_contract.py`.
"""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

import methods
from bench.drafting.loop import decode
from bench.drafting.sampling import Sampler
from bench.errors import UserError
from bench.models import hf_peer
from methods.hf_generate import HFGenerate
from methods.hf_prompt_lookup import HFPromptLookup, PromptLookupConfig
from methods.pld import PLD
from tests.methods.peer_scene import scene as scene
from tests.oracle import Clock

NEVER = frozenset()


@pytest.fixture
def lookup(scene):
    return HFPromptLookup(scene[1], PromptLookupConfig(), scene[2])


@pytest.fixture
def options(monkeypatch):
    """(peer) -> the list that fills with what its library's `generate` is told."""

    def watch(peer):
        told, generate = [], peer.model.generate
        monkeypatch.setattr(
            peer.model, "generate", lambda *args, **given: told.append(given) or generate(*args, **given)
        )
        return told

    return watch


def test_peers_of_one_checkpoint_share_one_model_while_they_live(scene, tiny_decoder, tiny_model):
    _, decoder, checkpoint = scene
    plain, lookup = HFGenerate(decoder, None, checkpoint), HFPromptLookup(decoder, PromptLookupConfig(), checkpoint)
    assert plain.model is lookup.model
    lower = tiny_decoder(*tiny_model("tied", faint=True), dtype=torch.bfloat16)
    other = HFGenerate(lower, None, checkpoint)
    assert other.model is not plain.model
    assert {weight.dtype for weight in other.model.parameters()} == {torch.bfloat16}
    renewed = dataclasses.replace(checkpoint, sha256="1" * 64)
    assert HFGenerate(decoder, None, renewed).model is not plain.model
    before = len(hf_peer._loaded)
    del plain, lookup, other
    gc.collect()
    assert len(hf_peer._loaded) < before


def test_prompt_lookup_hands_its_knobs_over_and_plain_generation_has_none(scene, options):
    _, decoder, checkpoint = scene
    peer = HFPromptLookup(decoder, PromptLookupConfig(tokens=7, ngram=3), checkpoint)
    told = options(peer)
    decode(peer, [1, 2, 3], 4, NEVER)
    decode(HFGenerate(decoder, None, checkpoint), [1, 2, 3], 4, NEVER)
    spelled = [
        {key: given.get(key) for key in ("prompt_lookup_num_tokens", "max_matching_ngram_size")} for given in told
    ]
    assert spelled == [
        {"prompt_lookup_num_tokens": 7, "max_matching_ngram_size": 3},
        {"prompt_lookup_num_tokens": None, "max_matching_ngram_size": None},
    ]


def test_prompt_lookup_drafts_ten_tokens_unless_told(scene):
    assert methods.parse("hf-prompt-lookup").config == PromptLookupConfig(tokens=10, ngram=2)
    for knob in ("tokens", "ngram"):
        with pytest.raises(UserError, match=f"{knob}=0 must be at least 1"):
            methods.parse(f"hf-prompt-lookup:{knob}=0")


@pytest.mark.parametrize("peer_class", [HFGenerate, HFPromptLookup])
def test_both_sample_as_the_run_does_and_repeat_by_their_seed(peer_class, scene, options):
    _, decoder, checkpoint = scene
    peer = peer_class(decoder, peer_class.Config(), checkpoint)
    told = options(peer)
    sampler = Sampler(0.7, 0.9, 20)
    answers = []
    for seed in ("a", "a", "b"):
        sampler.seed(seed)
        answers.append(decode(peer, list(range(30)), 20, NEVER, sampler).token_ids)
    assert answers[0] == answers[1] != answers[2]
    for given in told:
        assert {key: given[key] for key in ("do_sample", "temperature", "top_p", "top_k")} == {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 20,
        }


def test_prompt_lookup_accepts_drafts_and_its_first_tokens_are_timed_by_the_first_pass(
    scene, lookup, hf_greedy, random_ids, monkeypatch
):
    """The prompt holds the answer's own beginning twice, so that the first pass gives several tokens at once."""
    start = random_ids(12, seed=1)
    text = start + hf_greedy(scene[0], start, 120)
    repeats = [i for i in range(14, len(text) - 12) if text[i - 2 : i] in [text[j - 2 : j] for j in range(2, i)]]
    clock, passes = Clock(), []
    monkeypatch.setattr("bench.models.hf_peer.now_s", clock)
    put = hf_peer.FirstTokens.put

    def ticking(self, value):
        passes.append(value.numel())
        clock.now += 3 if len(passes) == 2 else 1  # the prompt is handed over first, then what each pass gave
        put(self, value)

    monkeypatch.setattr(hf_peer.FirstTokens, "put", ticking)
    several = 0
    for end in repeats[:10]:
        passes.clear()
        answer = decode(lookup, text[:end], 12, NEVER)
        assert answer.token_ids == hf_greedy(scene[0], text[:end], 12)
        assert passes[0] == end
        assert sum(passes[1:]) == len(answer.token_ids) == 12
        assert (answer.prefill_s, answer.decode_s) == (1 + 3, len(passes) - 2)
        assert answer.decode_passes == len(passes) - 2
        several += passes[1] > 1
    assert several


def repetitive(model, hf_greedy, random_ids) -> list[list[int]]:
    """Prompts with what the model answers in them, so that many drafts are right."""
    start = random_ids(12, seed=1)
    text = start + hf_greedy(model, start, 120)
    return [text[:end] for end in range(14, 110, 5)]


@pytest.mark.parametrize(("tokens", "ngram"), [(10, 2), (4, 1), (6, 3)])
def test_pld_takes_the_librarys_passes_at_equal_knobs(tokens, ngram, scene, hf_greedy, random_ids):
    """The library drafts in the prefill, we after it: with our first token in its prompt, its passes are our steps.

    On the same prompt, tokens per pass differ by less than 2%.
    """
    model, decoder, checkpoint = scene
    peer = HFPromptLookup(decoder, PromptLookupConfig(tokens, ngram), checkpoint)
    ours = PLD(decoder, methods.parse(f"pld:ngram={ngram},tokens={tokens},stop=never").config)
    kept, saved, ours_tokens, steps, their_tokens, passes = 0, 0, 0, 0, 0, 0
    for prompt in repetitive(model, hf_greedy, random_ids):
        found = decode(ours, prompt, 40, NEVER)
        shifted = decode(peer, [*prompt, found.token_ids[0]], 39, NEVER)
        assert shifted.token_ids == found.token_ids[1:]
        assert 1 + shifted.decode_passes == len(found.steps)
        kept += sum(step.accepted for step in found.steps)
        theirs = decode(peer, prompt, 40, NEVER)
        saved += theirs.first_tokens > 1
        ours_tokens += len(found.token_ids) - 1
        steps += len(found.steps)
        their_tokens += len(theirs.token_ids) - theirs.first_tokens
        passes += theirs.decode_passes
    assert kept > 50
    assert saved
    assert their_tokens / passes == pytest.approx(ours_tokens / steps, rel=0.02)


def test_pld_takes_the_librarys_passes_to_an_end_token(scene, lookup, hf_greedy, random_ids):
    """The library cuts a draft in front of an end token, which is then the pass's own token."""
    model, decoder, _ = scene
    ours = PLD(decoder, methods.parse("pld:ngram=2,tokens=10,stop=never").config)
    drafted = 0
    for prompt in repetitive(model, hf_greedy, random_ids):
        answer = decode(ours, prompt, 40, NEVER)
        accepted = {token for step in answer.steps for token in step.emitted[: step.accepted]}
        for end in {*accepted, answer.token_ids[20]}:
            eos = frozenset({end})
            found = decode(ours, prompt, 40, eos)
            if len(found.token_ids) < 2:
                continue
            shifted = decode(lookup, [*prompt, found.token_ids[0]], 39, eos)
            assert shifted.token_ids == found.token_ids[1:]
            last = found.steps[-1]
            assert 1 + shifted.decode_passes == len(found.steps)
            drafted += found.token_ids[-1] == end and last.accepted == len(last.emitted)
    assert drafted


def test_only_a_peer_that_drafts_counts_its_passes(scene, lookup):
    _, decoder, checkpoint = scene
    assert decode(HFGenerate(decoder, None, checkpoint), [1, 2, 3], 4, NEVER).decode_passes is None
    assert decode(lookup, [1, 2, 3], 1, NEVER).decode_passes == 0


@pytest.mark.parametrize(
    ("tokens", "limit", "eos", "kept"),
    [
        ([1, 2, 3], 3, set(), [1, 2, 3]),
        ([1, 2, 3, 4], 3, set(), [1, 2, 3]),
        ([1, 2, 3, 4], 4, {2}, [1, 2]),
        ([1, 2, 3, 4], 2, {3}, [1, 2]),
        ([1, 2, 3, 4], 9, {4, 1}, [1]),
        ([], 3, {1}, []),
    ],
)
def test_what_a_library_says_past_limit_or_end_token_is_not_kept(tokens, limit, eos, kept):
    assert hf_peer.kept(tokens, limit, frozenset(eos)) == kept
