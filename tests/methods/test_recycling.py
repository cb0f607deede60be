"""Token Recycling: the authors' tree, the matrix against brute force, memory, and what useless successors cost."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import methods
from bench.drafting.knobs import Costs
from bench.drafting.loop import decode
from bench.drafting.method import SpeculativeMethod
from bench.drafting.sampling import Sampler, most_probable
from bench.drafting.tree import tree_of
from bench.errors import UserError
from methods import recycling
from methods.recycling import Recycling, RecyclingConfig, authors_tree, recycle

NEVER = frozenset()
CHEAP = "0.000/0.000/1:1.000/2:1.010/16:1.100/64:1.400/96:1.600"
PAPER = Recycling.presets["paper"]
# The ranks on the path to each node, as the authors list them in tree_template_.py, version 2.2.2.
PATHS = """
0 1 2 3 4 5 6 7
00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70
000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500
0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000
00000 00001 00002 00010 00020 00100 01000 10000
000000 000001 000100
"""


@pytest.fixture
def build(tiny_model, tiny_decoder):
    """knobs -> the method on a model on which drafts are often right."""
    config, model = tiny_model("tied", faint=True)
    decoder = tiny_decoder(config, model, max_len=192)
    return lambda **knobs: Recycling(decoder, RecyclingConfig(**{"costs": CHEAP, **knobs}))


def paths_of(draft) -> list[tuple[int, ...]]:
    """The tokens on the path to each node."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


class Numbered(dict):
    """Every token has successors of its own: 8 t + 1, 8 t + 2, .."""

    def get(self, token, default=None):
        return [8 * token + 1 + rank for rank in range(8)]


def test_the_published_tree_is_the_authors(build):
    draft = authors_tree(Numbered(), 0, 99)
    wanted = set()
    for ranks in PATHS.split():
        token = 0
        wanted.add(tuple(token := 8 * token + 1 + int(rank) for rank in ranks))
    assert len(draft.tokens) == len(wanted) == 80
    assert set(paths_of(draft)) == wanted
    assert Counter(tree_of(draft.parents).depths[1:]) == {1: 8, 2: 21, 3: 25, 4: 15, 5: 8, 6: 3}
    assert build(**PAPER).widest == 81
    assert max(tree_of(authors_tree(Numbered(), 0, 2).parents).depths) == 2
    assert not authors_tree(Numbered(), 0, 0).tokens


def test_tokens_without_successors_have_token_0_and_equal_siblings_are_one():
    assert paths_of(authors_tree({}, 5, 2)) == [(0,), (0, 0)]
    matrix = {5: [9, 9, 0, 1, 1, 1, 1, 1], 9: [5, 4, 3, 2, 1, 6, 7, 8]}
    paths = paths_of(authors_tree(matrix, 5, 2))
    assert paths[:3] == [(9,), (0,), (1,)]
    assert set(paths[3:]) == {*((9, token) for token in (5, 4, 3, 2, 1, 6, 7, 8)), (0, 0), (1, 0)}


def test_of_equal_tokens_the_last_row_counts():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    matrix = {4: [1], 7: [2]}
    recycle(matrix, [7, 3, 7], logits)
    assert matrix == {4: [1], 3: logits[1].topk(8).indices.tolist(), 7: logits[2].topk(8).indices.tolist()}


@pytest.mark.parametrize("vocabulary", [5, 8, 64, 272, 1000, 4096])
def test_the_most_probable_tokens_are_those_of_a_sort(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    ranks = torch.arange(vocabulary)
    shuffled = [torch.randperm(vocabulary, generator=generator) for _ in range(20)]
    logits = torch.stack([ranks, ranks.flip(0), *shuffled]).float() - 1e6  # the largest ones in one block, then in many
    assert torch.equal(most_probable(logits, 8), logits.sort(descending=True).indices[:, :8])


@pytest.mark.parametrize("knobs", [{}, {"prompt": False}, PAPER])
def test_the_matrix_has_the_newest_ranking_of_every_row(knobs, build, tiny_model, hf_logits, random_ids, monkeypatch):
    """Against a dict that is filled row by row with transformers' rankings."""
    method, (_, model) = build(**knobs), tiny_model("tied", faint=True)
    prompt = random_ids(14, seed=3) + random_ids(5, seed=3)  # some tokens occur twice
    matrix, drafted = {}, 0

    def rank(context):
        return hf_logits(model, context)[-1].topk(8).indices.tolist()

    if knobs.get("prompt", True):
        for end in range(1, len(prompt) + 1):
            matrix[prompt[end - 1]] = rank(prompt[:end])
    observe = Recycling.observe

    def checked(self, sequences, outcomes):
        nonlocal drafted
        (sequence,), (outcome,) = sequences, outcomes
        assert sequence.notes.matrix == matrix
        before = sequence.context[: -len(outcome.emitted)]
        for path in ((), *paths_of(outcome.draft)):
            matrix[[before[-1], *path][-1]] = rank([*before, *path])
        drafted += len(outcome.draft.tokens)
        observe(self, sequences, outcomes)
        assert sequence.notes.matrix == matrix

    monkeypatch.setattr(Recycling, "observe", checked)
    answer = decode(method, prompt, 10, NEVER)
    assert drafted > 10
    assert any(step.accepted for step in answer.steps)


def counters(answer):
    return [(step.drafted, step.accepted, step.emitted) for step in answer.steps]


def test_a_question_is_forgotten_unless_memory_is_run(build, random_ids):
    prompt = random_ids(12, seed=1)
    forgetful, keeping = build(), build(**PAPER)
    assert (forgetful.memory, keeping.memory) == ("question", "run")
    first = counters(decode(forgetful, prompt, 30, NEVER))
    assert counters(decode(forgetful, prompt, 30, NEVER)) == first
    first = counters(decode(keeping, prompt, 30, NEVER))
    again = counters(decode(keeping, prompt, 30, NEVER))
    assert len(again) < len(first)  # drafted from its own answer
    keeping.forget()
    assert counters(decode(keeping, prompt, 30, NEVER)) == first


def test_useless_successors_verify_few_rows(build, random_ids, monkeypatch, hf_greedy, tiny_model):
    """Successors that are always wrong: the answer never has these tokens."""
    costs = Costs.parse("0.000/0.000/1:1.000/2:1.100/4:1.300/8:1.800/16:3.000")
    prompt, model = random_ids(12, seed=1), tiny_model("tied", faint=True)[1]
    wanted = hf_greedy(model, prompt, 120)
    unused = [token for token in range(272) if token not in wanted][:8]
    monkeypatch.setattr(
        recycling, "recycle", lambda matrix, tokens, logits: matrix.update(dict.fromkeys(tokens, unused))
    )
    answer = decode(build(costs=str(costs)), prompt, 120, NEVER)
    assert answer.token_ids == wanted
    assert 0 < sum(costs.verifying(1 + step.drafted) - 1 for step in answer.steps) <= 0.5 + 0.02 * 120
    assert sum(step.drafted > 0 for step in answer.steps[60:]) < 20


def test_useful_successors_are_drafted(build, random_ids):
    answer = decode(build(), random_ids(12, seed=1), 120, NEVER)
    assert sum(step.accepted for step in answer.steps) > 30


def test_samples_near_temperature_0_are_the_greedy_answer(build, hf_greedy, tiny_model, random_ids):
    model, prompt = tiny_model("tied", faint=True)[1], random_ids(12, seed=1)
    for knobs in ({}, PAPER):
        assert decode(build(**knobs), prompt, 30, NEVER, Sampler(1e-4)).token_ids == hf_greedy(model, prompt, 30)


def test_costs_are_measured_once_and_a_repeated_run_decides_alike(build, random_ids):
    method, prompt = build(costs=""), random_ids(12, seed=1)
    assert isinstance(method, SpeculativeMethod)
    again = Recycling(method.target, Recycling.repeated(method.config, method.measured))
    assert str(again.costs) == str(method.costs)
    assert again.measured == build(**PAPER).measured == {}
    assert counters(decode(again, prompt, 30, NEVER)) == counters(decode(method, prompt, 30, NEVER))


@pytest.mark.parametrize(
    "knob", ["nodes=0", "nodes=128", "memory=always", "stop=best", "costs=1/2", "prompt=perhaps", "tree=gain"]
)
def test_knobs_out_of_range_are_refused(knob):
    with pytest.raises(UserError, match=knob.partition("=")[0]):
        methods.parse(f"recycling:{knob}")
