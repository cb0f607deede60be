"""Medusa's heads, their files, trees and draws, against the published formula and layout."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from bench.drafting.costs import Costs
from bench.drafting.loop import decode, open_sequence
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import NO_DRAFT, Draft
from bench.drafting.tree_choice import MISS, RankRecord, choose_tree, predict
from methods.kangaroo.adapter import Adapter, AdapterConfig
from methods.medusa.heads import Heads, HeadsConfig
from methods.medusa.method import PUBLISHED, Medusa, MedusaConfig

NEVER = frozenset()


@pytest.fixture
def setting(tiny_model, tiny_decoder):
    """(hf_model, our decoder)."""
    config, model = tiny_model("tied", faint=True)
    return model, tiny_decoder(config, model, max_len=128)


@pytest.fixture
def medusa(setting, tiny_heads):
    """(options of the heads, knobs) -> the method."""

    def build(options=None, **knobs):
        return Medusa(setting[1], MedusaConfig(weights=str(tiny_heads(setting[0], **(options or {}))), **knobs))

    return build


def last_state(model, tokens):
    """Transformers' state behind the final norm, [d]."""
    with torch.inference_mode():
        return model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0, -1]


def proposal(method, prompt, room=10, sampler=None):
    (draft,) = method.propose([open_sequence(method, prompt, sampler)], [room])
    return draft


# --- size ------------------------------------------------------------------------------------------------------------


def test_sizes_on_vicuna_7b_are_the_papers():
    """591M against 67M extra parameters (Kangaroo, table 1): 88.7% fewer."""
    with torch.device("meta"):
        heads = Heads(HeadsConfig(4096, 4, 32000))
        adapter = Adapter(AdapterConfig(4096, 32, 1e-6))
    medusa = sum(p.numel() for p in heads.parameters())
    kangaroo = sum(p.numel() for p in adapter.parameters())
    assert round(medusa / 1e6, 1) == 591.4
    assert round(kangaroo / 1e6, 1) == 67.1
    assert round(1 - kangaroo / medusa, 3) == 0.887


def test_extra_parameters_are_those_of_the_heads_in_use(medusa):
    d, vocab = 48, 272
    assert medusa(tree="chain").extra_parameters == 3 * (d * d + d + d * vocab)
    assert medusa(tree="chain", heads=2).extra_parameters == 2 * (d * d + d + d * vocab)
    assert medusa({"useful": False}, tree="chain").extra_parameters == 3 * (3 * d * d + d)


# --- what is drafted -------------------------------------------------------------------------------------------------


def test_published_heads_draft_by_the_papers_formula(medusa, setting, random_ids):
    """x + SiLU(W x + b), then the head's own LM head; on transformers' state before the newest token."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "weight": torch.randn(3, 48, 48, generator=generator) / 7,
        "bias": torch.randn(3, 48, generator=generator),
    }
    method = medusa({"tensors": tensors}, tree="0/1/0-0/1-2/0-0-3")
    lm_heads = method.heads.lm_heads
    prompt = random_ids(15, seed=6)
    x = last_state(setting[0], prompt)
    best = [
        (lm_heads[i] @ (x + F.silu(tensors["weight"][i] @ x + tensors["bias"][i]))).topk(4).indices.tolist()
        for i in range(3)
    ]
    draft = proposal(method, prompt)
    assert list(draft.tokens) == [best[0][0], best[0][1], best[1][0], best[1][2], best[2][3]]
    assert draft.parents == [-1, -1, 0, 1, 2]


def test_heads_that_read_the_newest_token_share_the_targets_lm_head(medusa, setting, random_ids):
    model, _ = setting
    method = medusa({"useful": False}, tree="chain")
    prompt = random_ids(15, seed=7)
    draft = proposal(method, prompt)
    embedding = model.model.embed_tokens.weight[open_sequence(method, prompt).context[-1]].detach()
    x = torch.cat((last_state(model, prompt), model.model.norm(embedding)))
    expected = []
    for i in range(3):
        y = method.heads.input[i] @ x
        y = y + F.silu(method.heads.weight[i] @ y + method.heads.bias[i])
        expected.append(int((model.lm_head.weight @ y).argmax()))
    assert list(draft.tokens) == expected


def test_a_cut_vocabulary_drafts_only_its_tokens(medusa, random_ids):
    ranking = list(range(60, 200))
    for useful in (True, False):
        whole = medusa({"useful": useful, "ranking": ranking}, tree="0/1/2/3")
        cut = medusa({"useful": useful, "ranking": ranking}, tree="0/1/2/3", draft_vocab=30)
        prompt = random_ids(9, seed=8)
        assert set(proposal(cut, prompt).tokens) <= set(ranking[:30])
        opened = open_sequence(whole, prompt)
        scores = whole._logits(whole.fast, [opened.notes.state], [opened.context[-1]])[0, 0]
        found = scores[list(proposal(cut, prompt).tokens)]
        torch.testing.assert_close(found, scores[60:90].topk(4).values)


@pytest.mark.parametrize("room", [0, 1, 2, 5])
def test_no_path_is_longer_than_the_room(room, medusa, random_ids):
    draft = proposal(medusa(tree="0/1/0-0/0-0-0"), random_ids(5), room)
    assert len(draft.tokens) == {0: 0, 1: 2, 2: 3, 5: 4}[room]


# --- sampling --------------------------------------------------------------------------------------------------------


def test_drawn_drafts_come_with_their_distribution(medusa, random_ids):
    method = medusa({"ranking": list(range(60, 200))}, tree="0/1/0-0", drafts="sampled", draft_vocab=100)
    sampler = Sampler(0.8, top_p=0.9)
    seen = set()
    for seed in range(30):
        sampler.seed(str(seed))
        draft = proposal(method, random_ids(9, seed=8), sampler=sampler)
        assert len(draft.drawn) == 3
        assert draft.drawn[0] is draft.drawn[1] or torch.equal(draft.drawn[0], draft.drawn[1])
        for token, q in zip(draft.tokens[:1] + draft.tokens[2:], (draft.drawn[0], draft.drawn[2]), strict=True):
            assert q.shape == (272,)
            assert float(q.sum()) == pytest.approx(1, abs=1e-5)
            assert float(q[token]) > 0
        assert draft.tokens[0] != draft.tokens[1]
        seen.add(tuple(draft.tokens))
    assert len(seen) > 3


def test_chains_are_drawn_and_trees_are_not_unless_asked(medusa):
    assert medusa(tree="chain").config.drafts == "sampled"
    assert medusa(tree="0/1").config.drafts == "top"
    assert medusa(tree="0/1", drafts="sampled").config.drafts == "sampled"


@pytest.mark.parametrize("draft", [NO_DRAFT, Draft([0])], ids=["prompt", "step"])
def test_typical_acceptance_goes_on_from_the_most_probable_token_as_in_the_authors_code(medusa, draft):
    """Or, with first=sample, from one drawn from the target's distribution (here 0.5, 0.3, 0.2)."""
    sampler = Sampler(1.0)
    logits = torch.full((len(draft.tokens) + 1, 272), -1e9)
    logits[:, :3] = torch.tensor([0.5, 0.3, 0.2]).log()
    authors, drawn = (medusa(tree="chain", accept="typical", **knobs) for knobs in ({}, {"first": "sample"}))
    assert (authors.config.first, drawn.config.first, medusa(tree="chain").config.first) == ("argmax", "sample", "")
    found = {}
    for method in (authors, drawn):
        results = [method.verification(sampler)(draft, logits) for _ in range(300)]
        assert {tuple(accepted) for accepted, _ in results} == {tuple(range(len(draft.tokens)))}
        found[method] = [bonus for _, bonus in results]
    assert set(found[authors]) == {0}
    shares = [found[drawn].count(token) / 300 for token in range(3)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.1)


def test_typical_acceptance_is_not_called_lossless(medusa):
    assert medusa(tree="chain").lossless
    method = medusa(tree="chain", accept="typical")
    assert not method.lossless
    assert method.config.drafts == "top"


# --- trees -----------------------------------------------------------------------------------------------------------


def test_the_papers_tree_has_its_63_nodes(medusa):
    method = medusa({"heads": 4}, tree=PUBLISHED)
    assert len(method.parents) == 63
    depths = [depth + 1 for depth in method.depths]
    assert [depths.count(depth) for depth in (1, 2, 3, 4)] == [10, 28, 23, 2]
    assert max(medusa(tree=PUBLISHED).depths) == 2  # three heads cut it


def test_without_a_record_of_ranks_the_papers_tree_is_taken(medusa):
    assert medusa({"heads": 4}).config.tree == medusa({"heads": 4}, tree=PUBLISHED).config.tree


def test_a_tree_may_come_from_a_file_and_is_recorded_spelled_out(medusa, tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps([[1], [0], [0, 2]]))
    method = medusa(tree=str(file))
    assert method.config.tree == "0/1/0-2"
    again = medusa(tree=method.config.tree)
    assert (again.parents, again.ranks) == (method.parents, method.ranks) == ([-1, -1, 0], [0, 1, 2])


def test_where_no_draft_pays_none_is_made(medusa, random_ids):
    options = {"ranks": (torch.zeros(20, 3), [20], [0])}
    method = medusa(options, costs="0/0+0+0/1:1/2:3/3:5/4:7")
    assert (method.config.tree, method.measured) == ("auto", {"tree": "none"})
    assert {step.drafted for step in decode(method, random_ids(7), 9, NEVER).steps} == {0}
    assert medusa(options, tree="none").config.tree == "none"


def test_auto_chooses_by_ranks_and_costs_and_says_what_it_expects(medusa, random_ids):
    generator = torch.Generator().manual_seed(2)
    ranks = torch.randint(0, 3, (120, 3), generator=generator)
    ranks[torch.rand(120, 3, generator=generator) < 0.4] = MISS
    options = {"ranks": (ranks, [60, 60], [0, 1])}
    costs = Costs(0.0, (0.02, 0.03, 0.04), tuple((n, 1 + 0.05 * (n - 1)) for n in range(1, 20)))
    record = RankRecord(ranks.to(torch.uint8).numpy(), *map(torch.Tensor.numpy, map(torch.tensor, ([60, 60], [0, 1]))))
    expected = choose_tree(record, 3, costs, 60)
    method = medusa(options, costs=str(costs))
    paths = ["-".join(map(str, path)) for path in expected.paths]
    assert sorted(method.measured["tree"].split("/")) == sorted(paths)
    assert (method.config.tree, method.config.costs) == ("auto", str(costs))
    assert "costs" not in method.measured  # they were given
    assert method.notes["predicted"]["tree"] == expected.prediction()
    chains = [predict(record, [(0,) * d for d in range(1, n + 1)], costs) for n in (1, 2, 3)]
    best = max(chains, key=lambda chain: chain.speedup)
    assert method.notes["predicted"]["chain"] == best.prediction()
    assert medusa(options, tree="chain", costs=str(costs)).measured["tree"] == "/".join(
        "-".join("0" * n) for n in range(1, len(best.paths) + 1)
    )
    assert medusa(options, tree="chain", heads=3).config.tree == "0/0-0/0-0-0"
    assert "predicted" not in medusa(options, tree=method.measured["tree"]).notes
    measured = medusa(options, tree="auto")
    assert len(Costs.parse(measured.measured["costs"]).draft) == 3
    assert medusa(options, costs=measured.measured["costs"]).measured["tree"] == measured.measured["tree"]
    decode(measured, random_ids(7), 20, NEVER)
