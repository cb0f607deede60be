"""The distribution that is drawn from, by hand and by transformers; and draws, by enumeration and chi-square.

Seeds are fixed, so a test passes always or never; a p-value below RARE would be chance once in 10,000 choices of them.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from bench.drafting.sampling import Sampler

RARE = 1e-4
P = np.array([0.05, 0.4, 0.0, 0.25, 0.3])


def tensor(p: np.ndarray) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float32)


def warped(logits: list[float], temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """One row of probabilities in float64: first the `top_k` most probable, then the fewest that hold `top_p`."""
    weights = np.exp(np.asarray(logits, dtype=np.float64) / temperature)
    kept = np.argsort(-weights)[: top_k or None]
    if top_p < 1:
        masses = np.cumsum(weights[kept]) / weights[kept].sum()
        assert np.abs(masses - top_p).min() > 1e-5, "too close to call in float32"
        kept = kept[: int((masses < top_p).sum()) + 1]
    p = np.zeros(len(weights))
    p[kept] = weights[kept] / weights[kept].sum()
    return p


SETTINGS = list(itertools.product((0.3, 1.0, 1.7), (1.0, 0.9, 0.5, 0.01), (0, 1, 3, 50)))


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), SETTINGS)
def test_probabilities_are_worked_out_in_float64(temperature, top_p, top_k):
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(3)) * 3
    found = Sampler(temperature, top_p, top_k).probabilities(logits)
    assert found.dtype == torch.float32
    expected = np.stack([warped(row, temperature, top_p, top_k) for row in logits.tolist()])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    assert (found.numpy() > 0).sum() == (expected > 0).sum()


def test_a_distribution_worked_out_by_hand():
    logits = torch.tensor([[0.4, 0.1, 0.2, 0.3]]).log()
    torch.testing.assert_close(Sampler(1.0).probabilities(logits), torch.tensor([[0.4, 0.1, 0.2, 0.3]]))
    squares = torch.tensor([[16.0, 1.0, 4.0, 9.0]]) / 30
    torch.testing.assert_close(Sampler(0.5).probabilities(logits), squares)
    torch.testing.assert_close(Sampler(1.0, top_k=2).probabilities(logits), torch.tensor([[4.0, 0.0, 0.0, 3.0]]) / 7)
    torch.testing.assert_close(Sampler(1.0, 0.65).probabilities(logits), torch.tensor([[4.0, 0.0, 0.0, 3.0]]) / 7)
    torch.testing.assert_close(Sampler(1.0, 0.75).probabilities(logits), torch.tensor([[4.0, 0.0, 2.0, 3.0]]) / 9)
    # Of the three most probable, 4/9 + 3/9 hold three quarters of the mass.
    torch.testing.assert_close(Sampler(1.0, 0.75, 3).probabilities(logits), torch.tensor([[4.0, 0.0, 0.0, 3.0]]) / 7)


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1, 1, 0), (0.7, 0.8, 0), (1.3, 1, 5), (0.6, 0.9, 8)])
def test_transformers_samples_from_the_same_distribution(temperature, top_p, top_k, tiny_model, hf_logits, random_ids):
    model, ids = tiny_model("tied")[1], random_ids(9)
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, 9),
        do_sample=True,
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=top_k,
        max_new_tokens=1,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    expected = out.scores[0].softmax(-1)
    assert ((expected > 0).sum() < 272) == (top_p < 1 or top_k > 0)
    found = Sampler(temperature, top_p, top_k).probabilities(hf_logits(model, ids)[-1:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(found > 0, expected > 0)


def test_half_precision_logits_are_sampled_in_float32():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = Sampler(0.5, 0.9).probabilities(logits)
    assert found.dtype == torch.float32
    expected = np.stack([warped(row, 0.5, 0.9, 0) for row in logits.tolist()])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("temperature", [0, -1])
def test_without_a_temperature_there_is_nothing_to_sample(temperature):
    with pytest.raises(AssertionError, match="greedy"):
        Sampler(temperature)


def draws(sampler: Sampler) -> list[object]:
    """A bit of everything that can be drawn."""
    found: list[object] = [sampler.uniform() for _ in range(5)]
    found += [sampler.draw(torch.ones(1000)) for _ in range(5)]
    found += sampler.draw_distinct(torch.ones(2, 1000), 3).tolist()
    return found


def test_equal_seeds_repeat_all_draws_and_others_do_not():
    sampler = Sampler(1.0)
    sampler.seed("question 7")
    first, goes_on = draws(sampler), draws(sampler)
    sampler.seed("question 8")
    other = draws(sampler)
    sampler.seed("question 7")
    again = draws(sampler)
    elsewhere = Sampler(0.5, 0.9)
    elsewhere.seed("question 7")
    assert again == first == draws(elsewhere)
    for found in (goes_on, other):
        assert all(a != b for a, b in zip(found, first, strict=True))


def test_a_new_sampler_is_seeded():
    assert draws(Sampler(1.0)) == draws(Sampler(1.0))


def rejected(counts: np.ndarray, p: np.ndarray) -> bool:
    """Whether counts are no sample of probabilities p; impossible outcomes must not occur at all."""
    assert counts[p == 0].sum() == 0
    return stats.chisquare(counts[p > 0], counts.sum() * p[p > 0]).pvalue < RARE


def test_uniform_numbers_are_uniform():
    sampler = Sampler(1.0)
    found = np.array([sampler.uniform() for _ in range(5000)])
    assert found.min() >= 0
    assert found.max() < 1
    assert stats.kstest(found, "uniform").pvalue > RARE


def test_draws_follow_their_probabilities():
    sampler = Sampler(1.0)
    sampler.seed("draws")
    counts = np.bincount([sampler.draw(tensor(P)) for _ in range(5000)], minlength=5)
    assert not rejected(counts, P)
    assert rejected(counts, np.array([0.05, 0.35, 0.0, 0.3, 0.3]))


def test_first_draws_of_many_seeds_follow_their_probabilities():
    sampler = Sampler(1.0)
    counts, low = np.zeros(5), 0
    for i in range(3000):
        sampler.seed(f"question {i}")
        counts[sampler.draw(tensor(P))] += 1
        low += sampler.uniform() < 0.3
    assert not rejected(counts, P)
    assert stats.binomtest(low, 3000, 0.3).pvalue > RARE


def orders(p: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """Every outcome of `count` draws one after the other without replacement, with its probability."""
    chances = {}
    for order in itertools.permutations(np.flatnonzero(p), count):
        left = 1 - np.concatenate(([0.0], np.cumsum(p[list(order)])))[:-1]
        chances[tuple(map(int, order))] = float(np.prod(p[list(order)] / left))
    assert math.isclose(sum(chances.values()), 1)
    return chances


@pytest.mark.parametrize(
    ("p", "count"),
    [
        ([0.2, 0.5, 0.3], 1),
        ([0.2, 0.5, 0.3], 2),
        ([0.2, 0.5, 0.3], 3),
        ([0.1, 0.6, 0.05, 0.25], 3),
        ([0.3, 0.0, 0.6, 0.1], 2),
        ([0.3, 0.0, 0.6, 0.1], 3),
    ],
)
def test_distinct_draws_are_draws_without_replacement_in_order(p, count):
    p = np.array(p)
    sampler = Sampler(1.0)
    sampler.seed("distinct")
    rows = sampler.draw_distinct(tensor(p).expand(8000, -1), count)
    assert rows.shape == (8000, count)
    chances = orders(p, count)
    found = [tuple(row) for row in rows.tolist()]
    assert set(found) <= set(chances)
    counts = np.array([found.count(order) for order in chances])
    assert not rejected(counts, np.array(list(chances.values())))
    if count > 1:  # the order matters: it is not that of the probabilities, nor any
        assert rejected(counts, np.full(len(chances), 1 / len(chances)))


def test_every_row_of_distinct_draws_has_its_own_probabilities():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    for _ in range(20):
        rows = Sampler(1.0).draw_distinct(p, 2).tolist()
        assert [sorted(row) for row in rows] == [[0, 1], [2, 3]]


def test_where_fewer_tokens_are_possible_impossible_ones_come_last():
    sampler = Sampler(1.0)
    for _ in range(200):
        possible, single = sampler.draw_distinct(torch.tensor([[0.0, 0.9, 0.0, 0.1], [0.0, 0.0, 1.0, 0.0]]), 4).tolist()
        assert sorted(possible) == sorted(single) == [0, 1, 2, 3]
        assert set(possible[:2]) == {1, 3}
        assert single[0] == 2
