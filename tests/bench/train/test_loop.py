"""Features of the frozen target against transformers, and the loop that trains on them."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest
import torch
from torch import nn

from bench.errors import UserError
from bench.train import loop
from bench.train.conversations import Conversations
from bench.train.loop import Features, Schedule, features, fit, split, steps_of, taught_positions

EXIT = 2
COUNT, LENGTH = 19, 24  # two chunks of the cache, the last one shorter


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama3")


@pytest.fixture(scope="module")
def target(model, tiny_decoder):
    return tiny_decoder(*model)


@pytest.fixture(scope="module")
def made() -> Conversations:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(9, LENGTH, (COUNT,), generator=generator, dtype=torch.int32)
    total = int(lengths.sum())
    tokens = torch.randint(270, (total,), generator=generator, dtype=torch.int32)
    chosen = torch.rand(total, generator=generator) < 0.4
    chosen[lengths.cumsum(0)[:-1]] = chosen[0] = False  # no conversation begins with an answer
    return Conversations(tokens, chosen, lengths, torch.zeros(COUNT, dtype=torch.int8), torch.arange(COUNT).int())


def first(made: Conversations, count: int) -> Conversations:
    return made.keep([i < count for i in range(len(made.lengths))])


@pytest.fixture
def passes(monkeypatch):
    """How many conversations each pass of the target was over."""
    sizes, states = [], loop._states
    monkeypatch.setattr(loop, "_states", lambda t, rows, layer: sizes.append(len(rows)) or states(t, rows, layer))
    return sizes


def same(a, b) -> bool:
    """Whether two sets of features are equal, state by state."""
    columns = [(a.final_states, b.final_states), *((a.taps[layer], b.taps[layer]) for layer in a.taps)]
    return all(torch.equal(torch.cat(list(x)), torch.cat(list(y))) for x, y in columns)


# --- features --------------------------------------------------------------------------------------------------------


def test_taught_are_the_positions_before_those_that_the_target_chose():
    chosen = torch.tensor([0, 0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.bool)  # say, conversations of 6 and of 3 tokens
    expected = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0], dtype=torch.bool)
    assert torch.equal(taught_positions(chosen), expected)


@pytest.mark.parametrize("taps", [(), (EXIT,), (1, 2, 3), (3, 1)])
def test_features_are_transformers_hidden_states(model, target, made, tmp_path, taps):
    found = features(target, made, tmp_path, taps)
    assert set(found.taps) == set(taps)
    assert {chunk.dtype for chunk in found.final_states} == {torch.float16}
    assert torch.equal(found.taught, taught_positions(made.chosen))
    assert torch.equal(found.tokens, made.tokens.long())
    for i, (begin, length) in enumerate(zip(found.starts, made.lengths.tolist(), strict=True)):
        with torch.inference_mode():
            states = model[1](found.tokens[None, begin : begin + length], output_hidden_states=True).hidden_states
        for layer, chunks in [(-1, found.final_states), *found.taps.items()]:
            torch.testing.assert_close(found.rows(chunks, i), states[layer][0], rtol=2e-3, atol=2e-3)


def test_states_read_in_bfloat16_are_near_those_of_float32(model, tiny_decoder, target, made, tmp_path):
    exact = features(target, made, tmp_path / "float32", [EXIT])
    reader = tiny_decoder(*model, dtype=torch.bfloat16, layout="plain")
    rounded = features(reader, made, tmp_path / "bfloat16", [EXIT])
    for theirs, ours in ((exact.final_states, rounded.final_states), (exact.taps[EXIT], rounded.taps[EXIT])):
        theirs, ours = torch.cat(list(theirs)).float(), torch.cat(list(ours)).float()
        assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_a_batch_is_padded_with_what_nobody_is_taught(target, made, tmp_path):
    found = features(target, made, tmp_path, [EXIT])
    pick = [3, 0, 17]  # of both chunks
    batch = found.batch(pick)
    longest = int(made.lengths[pick].max())
    assert batch.taps.keys() == {EXIT}
    everywhere = {(3, longest, target.config.hidden)}
    assert {batch.taps[EXIT].shape, batch.final_states.shape} == everywhere
    assert batch.taps[EXIT].dtype == batch.final_states.dtype == torch.float32
    for row, i in enumerate(pick):
        rows, length = slice(found.starts[i], found.starts[i] + int(made.lengths[i])), int(made.lengths[i])
        for states, chunks in ((batch.taps[EXIT], found.taps[EXIT]), (batch.final_states, found.final_states)):
            assert torch.equal(states[row, :length], torch.cat(list(chunks))[rows].float())
        assert torch.equal(batch.tokens[row, :length], found.tokens[rows])
        assert torch.equal(batch.taught[row, :length], found.taught[rows])
        assert not batch.taught[row, length:].any()
        assert batch.inside[row].tolist() == [True] * (length - 1) + [False] * (longest - length + 1)


def test_features_are_computed_once(target, made, tmp_path, passes):
    told: list[int] = []
    once = features(target, made, tmp_path, [EXIT], told.append)
    assert passes == [16, 3]
    assert told == [int(made.lengths[:16].sum()), int(made.lengths[16:].sum())]
    not_read = functools.partial(pytest.fail, "there is nothing to compute")
    assert same(features(target, made, tmp_path, [EXIT], reader=not_read), once)
    assert passes == [16, 3]


def test_one_pass_serves_several_trainings(target, made, tmp_path, passes):
    together = {2: features(target, made, tmp_path / "together", [2], others={1, 2, 3})}
    for layer in (1, 3):
        together[layer] = features(target, made, tmp_path / "together", [layer], others={1, 2, 3})
    assert passes == [16, 3]
    for layer, found in together.items():
        assert same(features(target, made, tmp_path / "alone" / str(layer), [layer]), found)
    assert not torch.equal(together[1].taps[1][0], together[3].taps[3][0])


def test_chunks_of_other_trainings_stay_and_are_used(target, made, tmp_path, passes):
    features(target, first(made, 16), tmp_path, [1])
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert sorted(path.parent.name for path in kept) == ["1", "final"]
    features(target, made, tmp_path, [2], others=[1])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert passes == [16, 16, 3]
    features(target, made, tmp_path, [1])
    features(target, made, tmp_path)
    assert passes == [16, 16, 3]


def test_states_that_nobody_reads_are_neither_computed_nor_kept(target, made, tmp_path, monkeypatch):
    features(target, made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    runs, run_layers = [], target.run_layers
    monkeypatch.setattr(type(target), "run_layers", lambda self, *given: runs.append(given[3:]) or run_layers(*given))
    features(target, made, tmp_path, [2])  # final states are there
    assert runs == [(0, 2)] * 2


def test_more_conversations_reuse_the_whole_chunks(target, made, tmp_path, passes):
    features(target, first(made, 17), tmp_path, [EXIT])
    features(target, made, tmp_path, [EXIT])
    assert passes == [16, 1, 3]


@pytest.mark.parametrize("damage", ["cut short", "empty", "other conversations", "not tensors"])
def test_damaged_piece_is_computed_again(target, made, tmp_path, passes, damage):
    once = features(target, made, tmp_path, [EXIT])
    path = sorted((tmp_path / "final").iterdir())[0]
    if damage == "other conversations":
        path.unlink()
        features(target, made.keep([i >= 3 for i in range(COUNT)]), tmp_path, [EXIT])
    else:
        content = path.read_bytes()
        path.unlink()  # `once` is mapped from it
        path.write_bytes({"cut short": content[:-100], "empty": b"", "not tensors": b"x" * 100}[damage])
    passes.clear()
    assert same(features(target, made, tmp_path, [EXIT]), once)
    assert passes == [16]
    assert same(features(target, made, tmp_path, [EXIT]), once)
    assert passes == [16]


def test_interrupted_features_go_on_where_they_stopped(target, made, tmp_path, passes, monkeypatch):
    last = int(made.lengths[16:].sum())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_half", lambda states: 1 / 0 if len(states) == last else states.half().contiguous())
        with pytest.raises(ZeroDivisionError):
            features(target, made, tmp_path, [EXIT])
    passes.clear()
    features(target, made, tmp_path, [EXIT])
    assert passes == [3]


def test_states_beyond_half_precision_keep_their_range():
    wide = loop._half(torch.tensor([1.0, 1e6]))
    assert wide.dtype == torch.bfloat16
    assert wide.isfinite().all()
    assert loop._half(torch.tensor([1.0, 100.0])).dtype == torch.float16
    assert loop._half(torch.zeros(0, 4)).dtype == torch.float16


def test_full_cache_names_the_remedy(target, made, tmp_path, monkeypatch):
    def save(*_):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", save)
    with pytest.raises(UserError, match=r"no space left in .*ROOBENCH_CACHE"):
        features(target, made, tmp_path / "features", [EXIT])


# --- the loop --------------------------------------------------------------------------------------------------------


def features_of(templates: list[int], answered: list[bool]) -> tuple[Features, torch.Tensor]:
    count = len(templates)
    taught = torch.tensor([[some, False] for some in answered]).flatten()
    found = Features([], torch.zeros(2 * count, dtype=torch.long), taught, torch.full((count,), 2), {})
    return found, torch.tensor(templates)


def test_split_holds_out_whole_templates_and_loses_no_conversation():
    generator = torch.Generator().manual_seed(0)
    templates = torch.randint(40, (400,), generator=generator).tolist()
    answered = [i % 7 != 0 for i in range(400)]
    train, out = split(*features_of(templates, answered), 0.05)
    assert sorted(train + out) == [i for i in range(400) if answered[i]]
    assert not {templates[i] for i in train} & {templates[i] for i in out}
    assert 0.05 <= len(out) / len(train + out) < 0.15


def test_split_holds_out_at_least_one():
    assert split(*features_of([9, 4], [True, True]), 0.05) == ([0], [1])


def regression():
    """A module, and the loss of some of ten points under it."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    x = torch.randn(10, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
    return module, lambda indices: ((module(x[list(indices)]) - y[list(indices)]) ** 2).mean()


ALIKE = torch.full((10,), 7)  # lengths


def test_batches_are_of_similar_lengths_in_random_order():
    lengths = torch.randint(1, 100, (640,), generator=torch.Generator().manual_seed(3))
    batches = list(loop._batches(range(640), lengths, 8, torch.Generator().manual_seed(0)))
    assert sorted(i for batch in batches for i in batch) == list(range(640))
    spreads = [int(lengths[batch].max() - lengths[batch].min()) for batch in batches]
    assert max(spreads) < 15  # of 99
    means = [float(lengths[batch].float().mean()) for batch in batches]
    assert means != sorted(means)


def test_fit_lowers_the_loss_and_sees_each_index_once_an_epoch():
    module, loss_of = regression()
    seen, losses, epochs = [], [], []
    schedule = Schedule(epochs=30, batch=4, learning_rate=0.2, seed=1)

    def watched(indices):
        seen.append(list(indices))
        return loss_of(indices)

    fit(module, watched, range(10), ALIKE, schedule, lambda step, loss: losses.append((step, loss)), epochs.append)
    assert [step for step, _ in losses] == list(range(1, steps_of(10, schedule) + 1)) == list(range(1, 91))
    assert epochs == list(range(1, 31))
    for i in range(0, 90, 3):
        assert sorted(index for batch in seen[i : i + 3] for index in batch) == list(range(10))
    assert seen[:3] != seen[3:6]
    assert losses[-1][1] < 0.05 * losses[0][1]


def test_fit_is_the_seeds():
    ends = []
    for seed in (1, 1, 2):
        module, loss_of = regression()
        fit(module, loss_of, range(10), ALIKE, Schedule(2, 3, 0.1, seed))
        ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_learning_rate_warms_up_then_falls_to_almost_nothing():
    rates = [loop._rate(step, 200, 0.03) for step in range(200)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert rates[6] == 1
    assert all(before >= after for before, after in pairwise(rates[6:]))
    assert rates[6 + 97] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert loop._rate(0, 1, 0.03) == 1
