"""Medusa's files: heads and trees are read back, and what is wrong with them or with knobs is told in a sentence."""

from __future__ import annotations

import pytest
import torch

import methods
from bench.drafting.loop import decode
from bench.drafting.tree_choice import RankRecord
from bench.drafting.tree_files import read_tree
from bench.errors import UserError
from methods.medusa.heads import load_heads, save_heads
from methods.medusa.method import PUBLISHED, Medusa, MedusaConfig
from tests.methods.test_medusa import NEVER, proposal
from tests.methods.test_medusa import medusa as medusa
from tests.methods.test_medusa import setting as setting


@pytest.mark.parametrize("heads", [1, 3, 5])
def test_the_authors_file_holds_as_many_heads_as_it_holds(heads, setting, tiny_heads, medusa, random_ids):
    """Their config.json says 2, whatever the file has."""
    theirs = medusa({"authors": True, "heads": heads}, tree="chain")
    ours = medusa({"heads": heads}, tree="chain")
    prompt = random_ids(12, seed=1)
    assert theirs.config.heads == heads
    assert list(proposal(theirs, prompt).tokens) == list(proposal(ours, prompt).tokens)


def test_first_heads_alone_may_be_used(medusa, random_ids):
    prompt = random_ids(12, seed=1)
    all_heads = proposal(medusa({"authors": True, "heads": 5}, tree="chain"), prompt).tokens
    assert proposal(medusa({"authors": True, "heads": 5}, tree="chain", heads=2), prompt).tokens == all_heads[:2]


def test_saved_heads_are_read_back(setting, tiny_heads, tmp_path):
    heads, _, _ = load_heads(tiny_heads(setting[0], useful=False), setting[1])
    record = RankRecord(*(torch.tensor(v, dtype=t).numpy() for v, t in (
        ([[0, 1, 255], [255, 255, 255]], torch.uint8), ([2], torch.int32), ([4], torch.int8))))  # fmt: skip
    save_heads(tmp_path, heads, torch.tensor([5, 3, 9]), record)
    again, ranking, found = load_heads(tmp_path, setting[1])
    assert again.config == heads.config
    for (name, one), (_, other) in zip(heads.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one.half().float(), other), name
    assert ranking.tolist() == [5, 3, 9]
    assert (found.ranks.tolist(), found.lengths.tolist()) == ([[0, 1, 255], [255, 255, 255]], [2])


def broken(tiny_heads, model, **options):
    return str(tiny_heads(model, **options))


WRONG = {
    "an absent folder": (lambda t, m: "/nowhere/at-all", {}, "/nowhere/at-all is neither a folder nor"),
    "a missing tensor": (lambda t, m: broken(t, m, tensors={"bias": None}), {}, "bias is missing"),
    "a wrong shape": (lambda t, m: broken(t, m, tensors={"bias": torch.zeros(3, 7)}), {}, "(3, 7), expected (3, 48)"),
    "another hidden size": (lambda t, m: broken(t, m, changes={"hidden_size": 64}), {}, "hidden size is 64"),
    "another vocabulary": (
        lambda t, m: broken(t, m, changes={"vocab_size": 99}),
        {},
        "LM heads of 99 tokens, but is for 272",
    ),
    "an odd configuration": (lambda t, m: broken(t, m, changes={"colour": 3}), {}, "heads.colour: "),
    "no such layout": (
        lambda t, m: broken(t, m, authors=True, tensors={"1.0.linear.bias": None}),
        {},
        "1.0.linear.bias",
    ),
    "ranks that do not fit": (
        lambda t, m: broken(t, m, ranks=(torch.zeros(5, 3), [4], [0])),
        {},
        "ranks, rank_lengths, rank_kinds in",
    ),
    "too many heads": (lambda t, m: broken(t, m), {"heads": 9}, "heads=9 asked for"),
    "a tree too deep": (lambda t, m: broken(t, m), {"tree": "0/0-0/0-0-0/0-0-0-0"}, "4 drafts deep"),
    "a tree of ranks beyond the vocabulary": (
        lambda t, m: broken(t, m),
        {"tree": "0/272"},
        "tree=0/272 has rank 272, but heads rank 272 tokens",
    ),
    "auto without ranks": (lambda t, m: broken(t, m), {"tree": "auto"}, "tree=auto needs to know"),
    "more vocabulary than ranked": (
        lambda t, m: broken(t, m, ranking=[1, 2, 3]),
        {"draft_vocab": 9},
        "more than the 3 tokens ranked",
    ),
}


@pytest.mark.parametrize(("folder", "knobs", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_in_a_sentence(folder, knobs, said, setting, tiny_heads):
    model, decoder = setting
    with pytest.raises(UserError) as error:
        Medusa(decoder, MedusaConfig(weights=folder(tiny_heads, model), **knobs))
    assert said in str(error.value)


NAN = torch.zeros(3, 48)
NAN[1, 7] = float("nan")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensors": {"bias": NAN}}, "bias has NaN or infinite values"),
        ({"tensors": {"weight": torch.ones(3, 48, 48, dtype=torch.int8)}}, "weight has torch.int8"),
        ({"tensors": {"momentum": torch.ones(3)}}, "it also has momentum"),
        ({"authors": True, "tensors": {"0.0.linear.bias": NAN[1]}}, "0.0.linear.bias has NaN or infinite values"),
        ({"authors": True, "tensors": {"0.0.linear.bias": torch.zeros(7)}}, "do not all have one shape"),
        ({"authors": True, "tensors": {f"{i}.1.weight": torch.zeros(272) for i in range(3)}}, "do not all have one"),
        ({"ranking": [3, 272]}, "token_ranking in"),
        ({"changes": {"heads": "three"}}, "heads.heads: "),
        ({"changes": {"heads": -3}}, "heads.heads: "),
        ({"changes": {"heads": 3.0}}, "heads.heads: "),
        ({"changes": {"heads": 10**12}}, "heads.heads: "),
        ({"changes": {"heads": 4}}, "weight has shape (3, 48, 48), expected (4, 48, 48)"),
        ({"changes": {"draft_vocab": 300}}, "its draft_vocab is 300, but tiny has 272 tokens"),
        ({"changes": {"draft_vocab": 30}}, "LM heads of 272 tokens, but is for 30"),
        ({"ranks": (torch.zeros(4, 2), [4], [0])}, "do not fit the heads"),
        ({"ranks": (torch.zeros(4, 3), [5, -1], [0, 0])}, "do not fit the heads"),
        ({"ranks": (torch.zeros(4, 3), [4], [-1])}, "do not fit the heads"),
        ({"tensors": {"ranks": torch.zeros(4, 3, dtype=torch.uint8)}}, "do not fit the heads"),
    ],
)
def test_heads_that_are_malformed_are_named(options, said, setting, tiny_heads):
    model, decoder = setting
    with pytest.raises(UserError) as error:
        load_heads(tiny_heads(model, **options), decoder)
    assert said in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {1: torch.ones(2)}, "text", {"0.0.linear.bias": [1.0]}, {}])
def test_pickles_of_odd_content_are_refused_in_our_words(content, setting, tiny_heads):
    folder = tiny_heads(setting[0], authors=True)
    torch.save(content, folder / "medusa_lm_head.pt")
    with pytest.raises(UserError) as error:
        load_heads(folder, setting[1])
    assert str(folder) in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("[[Infinity]]", "is not a tree"),
        ("[[NaN]]", "is not a tree"),
        ("[[0.9], [0.7]]", "not 0.9"),
        ("[[-1]]", "not -1"),
        ("[[1000000000000]]", "not 1000000000000"),
        (f"[[{'9' * 5000}]]", "is not a tree"),
        ('[["0"]]', "not '0'"),
        ("[[true]]", "not True"),
        ("[[]]", "is not a tree"),
        ("[]", "has no drafts: take tree=none"),
        ('{"nodes": []}', "has no drafts: take tree=none"),
        ('{"nodes": [[0]], "colour": 1}', "colour"),
        ('{"source": "x"}', "nodes: missing"),
        ("[[0], [0]]", "a node is listed twice"),
        ("[[0], [1, 0]]", "node [1, 0] has no parent [1]"),
        ("[" * 100_000, "is not a tree"),
        ("7", "is not a tree"),
        ("null", "is not a tree"),
        ("", "is not a tree"),
        ("\udcff", "is not a tree"),
        (f"[{', '.join(f'[{i}]' for i in range(140))}]", "140 drafts, more than the "),
        (f"[{', '.join(str([0] * n) for n in range(1, 160))}]", "is not a tree"),
    ],
    ids=lambda value: value[:20],
)
def test_tree_files_that_are_malformed_are_refused_before_anything_is_loaded(tree, said, tmp_path):
    file = tmp_path / "tree.json"
    file.write_bytes(tree.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as error:
        methods.parse(f"medusa:tree={file}")
    assert f"tree={file}"[:80] in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("oak", "tree=oak is neither chain, auto, none, mc_sim_7b_63"),
        ("0/1-0", "no parent [1]"),
        ("0/0", "a node is listed twice"),
        ("0/00", "is not a tree"),
        ("0//1", "is neither"),
        ("-1", "is neither"),
        ("0/1000000000000", "not 1000000000000"),
        ("9" * 5000, "tree=9999"),
        ("0/1/", "is neither"),
        ("/", "is neither"),
        ("~nosuchuser/tree.json", "is neither"),
        ("x" * 300, "is neither"),
        ("a\0b", "is neither"),
        ("٣", "is neither"),
        ("/".join(map(str, range(140))), "140 drafts, more than the 127"),
    ],
    ids=lambda value: value[:20],
)
def test_spelled_trees_that_are_malformed_are_refused_before_anything_is_loaded(tree, said):
    with pytest.raises(UserError) as error:
        methods.parse(f"medusa:tree={tree}")
    assert said in str(error.value)
    assert len(str(error.value)) < 6000


def test_trees_are_read_from_lists_and_objects_and_spelled_out(tmp_path):
    for text in ("[[0], [1], [0, 2]]", '{"source": "mine", "nodes": [[0], [1], [0, 2]]}'):
        (tmp_path / "tree.json").write_text(text)
        assert read_tree(str(tmp_path / "tree.json")) == read_tree("0/1/0-2") == [(0,), (1,), (0, 2)]
    assert read_tree("none") == []
    assert len(read_tree(PUBLISHED)) == 63


def test_a_truncated_file_and_no_weights_are_told(setting, tiny_heads):
    model, decoder = setting
    folder = tiny_heads(model)
    content = (folder / "heads.safetensors").read_bytes()
    (folder / "heads.safetensors").write_bytes(content[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        Medusa(decoder, MedusaConfig(weights=str(folder)))
    with pytest.raises(UserError, match="no weights of medusa come with the project for model 'tiny': train them"):
        Medusa(decoder, MedusaConfig())
    with pytest.raises(UserError, match=r"built as published.*--architecture paper"):
        Medusa(decoder, MedusaConfig(weights="paper"))


@pytest.mark.parametrize(
    "knobs",
    [
        "accept=lucky",
        "accept=typical,first=any",
        "first=argmax",
        "drafts=odd",
        "heads=-1",
        "draft_vocab=-2",
        "costs=1/2",
    ],
)
def test_bad_knobs_are_refused_before_anything_is_read(knobs):
    with pytest.raises(UserError, match=knobs.split(",")[-1].split("=")[0]):
        methods.parse(f"medusa:{knobs}")


def test_typical_acceptance_takes_no_drawn_drafts():
    with pytest.raises(UserError, match="typical"):
        methods.parse("medusa:accept=typical,drafts=sampled")


def test_heads_may_come_from_the_hub(setting, tiny_heads, monkeypatch, random_ids):
    """Only the files that are needed are asked for, and the cached ones are used again."""
    model, decoder = setting
    folder = tiny_heads(model, authors=True)
    calls = []

    def snapshot(name, *, allow_patterns, cache_dir, local_files_only=False):
        from huggingface_hub.errors import LocalEntryNotFoundError

        calls.append((name, local_files_only, allow_patterns))
        if local_files_only and len(calls) == 1:
            raise LocalEntryNotFoundError("not there")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    for _ in range(2):
        method = Medusa(decoder, MedusaConfig(weights="somebody/medusa-tiny", tree="chain"))
    assert [(name, offline) for name, offline, _ in calls] == [
        ("somebody/medusa-tiny", True), ("somebody/medusa-tiny", False), ("somebody/medusa-tiny", True)]  # fmt: skip
    assert "medusa_lm_head.pt" in calls[0][2]
    assert not any(pattern.endswith(".py") for pattern in calls[0][2])
    decode(method, random_ids(5), 9, NEVER)
