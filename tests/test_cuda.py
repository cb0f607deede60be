"""On a CUDA device: transformers' logits and answers, the device's own times, a whole run. Skipped elsewhere."""

from __future__ import annotations

import pytest
import torch

import methods
from bench.drafting.loop import decode
from bench.drafting.tree import tree_of
from bench.engine.timing import between_s, mark
from tests.tiny import QUESTIONS, records, run_bench, write_questions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("split", [[9, 1, 1, 4, 8, 17, 40, 128, 100], [300, 1, 1, 5]])
def test_every_split_gives_transformers_logits(kind, split, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model, device=CUDA, max_len=400)
    ids, cache, found, start = random_ids(sum(split)), decoder.new_cache(), [], 0
    for width in split:
        states = decoder.run_layers(decoder.embed(ids[start : start + width]), start, cache)
        found.append(decoder.logits(states[0]))
        start += width
    torch.testing.assert_close(torch.cat(found).cpu(), hf_logits(model, ids), rtol=0, atol=1e-3)
    assert cache.captured
    assert decoder.graphs.reason == ""


def test_a_tree_is_what_its_paths_are(kind, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model, device=CUDA)
    ids, drafts, path = random_ids(12), random_ids(5, seed=4), [0, 2, 3]
    cache = decoder.new_cache()
    decoder.run_layers(decoder.embed(ids[:-1]), 0, cache)
    tree = tree_of([-1, -1, 0, 2, 1])
    states = decoder.run_layers(decoder.embed([ids[-1], *drafts]), tree.places(len(ids) - 1, decoder.device), cache)
    found = decoder.logits(states[0, [0, *(i + 1 for i in path)]]).cpu()
    expected = hf_logits(model, [*ids, *(drafts[i] for i in path)])[len(ids) - 1 :]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    cache.keep_path(len(ids) - 1, path)
    kept = decoder.run_layers(decoder.embed([7]), len(ids) + len(path), cache)
    after = hf_logits(model, [*ids, *(drafts[i] for i in path), 7])[-1:]
    torch.testing.assert_close(decoder.logits(kept[0]).cpu(), after, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rows", [65, 128])
def test_a_tree_as_wide_as_a_tree_may_be_is_captured(rows, tiny_model, tiny_decoder, random_ids):
    """A binary heap of drafts, against the same pass kernel by kernel."""
    decoder = tiny_decoder(*tiny_model("llama3"), device=CUDA)
    tree = tree_of([(i - 2) // 2 if i > 1 else -1 for i in range(rows - 1)])
    ids, found = random_ids(20 + rows, seed=9), []
    for one in (decoder, decoder.by_operations()):
        cache = one.new_cache()
        one.run_layers(one.embed(ids[:20]), 0, cache)
        states = one.run_layers(one.embed(ids[20:]), tree.places(20, CUDA), cache)
        found.append(one.logits(states[0]))
        assert bool(cache.captured) == (one is decoder)
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)
    assert decoder.graphs.reason == ""


@pytest.mark.parametrize("name", ["vanilla", "kangaroo", "kangaroo-tree", "medusa", "eagle", "eagle3", "hydra"])
def test_answers_are_transformers_own(
    name, tiny_model, tiny_decoder, tiny_adapter, tiny_heads, tiny_weights, hf_greedy, random_ids
):
    config, model = tiny_model("tied", faint=True)
    knobs = {
        "vanilla": {},
        "kangaroo": {"weights": str(tiny_adapter(model)), "threshold": 0.0, "gamma": 3},
        "kangaroo-tree": {"weights": str(tiny_adapter(model)), "threshold": 0.0, "gamma": 3, "beam": 3},
        "medusa": {"weights": str(tiny_heads(model)), "tree": "0/1/0-0/1-0"},
        "eagle": {"weights": str(tiny_weights("eagle", model)), "threshold": 0.0, "gamma": 3, "beam": 3},
        "hydra": {"weights": str(tiny_weights("hydra", model))},
        "eagle3": {"weights": str(tiny_weights("eagle3", model)), "tree": "best", "beam": 3, "nodes": 8},
    }
    made = methods.load(name.partition("-")[0])
    method = made(tiny_decoder(config, model, device=CUDA, max_len=64), made.Config(**knobs[name]))
    prompt = random_ids(12, seed=1)
    answer = decode(method, prompt, 40, frozenset())
    assert answer.token_ids == hf_greedy(model, prompt, 40)
    assert all(step.verify_s > 0 for step in answer.steps)
    assert sum(step.draft_s + step.verify_s for step in answer.steps) <= 1.1 * answer.decode_s


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device here")
def test_layers_on_two_devices_give_transformers_logits(kind, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    homes = [torch.device("cuda", i // 2) for i in range(4)]
    decoder = tiny_decoder(config, model, device=homes[0], homes=homes)
    ids, cache = random_ids(30), decoder.new_cache()
    states = [decoder.run_layers(decoder.embed(ids[a:b]), a, cache) for a, b in ((0, 20), (20, 21), (21, 30))]
    found = decoder.logits(torch.cat(states, dim=1)[0])
    torch.testing.assert_close(found.cpu(), hf_logits(model, ids), rtol=0, atol=1e-3)


def test_marks_are_the_devices_own_time():
    first = mark(CUDA)
    torch.ones(1 << 24, device=CUDA).sum()
    last = mark(CUDA)
    torch.cuda.synchronize()
    assert between_s(first, last) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_is_lossless(dtype, tmp_path, tiny_checkpoint, tiny_model, tiny_adapter):
    model = tiny_model("tied", True)[1]
    kangaroo = f"kangaroo:weights={tiny_adapter(model)},threshold=0"
    questions = write_questions(tmp_path / "questions.jsonl", *QUESTIONS)
    flags = ["--device", "cuda", "--dtype", dtype, "--method", kangaroo, "--peer", "hf-generate"]
    assert run_bench(tiny_checkpoint("tied", True).folder, questions, tmp_path / "out", *flags) == 0
    run, turns = records(tmp_path / "out")
    assert run.complete
    assert run.machine.type == "cuda"
    assert run.engine["cuda_graphs"] == "captured"
    assert set(run.memory["methods"]) == set(run.methods)
    verdicts = {turn.audit.verdict for turn in turns if turn.method == kangaroo}
    assert verdicts <= ({"identical"} if dtype == "float32" else {"identical", "numerical"})
