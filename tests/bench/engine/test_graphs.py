"""Passes at fixed places and sizes, as they are captured; here they are repeated by running them anew.

The CUDA graphs themselves are in `tests/test_cuda.py`.
"""

from __future__ import annotations

import pytest
import torch

import methods
from bench.drafting.loop import decode
from bench.drafting.tree import tree_of
from bench.engine import graphs
from bench.engine.cache import KVCache
from bench.engine.graphs import Graphs, choose_graphs

CPU = torch.device("cpu")
PARENTS = [-1, -1, 0, 2, 1, 1]
PATH = [0, 2, 3]


@pytest.fixture
def recorded(monkeypatch):
    """What was captured so far: of every decoder, on the CPU, with lengths from 16 positions on.

    Caches hold nonsense until they are written: finite, as zeros on CUDA are, and not to be overseen.
    """
    calls, make = [], KVCache.__init__

    def stale(cache, *args, **kwargs):
        make(cache, *args, **kwargs)
        cache.data.fill_(1e4)

    def record(call):
        calls.append(call)
        found = call()
        return lambda: found.copy_(call())  # always into the same memory, as a graph does

    monkeypatch.setattr(KVCache, "__init__", stale)
    monkeypatch.setattr(graphs, "_SHORTEST", 16)
    monkeypatch.setattr("bench.engine.decoder.choose_graphs", lambda device: Graphs(device, record))
    # The kernels of the CPU would be asked first.
    monkeypatch.setattr("bench.engine.decoder.choose_layout", lambda dtype, device: "plain")
    return calls


def read(decoder, ids, cache, split, start=0):
    """Logits [n, V] of `ids`, in passes as long as `split` says."""
    passes = []
    for size in split:
        block, ids = ids[:size], ids[size:]
        passes.append(decoder.logits(decoder.run_layers(decoder.embed(block), start, cache)[0]))
        start += size
    return torch.cat(passes)


@pytest.mark.parametrize(
    "split", [[40], [9, 1, 1, 4, 8, 17, 3], [1] * 20, [64, 5, 70, 2], [128, 100, 3], [130, 2]], ids=str
)
def test_every_split_gives_transformers_logits(kind, split, recorded, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    ids = random_ids(sum(split))
    found = read(decoder, ids, decoder.new_cache(), split)
    torch.testing.assert_close(found, hf_logits(model, ids), rtol=0, atol=1e-4)
    assert recorded


@pytest.mark.parametrize("blocks", [[7], [1, 2, 4]], ids=str)
def test_a_tree_is_what_its_paths_are(kind, blocks, recorded, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    ids, drafts = random_ids(30), random_ids(6, seed=4)
    cache = decoder.new_cache()
    read(decoder, ids[:-1], cache, [29])
    tree, rows, passes = tree_of(PARENTS), [ids[-1], *drafts], []
    for size in blocks:
        row = sum(x.shape[1] for x in passes)
        x = decoder.embed(rows[row : row + size])
        passes.append(decoder.run_layers(x, tree.places(len(ids) - 1, CPU, row, x.shape[1]), cache))
    found = decoder.logits(torch.cat(passes, dim=1)[0, [0, *(i + 1 for i in PATH)]])
    expected = hf_logits(model, [*ids, *(drafts[i] for i in PATH)])[len(ids) - 1 :]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    cache.keep_path(len(ids) - 1, PATH)
    after = read(decoder, [7], cache, [1], start=len(ids) + len(PATH))
    expected = hf_logits(model, [*ids, *(drafts[i] for i in PATH), 7])[-1:]
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("vanilla", {}),
        ("kangaroo", {"threshold": 0.0, "gamma": 3}),
        ("kangaroo", {"threshold": 0.0, "gamma": 3, "beam": 3}),
        ("feedback", {"threshold": 0.0, "gamma": 3}),
        ("feedback", {"threshold": 0.0, "gamma": 3, "beam": 3}),
        ("medusa", {"tree": "0/1/0-0/1-0"}),
        ("eagle", {"threshold": 0.0, "gamma": 3}),
        ("eagle3", {"threshold": 0.0, "gamma": 3, "beam": 1}),
        ("hydra", {"tree": "0/1/0-0/1-0/1-0-0"}),
    ],
    ids=["vanilla", "kangaroo", "kangaroo-tree", "feedback", "feedback-tree", "medusa", "eagle", "eagle3", "hydra"],
)
def test_answers_are_transformers_own_with_the_drafts_of_passes_that_are_not_captured(
    name, knobs, recorded, tiny_model, tiny_decoder, tiny_adapter, tiny_heads, tiny_weights, hf_greedy, random_ids
):
    config, model = tiny_model("tied", faint=True)
    d = model.config.hidden_size
    mixed = torch.cat((torch.eye(d), 0.2 * torch.eye(d)), dim=1)  # mostly the exit state, and some of the final one
    feedback = {"changes": {"feedback": True}, "tensors": {"input_proj.weight": mixed}}
    weights = {
        "kangaroo": lambda: tiny_adapter(model),
        "feedback": lambda: tiny_adapter(model, **feedback),
        "medusa": lambda: tiny_heads(model),
        "eagle": lambda: tiny_weights("eagle", model),
        "eagle3": lambda: tiny_weights("eagle3", model),
        "hydra": lambda: tiny_weights("hydra", model),
    }
    given = {"weights": str(weights[name]())} if name in weights else {}
    made = methods.load("kangaroo" if name == "feedback" else name)
    target = tiny_decoder(config, model, max_len=80)
    prompt = random_ids(12, seed=1)
    method = made(target, made.Config(**knobs, **given))
    answer = decode(method, prompt, 50, frozenset())
    assert answer.token_ids == hf_greedy(model, prompt, 50)
    before = len(recorded)
    assert before
    if name not in ("vanilla", "medusa"):
        assert method.caches[0].captured
    again = decode(method, prompt, 50, frozenset())
    assert len(recorded) == before  # everything was there
    alone = decode(made(target.by_operations(), made.Config(**knobs, **given)), prompt, 50, frozenset())
    told = [[(s.emitted, s.drafted, s.accepted, s.rejected) for s in one.steps] for one in (answer, again, alone)]
    assert told[0] == told[1] == told[2]
    if name != "vanilla":
        assert 0 < sum(step.accepted for step in answer.steps) < sum(step.drafted for step in answer.steps)


def test_widths_are_rounded_and_narrower_ones_and_all_lengths_made_at_once(
    recorded, tiny_model, tiny_decoder, random_ids
):
    decoder = tiny_decoder(*tiny_model("tied"), max_len=100)
    cache = decoder.new_cache()
    read(decoder, random_ids(3), cache, [3])
    (made,) = cache.captured.values()
    assert sorted(made) == [1, 2, 4]
    assert all([one.length for one in of_width] == [16, 32, 64, 128, cache.max_len] for of_width in made.values())
    read(decoder, random_ids(60), cache, [4, 3, 1, 2, 4], start=3)
    assert len(recorded) == 15
    read(decoder, random_ids(5), cache, [5], start=20)
    assert len(recorded) == 20
    decoder.run_layers(decoder.embed(random_ids(7)), tree_of(PARENTS).places(0, CPU), cache)
    assert len(recorded) == 25  # of a tree this width alone


def test_once_closed_a_pass_takes_the_next_width_that_there_is_or_none(
    recorded, tiny_model, tiny_decoder, hf_logits, random_ids
):
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    ids, cache, tree = random_ids(40), decoder.new_cache(), tree_of(PARENTS)
    decoder.run_layers(decoder.embed(random_ids(7)), tree.places(0, CPU), cache)
    before = len(recorded)
    decoder.graphs.close()
    found = read(decoder, ids, cache, [20, 1, 3, 15, 1])
    torch.testing.assert_close(found, hf_logits(model, ids), rtol=0, atol=1e-4)
    smaller = tree_of(PARENTS[:2])  # 3 rows, where there is a pass over 8
    states = decoder.run_layers(decoder.embed([ids[-1], 5, 6]), smaller.places(len(ids) - 1, CPU), cache)
    expected = torch.cat([hf_logits(model, [*ids, *more])[-1:] for more in ([], [5], [6])])
    torch.testing.assert_close(decoder.logits(states[0]), expected, rtol=0, atol=1e-4)
    assert len(recorded) == before


@pytest.mark.parametrize("rows", [65, 128])
def test_a_tree_as_wide_as_a_tree_may_be_is_captured(rows, recorded, tiny_model, tiny_decoder, random_ids):
    """A binary heap of drafts against the same passes kernel by kernel; after it the text goes on."""
    decoder = tiny_decoder(*tiny_model("llama3"))
    plain = decoder.by_operations()
    tree = tree_of([(i - 2) // 2 if i > 1 else -1 for i in range(rows - 1)])
    ids, path = random_ids(20 + rows, seed=9), [1, 4, 10]  # the second of the first level, its first child, and so on
    found = []
    for one in (decoder, plain):
        cache = one.new_cache()
        read(one, ids[:20], cache, [20])
        before = len(recorded)
        states = one.run_layers(one.embed(ids[20:]), tree.places(20, CPU), cache)
        cache.keep_path(20, path)
        assert (len(recorded) > before) == (one is decoder)
        found.append(torch.cat((one.logits(states[0]), read(one, [7], cache, [1], start=21 + len(path)))))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)


def test_batches_and_wide_passes_are_not_captured(recorded, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model("tied"))
    decoder.run_layers(decoder.embed(torch.zeros(3, 2)), 0, decoder.new_cache(3))
    cache = decoder.new_cache()
    read(decoder, random_ids(129), cache, [129])
    decoder.run_layers(decoder.embed(random_ids(3)), 0, cache, 2, 2)  # no layers
    assert not recorded


def test_where_capture_fails_one_warning_is_given_and_passes_run_as_they_are(
    monkeypatch, tiny_model, tiny_decoder, hf_logits, random_ids
):
    def refuse(call):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr("bench.engine.decoder.choose_layout", lambda dtype, device: "plain")
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    decoder.graphs = Graphs(CPU, refuse)
    ids = random_ids(12)
    with pytest.warns(UserWarning, match="operation not permitted$") as told:
        found = read(decoder, ids, decoder.new_cache(), [5, 1, 1, 3, 2])
    assert len(told) == 1
    torch.testing.assert_close(found, hf_logits(model, ids), rtol=0, atol=1e-4)
    assert decoder.graphs.reason == "operation not permitted"


def test_only_cuda_devices_have_graphs():
    assert choose_graphs(CPU) is None
    assert isinstance(choose_graphs(torch.device("cuda")), Graphs)


def test_an_audit_is_run_without_graphs(recorded, tiny_model, tiny_decoder):
    decoder = tiny_decoder(*tiny_model("tied"))
    assert decoder.graphs is not None
    assert decoder.by_operations().graphs is None
