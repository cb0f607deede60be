"""What every method promises, asked of every method that `methods.names()` finds: a new file inherits these tests.

Weights of a method that has any, and the knobs to test it with, come from `tests/methods/tiny_weights/NAME.py`: its
`write(folder, hf_model, **options)` and `variants(write)`. A method without weights is tested with each of its presets.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import shutil

import pytest

import methods
from bench.drafting.batch import Request, Slots, decode_batch
from bench.drafting.loop import decode
from bench.drafting.method import Answer, Method, Peer, SpeculativeMethod
from bench.engine.cache import KVCache
from bench.models import conversation_files, loading
from bench.models.checkpoints import Checkpoint
from tests.own_answers import write_conversations

LIMITS = (1, 2, 7, 40)
KINDS = ("tied", "qwen3")
# Numbers of drafts that some step accepts with the tiny weights of a method; of others 0 to 3.
LEAST_ACCEPTED = {"dspark": {0, 1, 3}, "eagle": {0, 1, 2}, "eagle3": {1, 2, 3}}


def module_of(name: str) -> str:
    """The module that writes a method's weights, if it has any."""
    return f"tests.methods.tiny_weights.{name.replace('-', '_')}"


WEIGHTED = [name for name in methods.names() if importlib.util.find_spec(module_of(name))]


@pytest.fixture(params=KINDS)
def setting(request, tiny_model, tiny_decoder, tiny_checkpoint):
    """(hf_model, our decoder, checkpoint) on which drafts are often right."""
    config, model = tiny_model(request.param, faint=True)
    return model, tiny_decoder(config, model, max_len=64), tiny_checkpoint(request.param, faint=True)


@pytest.fixture(autouse=True)
def own_answers(setting, monkeypatch, tmp_path, hf_greedy, random_ids):
    """Conversations that come with the project for the model: its answers to the prompts, and to others."""
    model, decoder, checkpoint = setting
    asked = [*prompts(random_ids), *(random_ids(12, seed=seed) for seed in range(50, 53))]
    rows = [[*prompt, *hf_greedy(model, prompt, 40)] for prompt in asked]
    write_conversations(tmp_path / "data", checkpoint, rows, [len(prompt) for prompt in asked])
    monkeypatch.setattr(conversation_files, "FOLDER", tmp_path / "data")
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(loading._loaded_from, decoder, checkpoint)


@pytest.fixture
def build(setting, tiny_weights):
    """name -> the method, or its variants, on the setting's decoder."""
    model, decoder, checkpoint = setting

    def make(name: str) -> list[Method]:
        method = methods.load(name)
        asked = [{}, *method.presets.values()]
        if "decontaminate" in {knob for knob, *_ in methods.knobs(method)}:
            asked = [knobs | {"decontaminate": "mini"} for knobs in asked]
        if name in WEIGHTED:
            tiny = importlib.import_module(module_of(name))
            asked = tiny.variants(functools.partial(tiny_weights, name, model))
        extra = [checkpoint] if issubclass(method, Peer) else []
        return [method(decoder, method.Config(**knobs), *extra) for knobs in asked]

    return make


# A peer with an arithmetic of its own promises none of this.
@pytest.fixture(params=[name for name in methods.names() if methods.load(name).lossless is not False])
def name(request):
    return request.param


def prompts(random_ids):
    return [random_ids(12, seed=1), random_ids(1, seed=2)]


def check_counts(method: Method, answer: Answer, eos: frozenset[int] = frozenset()) -> None:
    """Steps add up to the answer: its first token belongs to none, every other one to the step that emitted it."""
    if isinstance(method, Peer):
        return
    emitted = [len(step.emitted) for step in answer.steps]
    assert sum(emitted) == len(answer.token_ids) - 1
    assert list(itertools.chain(*(step.emitted for step in answer.steps))) == answer.token_ids[1:]
    for i, step in enumerate(answer.steps):
        assert 0 <= step.accepted <= step.drafted
        assert len(step.emitted) >= 1
        # At an EOS among the drafts nothing is kept behind it, and so no bonus.
        may_be_cut = i == len(answer.steps) - 1 and step.emitted[-1] in eos
        assert len(step.emitted) - step.accepted in ((0, 1) if may_be_cut else (1,))
        assert step.draft_s >= 0


def test_greedy_output_is_transformers(name, build, setting, hf_greedy, random_ids):
    for method in build(name):
        assert method.lossless
        for prompt, limit in itertools.product(prompts(random_ids), LIMITS):
            answer = decode(method, prompt, limit, frozenset())
            assert answer.token_ids == hf_greedy(setting[0], prompt, limit)
            assert answer.finish(frozenset()) == "length"
            check_counts(method, answer)


def test_an_answer_ends_with_its_first_eos(name, build, setting, hf_greedy, random_ids):
    for method in build(name):
        for prompt in prompts(random_ids):
            free = hf_greedy(setting[0], prompt, 40)
            for token in list(dict.fromkeys(free))[:6]:  # wherever it ends: first token, draft, bonus
                eos = frozenset({token, 271})
                answer = decode(method, prompt, 40, eos)
                assert answer.token_ids == free[: free.index(token) + 1] == hf_greedy(setting[0], prompt, 40, eos)
                assert answer.finish(eos) == "eos"
                check_counts(method, answer, eos)


def test_in_a_batch_each_sequence_gets_what_it_gets_alone(name, build, setting, hf_greedy, random_ids):
    """More prompts than slots, of different lengths and limits, so that a slot is refilled while others go on."""
    asked = [(random_ids(length, seed=length), limit) for length, limit in ((12, 9), (1, 20), (5, 1), (9, 14), (3, 6))]
    expected = [hf_greedy(setting[0], prompt, limit) for prompt, limit in asked]
    eos = frozenset(expected[1][4:5])  # the longest one ends early, maybe among its drafts
    expected = [hf_greedy(setting[0], prompt, limit, eos) for prompt, limit in asked]
    for method in build(name):
        if isinstance(method, Peer):
            continue
        batch = decode_batch(method, [Request(*one) for one in asked], Slots(method.target, 3), eos)
        assert [served.answer.token_ids for served in batch.served] == expected
        for served in batch.served:
            check_counts(method, served.answer, eos)


def test_nothing_is_left_of_an_earlier_question(name, build, setting, hf_greedy, random_ids):
    first, second = random_ids(23, seed=3), random_ids(12, seed=1)
    for method, fresh in zip(build(name), build(name), strict=True):
        decode(method, first, 20, frozenset())
        decode(method, first, 3, frozenset())  # ends in the middle of its drafting
        if isinstance(method, SpeculativeMethod):
            assert method.memory in ("question", "run") or method.memory.startswith("corpus:")
            if method.memory == "run":  # what it may keep until the round is over
                method.forget()
        again, alone = decode(method, second, 20, frozenset()), decode(fresh, second, 20, frozenset())
        assert again.token_ids == alone.token_ids == hf_greedy(setting[0], second, 20)
        steps = [[(s.emitted, s.drafted, s.accepted) for s in answer.steps] for answer in (again, alone)]
        assert steps[0] == steps[1]


def test_the_context_may_be_used_up(name, build, setting, hf_greedy, random_ids):
    model, decoder, _ = setting
    prompt = random_ids(decoder.max_len - 25, seed=5)
    for method in build(name):
        assert decode(method, prompt, 25, frozenset()).token_ids == hf_greedy(model, prompt, 25)


def test_times_are_taken_apart(name, build, random_ids):
    for method in build(name):
        answer = decode(method, random_ids(12, seed=1), 7, frozenset())
        assert answer.prefill_s > 0
        assert answer.decode_s > 0
        assert sum(step.draft_s for step in answer.steps) <= answer.decode_s


@pytest.mark.parametrize("speculative", WEIGHTED)
def test_drafts_are_sometimes_right_and_sometimes_wrong(speculative, build, setting, random_ids):
    """Otherwise the tests above would show little."""
    accepted = set()
    for method in build(speculative)[:3]:
        answers = [decode(method, prompt, 40, frozenset()) for prompt in prompts(random_ids)]
        accepted |= {step.accepted for answer in answers for step in answer.steps}
    assert LEAST_ACCEPTED.get(speculative, {0, 1, 2, 3}) <= accepted


@pytest.mark.parametrize(
    ("speculative", "variant"),
    [("kangaroo", 4), ("medusa", 1), ("medusa", 2), ("eagle", 1), ("eagle", 3), ("hydra", 1)],
)
def test_trees_are_accepted_on_other_than_first_branches(speculative, variant, build, setting, random_ids, monkeypatch):
    """Otherwise the cache would never have been moved."""
    method = build(speculative)[variant]
    kept = []
    keep_path = KVCache.keep_path
    monkeypatch.setattr(
        KVCache, "keep_path", lambda self, start, path: kept.append(path) or keep_path(self, start, path)
    )
    for prompt in prompts(random_ids):
        decode(method, prompt, 40, frozenset())
    assert [path for path in kept if path != list(range(len(path)))]


@pytest.mark.parametrize("peer_name", ["hf-generate", "hf-prompt-lookup"])
def test_the_peer_is_greedy_whatever_the_checkpoint_prefers(peer_name, setting, hf_greedy, random_ids, tmp_path):
    """A checkpoint may come with sampling, a repetition penalty or its own limits; vanilla knows none of them."""
    model, decoder, checkpoint = setting
    shutil.copytree(checkpoint.folder, tmp_path / "model")
    wishes = {"do_sample": True, "temperature": 0.3, "top_k": 5, "repetition_penalty": 1.8, "no_repeat_ngram_size": 2}
    wishes |= {"min_new_tokens": 10, "eos_token_id": [5]}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(wishes))
    method = methods.load(peer_name)
    peer = method(decoder, method.Config(), Checkpoint("wishes", tmp_path / "model", "0" * 64, None))
    prompt = random_ids(12, seed=1)
    free = hf_greedy(model, prompt, 40)
    assert decode(peer, prompt, 40, frozenset()).token_ids == free
    eos = frozenset({free[4]})
    assert decode(peer, prompt, 40, eos).token_ids == free[: free.index(free[4]) + 1]
