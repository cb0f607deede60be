"""Features of the frozen target against transformers, and the loop that trains on them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from bench.errors import UserError
from bench.train import loop
from bench.train.conversations import Conversations
from bench.train.loop import Schedule, acceptance_by_position, features, fit, split, steps_of, taught_positions

EXIT = 2
COUNT, LENGTH = 19, 24  # two pieces of the cache, the last one shorter


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama3")


@pytest.fixture(scope="module")
def target(model, tiny_decoder):
    return tiny_decoder(*model)


@pytest.fixture(scope="module")
def made() -> Conversations:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(270, (COUNT, LENGTH), generator=generator, dtype=torch.int32)
    return Conversations(tokens, torch.rand(COUNT, LENGTH, generator=generator) < 0.4)


@pytest.fixture
def passes(monkeypatch):
    """How many conversations each pass of the target was over."""
    sizes, states = [], loop._states
    monkeypatch.setattr(loop, "_states", lambda t, tokens, layer: sizes.append(len(tokens)) or states(t, tokens, layer))
    return sizes


def same(a, b) -> bool:
    return torch.equal(a.exit_states, b.exit_states) and torch.equal(a.final_states, b.final_states)


# --- features --------------------------------------------------------------------------------------------------------


def test_taught_are_the_positions_before_those_that_the_target_chose():
    chosen = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(taught_positions(chosen), expected)


def test_features_are_transformers_hidden_states(model, target, made, tmp_path):
    found = features(target, made, EXIT, tmp_path)
    with torch.inference_mode():
        states = model[1](made.tokens.long(), output_hidden_states=True).hidden_states
    taught = taught_positions(made.chosen)
    assert found.exit_states.dtype == found.final_states.dtype == torch.float16
    torch.testing.assert_close(found.exit_states.float(), states[EXIT], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found.final_states.float(), states[-1][taught], rtol=2e-3, atol=2e-3)
    assert torch.equal(found.taught, taught)
    assert torch.equal(found.tokens, made.tokens.long())
    for row in (0, 7, COUNT - 1):
        mine = found.final_states[found.offsets[row] :][: int(taught[row].sum())]
        torch.testing.assert_close(mine.float(), states[-1][row][taught[row]], rtol=2e-3, atol=2e-3)


def test_features_are_computed_once(target, made, tmp_path, passes):
    told: list[int] = []
    first = features(target, made, EXIT, tmp_path, told.append)
    assert passes == told == [16, 3]
    assert same(features(target, made, EXIT, tmp_path), first)
    assert passes == [16, 3]


def test_more_conversations_reuse_the_whole_pieces(target, made, tmp_path, passes):
    features(target, Conversations(made.tokens[:17], made.chosen[:17]), EXIT, tmp_path)
    features(target, made, EXIT, tmp_path)
    assert passes == [16, 1, 3]


@pytest.mark.parametrize("damage", ["cut short", "empty", "other conversations", "not tensors"])
def test_damaged_piece_is_computed_again(target, made, tmp_path, passes, damage):
    first = features(target, made, EXIT, tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    if damage == "other conversations":
        path.unlink()
        features(target, Conversations(made.tokens[:16], ~made.chosen[:16]), EXIT, tmp_path)
    else:
        content = path.read_bytes()
        path.write_bytes({"cut short": content[:-100], "empty": b"", "not tensors": b"x" * 100}[damage])
    passes.clear()
    assert same(features(target, made, EXIT, tmp_path), first)
    assert passes == [16]
    assert same(features(target, made, EXIT, tmp_path), first)
    assert passes == [16]


def test_interrupted_features_go_on_where_they_stopped(target, made, tmp_path, passes, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_half", lambda states: 1 / 0 if len(states) == 3 else states.half().contiguous())
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
    def save(tensors, path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", save)
    with pytest.raises(UserError, match=r"no space left in .*ROOBENCH_CACHE"):
        features(target, made, EXIT, tmp_path / "features")


# --- acceptance ------------------------------------------------------------------------------------------------------


def test_acceptance_by_position_worked_out_by_hand():
    taught = torch.tensor([[0, 1, 1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    match = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    # First:  right at 1, 2, 4, 6, 7 of the first row, at 4, 5, 6 of the second: 8 of the 10 taught.
    # Second: 1-2 right, 2-3 wrong, 6-7 right; 4-5 and 5-6 right: 4 of 5. The others run over an answer's end.
    # Third:  1-2-3 wrong; 4-5-6 right: 1 of 2. Fourth: none is left to try.
    assert acceptance_by_position(match, taught, 4) == pytest.approx([8 / 10, 4 / 5, 1 / 2, 0.0])


def test_acceptance_of_a_perfect_and_of_a_useless_draft():
    taught = torch.ones(2, 9, dtype=torch.bool)
    assert acceptance_by_position(taught, taught, 6) == [1.0] * 6
    assert acceptance_by_position(~taught, taught, 3) == [0.0] * 3
    assert acceptance_by_position(taught, ~taught, 2) == [0.0] * 2


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "held"), [(192, 10), (20, 1), (2, 1)])
def test_split_holds_some_out_and_loses_none(count, held):
    train, out = split(range(count), 0.05, seed=3)
    assert len(out) == held
    assert sorted(train + out) == list(range(count))
    assert split(range(count), 0.05, seed=3) == (train, out)
    assert count < 5 or split(range(count), 0.05, seed=4) != (train, out)


def regression():
    """A module, and the loss of some of ten points under it."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    x = torch.randn(10, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
    return module, lambda indices: ((module(x[list(indices)]) - y[list(indices)]) ** 2).mean()


def test_fit_lowers_the_loss_and_sees_each_index_once_an_epoch():
    module, loss_of = regression()
    seen, losses, epochs = [], [], []
    schedule = Schedule(epochs=30, batch=4, learning_rate=0.2, seed=1)

    def watched(indices):
        seen.append(list(indices))
        return loss_of(indices)

    fit(module, watched, range(10), schedule, lambda step, loss: losses.append((step, loss)), epochs.append)
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
        fit(module, loss_of, range(10), Schedule(2, 3, 0.1, seed))
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
