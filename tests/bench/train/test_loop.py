"""Features of the frozen target against transformers, and the loop that trains on them."""

from __future__ import annotations

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
    return torch.equal(a.exit_states, b.exit_states) and torch.equal(a.final_states, b.final_states)


# --- features --------------------------------------------------------------------------------------------------------


def test_taught_are_the_positions_before_those_that_the_target_chose():
    chosen = torch.tensor([0, 0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.bool)  # say, conversations of 6 and of 3 tokens
    expected = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0], dtype=torch.bool)
    assert torch.equal(taught_positions(chosen), expected)


def test_features_are_transformers_hidden_states(model, target, made, tmp_path):
    found = features(target, made, EXIT, tmp_path)
    assert found.exit_states.dtype == found.final_states.dtype == torch.float16
    assert torch.equal(found.taught, taught_positions(made.chosen))
    assert torch.equal(found.tokens, made.tokens.long())
    for begin, length in zip(found.starts, made.lengths.tolist(), strict=True):
        rows = slice(begin, begin + length)
        with torch.inference_mode():
            states = model[1](found.tokens[None, rows], output_hidden_states=True).hidden_states
        torch.testing.assert_close(found.exit_states[rows].float(), states[EXIT][0], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(found.final_states[rows].float(), states[-1][0], rtol=2e-3, atol=2e-3)


def test_states_read_in_bfloat16_are_near_those_of_float32(model, tiny_decoder, made, tmp_path):
    exact = features(tiny_decoder(*model), made, EXIT, tmp_path / "float32")
    rounded = features(
        tiny_decoder(*model, dtype=torch.bfloat16, layout="plain"), made, EXIT, tmp_path / "bfloat16"
    )
    for name in ("exit_states", "final_states"):
        ours, theirs = getattr(rounded, name).float(), getattr(exact, name).float()
        assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_a_batch_is_padded_with_what_nobody_is_taught(target, made, tmp_path):
    found = features(target, made, EXIT, tmp_path)
    pick = [3, 0, 11]
    batch = found.batch(pick)
    longest = int(made.lengths[pick].max())
    assert batch.exit_states.shape == batch.final_states.shape == (3, longest, target.config.hidden)
    assert batch.exit_states.dtype == torch.float32
    for row, i in enumerate(pick):
        rows, length = slice(found.starts[i], found.starts[i] + int(made.lengths[i])), int(made.lengths[i])
        assert torch.equal(batch.exit_states[row, :length], found.exit_states[rows].float())
        assert torch.equal(batch.final_states[row, :length], found.final_states[rows].float())
        assert torch.equal(batch.tokens[row, :length], found.tokens[rows])
        assert torch.equal(batch.taught[row, :length], found.taught[rows])
        assert not batch.taught[row, length:].any()
        assert batch.inside[row].tolist() == [True] * (length - 1) + [False] * (longest - length + 1)


def test_features_are_computed_once(target, made, tmp_path, passes):
    told: list[int] = []
    once = features(target, made, EXIT, tmp_path, told.append)
    assert passes == [16, 3]
    assert told == [int(made.lengths[:16].sum()), int(made.lengths[16:].sum())]
    assert same(features(target, made, EXIT, tmp_path), once)
    assert passes == [16, 3]


def test_one_pass_serves_several_exit_layers(target, made, tmp_path, passes):
    folders = {layer: tmp_path / "together" / str(layer) for layer in (1, 2, 3)}
    together = {2: features(target, made, 2, folders[2], others=folders)}
    for layer in (1, 3):
        together[layer] = features(target, made, layer, folders[layer], others=folders)
    assert passes == [16, 3]
    for layer, found in together.items():
        alone = features(target, made, layer, tmp_path / "alone" / str(layer))
        torch.testing.assert_close(found.exit_states, alone.exit_states)
        torch.testing.assert_close(found.final_states, alone.final_states)
    assert not torch.equal(together[1].exit_states, together[3].exit_states)


def test_chunks_that_other_exit_layers_have_stay(target, made, tmp_path, passes):
    folders = {layer: tmp_path / str(layer) for layer in (1, 2)}
    features(target, first(made, 16), 1, folders[1])
    (kept,) = folders[1].iterdir()
    before = kept.stat().st_mtime_ns
    features(target, made, 2, folders[2], others=folders)
    assert kept.stat().st_mtime_ns == before
    assert passes == [16, 16, 3]
    features(target, made, 1, folders[1])
    assert passes == [16, 16, 3]


def test_more_conversations_reuse_the_whole_chunks(target, made, tmp_path, passes):
    features(target, first(made, 17), EXIT, tmp_path)
    features(target, made, EXIT, tmp_path)
    assert passes == [16, 1, 3]


@pytest.mark.parametrize("damage", ["cut short", "empty", "other conversations", "not tensors"])
def test_damaged_piece_is_computed_again(target, made, tmp_path, passes, damage):
    once = features(target, made, EXIT, tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    if damage == "other conversations":
        path.unlink()
        features(target, made.keep([i >= 3 for i in range(COUNT)]), EXIT, tmp_path)
    else:
        content = path.read_bytes()
        path.write_bytes({"cut short": content[:-100], "empty": b"", "not tensors": b"x" * 100}[damage])
    passes.clear()
    assert same(features(target, made, EXIT, tmp_path), once)
    assert passes == [16]
    assert same(features(target, made, EXIT, tmp_path), once)
    assert passes == [16]


def test_interrupted_features_go_on_where_they_stopped(target, made, tmp_path, passes, monkeypatch):
    last = int(made.lengths[16:].sum())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_half", lambda states: 1 / 0 if len(states) == last else states.half().contiguous())
        with pytest.raises(ZeroDivisionError):
            features(target, made, EXIT, tmp_path)
    passes.clear()
    features(target, made, EXIT, tmp_path)
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
        features(target, made, EXIT, tmp_path / "features")


# --- the loop --------------------------------------------------------------------------------------------------------


def features_of(templates: list[int], answered: list[bool]) -> tuple[Features, torch.Tensor]:
    count = len(templates)
    taught = torch.tensor([[some, False] for some in answered]).flatten()
    states = torch.zeros(2 * count, 4)
    found = Features(states, states, torch.zeros(2 * count, dtype=torch.long), taught, torch.full((count,), 2))
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
