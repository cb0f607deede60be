"""The engine against transformers: the same float32 logits however the text is split into passes."""

from __future__ import annotations

import copy
import dataclasses
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.config import DEFAULT_MODEL
from bench.drafting.tree import chain_of, tree_of
from bench.engine import MAX_DRAFTS
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.places import Places
from bench.files import cache_root
from bench.models import loading

TOLERANCE = 1e-4
CPU = torch.device("cpu")
# How a text is split into passes; 128 is the longest block that the engine has a ready mask for.
SPLITS = {
    "prefill": [20],
    "long prefill": [140],
    "singly": [1] * 12,
    "blocks of 2": [2] * 6,
    "blocks of 3": [7, 3, 3, 3],
    "blocks of 5": [1, 5, 5, 5],
    "blocks of 8": [10, 8, 8],
    "a block of 128": [3, 128, 2],
    "a block of 129": [3, 129, 2],
    "two prefills": [20, 140],
}


def fresh_cache(decoder: Decoder, batch: int = 1):
    """A cache whose rows hold NaN until they are written: reading a stale row cannot go unseen."""
    cache = decoder.new_cache(batch)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def read(decoder: Decoder, ids, cache, start: int = 0, split=None):
    """Logits [n, V] of `ids` from position `start`, in passes as long as `split` says."""
    passes = []
    for size in split or [len(ids)]:
        block, ids = ids[:size], ids[size:]
        passes.append(decoder.logits(decoder.run_layers(decoder.embed(block), start, cache)[0]))
        start += size
    assert not ids
    return torch.cat(passes)


def assert_close(found, expected, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    error = (found - expected).abs().max().item()
    assert error <= tolerance, f"largest error {error}"


@pytest.mark.skipif(
    not (cache_root() / "models" / DEFAULT_MODEL / "model.safetensors").exists(), reason="the default model is not here"
)
def test_the_default_models_logits_are_transformers_own():
    """In one pass, then the end again in blocks and token by token, as decoding does."""
    found = loading.find(DEFAULT_MODEL, None, print)
    decoder = loading.load_decoder(found.checkpoint, CPU, torch.float32, max_len=128)
    model = AutoModelForCausalLM.from_pretrained(found.checkpoint.folder, dtype=torch.float32)
    ids = found.chat.prompt([], "Name three rivers of Europe, and say in one sentence where the longest of them ends.")
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
        assert expected.std() > 1
        cache, end = decoder.new_cache(), len(ids) - 12
        assert_close(read(decoder, ids, cache), expected)
        assert_close(read(decoder, ids[end:], cache, end, [5, 1, 3, 1, 2]), expected[end:])


@pytest.fixture(params=["plain", "native"])
def layout(request, monkeypatch):
    """All ways to hold the weights."""
    if request.param == "native" and native.kernels() is None:
        pytest.skip(f"no kernels here: {native.why_not()}")
    monkeypatch.setattr("bench.engine.decoder.choose_layout", lambda dtype, device: request.param)
    return request.param


def test_every_split_gives_transformers_logits(kind, layout, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    assert decoder.layout == layout
    for name, split in SPLITS.items():
        ids = random_ids(sum(split), seed=len(name))
        expected = hf_logits(model, ids)
        assert expected.std() > 0.5
        assert len(set(expected.argmax(-1).tolist())) > len(ids) / 4
        assert_close(read(decoder, ids, fresh_cache(decoder), split=split), expected)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "default", "rope_theta": 500.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_scalings_are_transformers(rope, tiny_model, tiny_config, tiny_decoder, hf_logits, random_ids):
    plain = tiny_model("vicuna")[1]
    config = tiny_config("vicuna", rope_parameters=rope)
    model = type(plain)(config).eval()
    model.load_state_dict(plain.state_dict())
    ids = random_ids(60)
    expected = hf_logits(model, ids)
    assert (expected - hf_logits(plain, ids)).abs().max() > 0.1  # the scaling matters here
    decoder = tiny_decoder(config, model)
    assert_close(read(decoder, ids, fresh_cache(decoder), split=[50, 1, 9]), expected)


def test_states_after_a_layer_are_transformers(kind, tiny_model, tiny_decoder, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    ids = random_ids(9)
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in range(config.num_hidden_layers):  # transformers' last entry is behind the final norm
        found = decoder.run_layers(decoder.embed(ids), 0, fresh_cache(decoder), 0, layer)
        assert_close(found, states[layer])
    found = decoder.run_layers(decoder.embed(ids), 0, fresh_cache(decoder))
    assert_close(decoder.final_norm(found), states[-1])


@pytest.mark.parametrize("second", [[3, 1, 4, 2], [1] * 10, [2, 8]])
def test_a_cut_back_cache_forgets_what_was_cut(kind, second, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    cache = fresh_cache(decoder)
    kept, rejected, ids = random_ids(9, 1), random_ids(14, 2), random_ids(10, 3)
    read(decoder, kept + rejected, cache, split=[15, 8])
    expected = hf_logits(model, kept + ids)[len(kept) :]
    assert_close(read(decoder, ids, cache, start=len(kept), split=second), expected)


def test_two_layer_ranges_are_one_run(kind, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    prompt, ids = random_ids(7, 1), random_ids(5, 2)
    expected = hf_logits(model, prompt + ids)
    for middle in range(1, config.num_hidden_layers):
        cache = fresh_cache(decoder)
        shallow = decoder.run_layers(decoder.embed(prompt), 0, cache, 0, middle)
        found = [decoder.logits(decoder.run_layers(shallow, 0, cache, middle)[0])]
        # As self-speculation does it: the first layers token by token, the others over all of them at once.
        states = [decoder.run_layers(decoder.embed([t]), 7 + i, cache, 0, middle) for i, t in enumerate(ids)]
        found.append(decoder.logits(decoder.run_layers(torch.cat(states, dim=1), 7, cache, middle)[0]))
        assert_close(torch.cat(found), expected)


def test_sequences_in_lock_step_do_not_mix(kind, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    rows = [random_ids(16, seed) for seed in (1, 2, 3)]
    cache = fresh_cache(decoder, batch=3)
    found = []
    for start, size in zip((0, 8, 9), (8, 1, 7), strict=True):
        block = torch.tensor(rows)[:, start : start + size]
        found.append(decoder.logits(decoder.run_layers(decoder.embed(block), start, cache)))
    for row, logits in zip(rows, torch.cat(found, dim=1), strict=True):
        assert_close(logits, hf_logits(model, row))


def test_bfloat16_errs_no_more_than_transformers(kind, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    ids = random_ids(40)
    expected = hf_logits(model, ids)
    theirs = (hf_logits(copy.deepcopy(model).bfloat16(), ids) - expected).abs().mean()
    decoder = tiny_decoder(config, model, dtype=torch.bfloat16)
    cache = fresh_cache(decoder)
    assert cache.keys.dtype == decoder.embedding.dtype == torch.bfloat16
    ours = (read(decoder, ids, cache, split=[30, 1, 2, 7]) - expected).abs().mean()
    assert 0 < ours <= 1.5 * theirs


def test_a_cut_head_gives_rows_of_the_whole_head(kind, layout, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model(kind))
    states = decoder.final_norm(decoder.run_layers(decoder.embed(random_ids(6)), 0, decoder.new_cache()))
    chosen = torch.tensor([200, 3, 4, 271, 0])
    cut = decoder.cut_head(chosen)
    assert cut.out_features == 5
    torch.testing.assert_close(cut(states), decoder.head(states)[..., chosen], rtol=0, atol=1e-5)


def test_parameters_are_transformers_count(kind, layout, tiny_model, tiny_decoder):
    config, model = tiny_model(kind)
    assert tiny_decoder(config, model).parameters == sum(p.numel() for p in model.parameters())


def test_token_ids_may_be_a_list_or_a_tensor(tiny_model, tiny_decoder):
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    table = model.model.embed_tokens.weight
    for ids in ([5, 0, 271], torch.tensor([5, 0, 271]), torch.tensor([[5, 0, 271]])):
        assert torch.equal(decoder.embed(ids), table[[5, 0, 271]][None])


def test_a_cache_refuses_positions_that_it_has_not(tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model("tied"))
    cache = decoder.new_cache(max_len=10)
    with pytest.raises(AssertionError, match="written up to"):
        decoder.run_layers(decoder.embed(random_ids(1)), cache.max_len, cache)


# --- trees -----------------------------------------------------------------------------------------------------------


def some_parents(count: int, seed: int) -> list[int]:
    """A random tree, neither a chain nor all siblings."""
    rng = random.Random(seed)
    parents = [rng.randint(-1, draft - 1) for draft in range(count)]
    assert len(set(parents)) > 2
    assert parents != list(range(-1, count - 1))
    return parents


def path_to(parents: list[int], draft: int) -> list[int]:
    """The drafts from the root down to this one; none for the root itself."""
    return [] if draft == -1 else [*path_to(parents, parents[draft]), draft]


def expected_rows(hf_logits, model, context: list[int], parents: list[int], drafts: list[int]):
    """Logits [n + 1, V]: for every row a forward pass over its own path alone; `context` ends with the root."""
    texts = [[*context, *(drafts[i] for i in path_to(parents, row))] for row in range(-1, len(parents))]
    return torch.stack([hf_logits(model, text)[-1] for text in texts])


def run_tree(decoder, tokens, start, cache, blocks, parents, growing=False, first=0, last=None, states=None):
    """States [1, n + 1, d] of a tree's rows, in passes of so many rows; `growing`: each knows only the rows so far."""
    passes, row = [], 0
    for size in blocks:
        tree = tree_of(parents[: row + size - 1] if growing else parents)
        x = decoder.embed(tokens[row : row + size]) if states is None else states[:, row : row + size]
        passes.append(decoder.run_layers(x, tree.places(start, CPU, row, size), cache, first, last))
        row += size
    assert row == len(parents) + 1
    return torch.cat(passes, dim=1)


BLOCKS = {
    "at once": [13],
    "row by row": [1] * 13,
    "in blocks": [1, 3, 2, 7],
    "the root later": [5, 1, 7],
}


@pytest.mark.parametrize("growing", [False, True], ids=["whole tree", "growing tree"])
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_every_row_of_a_tree_is_a_text_of_its_own(
    kind, blocks, growing, tiny_model, tiny_decoder, hf_logits, random_ids
):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    for seed in range(2):
        context, drafts, parents = random_ids(9, seed), random_ids(12, 20 + seed), some_parents(12, seed)
        expected = expected_rows(hf_logits, model, context, parents, drafts)
        assert expected.std(0).mean() > 0.3  # rows differ
        cache = fresh_cache(decoder)
        read(decoder, context[:-1], cache)
        states = run_tree(decoder, [context[-1], *drafts], len(context) - 1, cache, blocks, parents, growing)
        assert_close(decoder.logits(states[0]), expected)


def test_a_tree_may_follow_nothing(tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    drafts, parents = random_ids(12, 3), some_parents(12, 3)
    states = run_tree(decoder, [77, *drafts], 0, fresh_cache(decoder), [13], parents)
    assert_close(decoder.logits(states[0]), expected_rows(hf_logits, model, [77], parents, drafts))


def test_a_chain_told_as_a_tree_is_an_ordinary_pass(kind, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    ids = random_ids(16, 4)
    cache = fresh_cache(decoder)
    read(decoder, ids[:8], cache)
    found = []
    for row, end in ((0, 1), (1, 4), (4, 8)):
        x = decoder.embed(ids[8 + row : 8 + end])
        found.append(decoder.logits(decoder.run_layers(x, chain_of(7).places(8, CPU, row, end - row), cache)[0]))
    assert_close(torch.cat(found), hf_logits(model, ids)[8:])


@pytest.mark.parametrize("blocks", [[13], [1, 2, 4, 6]], ids=["at once", "in blocks"])
def test_a_tree_is_resumed_in_the_middle(kind, blocks, tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    context, drafts, parents = random_ids(9, 1), random_ids(12, 2), some_parents(12, 5)
    expected = expected_rows(hf_logits, model, context, parents, drafts)
    tokens, start = [context[-1], *drafts], len(context) - 1
    for middle in range(1, config.num_hidden_layers):
        cache = fresh_cache(decoder)
        read(decoder, context[:-1], cache)
        # As self-speculation does it: the first layers while drafting, the others over all rows at once.
        shallow = run_tree(decoder, tokens, start, cache, blocks, parents, growing=True, last=middle)
        states = run_tree(decoder, tokens, start, cache, [13], parents, first=middle, states=shallow)
        assert_close(decoder.logits(states[0]), expected)


def test_a_path_that_is_kept_is_read_on_from(kind, tiny_model, tiny_decoder, hf_logits, random_ids, monkeypatch):
    config, model = tiny_model(kind)
    decoder = tiny_decoder(config, model)
    monkeypatch.setattr(decoder, "native_layers", None)
    cache = fresh_cache(decoder)
    context = random_ids(9, 1)
    read(decoder, context[:-1], cache)
    kept = []
    for seed in range(5):  # tree upon tree, as in an answer
        parents, drafts = some_parents(12, 30 + seed), random_ids(12, seed)
        start = len(context) - 1
        run_tree(decoder, [context[-1], *drafts], start, cache, [13], parents)
        paths = [path_to(parents, draft) for draft in range(-1, 12)]
        path = max(paths, key=len) if seed % 2 else paths[random.Random(seed).randrange(13)]
        kept.append(path)
        cache.keep_path(start, path)
        context = [*context, *(drafts[i] for i in path)]
        cache.data[..., len(context) :, :] = torch.nan  # what was not kept
        token = random_ids(1, 50 + seed)
        assert_close(read(decoder, token, cache, start=len(context)), hf_logits(model, context + token)[-1:])
        context += token
    assert any(path != list(range(len(path))) for path in kept)
    assert any(len(path) > 2 for path in kept)


@pytest.mark.parametrize("path", [[], [0], [0, 1, 2], [2], [1, 3], [0, 2, 5], [3, 4, 5]])
def test_only_the_rows_of_the_path_move(path, tiny_model, tiny_decoder):
    cache = tiny_decoder(*tiny_model("tied")).new_cache(max_len=12)
    rows = torch.arange(cache.max_len, dtype=torch.float32)
    cache.data.copy_(rows[:, None].expand_as(cache.data))
    cache.keep_path(4, path)
    for stored in cache.data.flatten(0, 3):
        found = stored[:, 0].tolist()
        assert found[:5] == [0, 1, 2, 3, 4]
        assert found[5 : 5 + len(path)] == [5 + draft for draft in path]
        assert found[5 + len(path) :] == rows[5 + len(path) :].tolist()


def test_the_widest_tree_at_the_end_of_the_context_fits(tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model, max_len=12)
    context, drafts = random_ids(9, 1), random_ids(MAX_DRAFTS, 2)
    parents = [-1] * 5 + [i % 5 for i in range(20)] + [5 + i % 20 for i in range(MAX_DRAFTS - 25)]  # 3 levels
    cache = fresh_cache(decoder)
    read(decoder, context[:-1], cache)
    states = run_tree(decoder, [context[-1], *drafts], 8, cache, [MAX_DRAFTS + 1], parents)
    assert_close(decoder.logits(states[0]), expected_rows(hf_logits, model, context, parents, drafts))


def test_a_tree_in_lock_step_does_not_mix_sequences(tiny_model, tiny_decoder, hf_logits, random_ids):
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    contexts, drafts = ([random_ids(length, seed) for seed in (1, 2)] for length in (9, 12))
    parents = some_parents(12, 7)
    cache = fresh_cache(decoder, batch=2)
    decoder.run_layers(decoder.embed(torch.tensor(contexts)[:, :-1]), 0, cache)
    rows = torch.cat((torch.tensor(contexts)[:, -1:], torch.tensor(drafts)), dim=1)
    alone = tree_of(parents).places(8, CPU)
    places = Places((alone.spans[0], dataclasses.replace(alone.spans[0], slot=1)), alone.width)
    found = decoder.logits(decoder.run_layers(decoder.embed(rows), places, cache))
    for i in range(2):
        assert_close(found[i], expected_rows(hf_logits, model, contexts[i], parents, drafts[i]))
