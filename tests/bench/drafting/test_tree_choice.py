"""The choice of a tree against brute force: every answer replayed step by step, every tree of a size tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bench.drafting.costs import Costs
from bench.drafting.tree_choice import MISS, RankRecord, choose_tree, predict

HEADS = 3
FREE = Costs(0.0, (0.0, 0.0, 0.0), ((1, 1.0), (64, 1.0)))


def record_of(seed: int, answers: int = 12, ranks: tuple[float, ...] = (0.45, 0.2, 0.1)) -> RankRecord:
    """Ranks 0.. with the given chances, else a miss; heads see no further than their answer."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, answers)
    values = rng.choice([*range(len(ranks)), MISS], size=(lengths.sum(), HEADS), p=[*ranks, 1 - sum(ranks)])
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        for j, head in itertools.product(range(length), range(HEADS)):
            if j + 1 + head >= length:
                values[end - length + j, head] = MISS
    return RankRecord(values.astype(np.uint8), lengths.astype(np.int32), rng.integers(0, 3, answers).astype(np.int8))


def replayed(record: RankRecord, paths: list[tuple[int, ...]]) -> float:
    """Tokens a step, one answer after the other; the mean over kinds."""
    tokens, steps, begin = dict.fromkeys(range(3), 0), dict.fromkeys(range(3), 0), 0
    for length, kind in zip(record.lengths, record.kinds, strict=True):
        rows = [tuple(row) for row in record.ranks[begin : begin + length].tolist()]
        begin += length
        tokens[kind] += length - 1
        at = 0
        while at < length - 1:
            depth = max([d for d in range(1, HEADS + 1) if rows[at][:d] in paths], default=0)
            at = min(at + depth + 1, length - 1)
            steps[kind] += 1
    rates = [tokens[kind] / steps[kind] for kind in range(3) if steps[kind]]
    return sum(rates) / len(rates)


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_is_predicted_by_replaying_the_answers(seed):
    record = record_of(seed)
    for paths in ([], [(0,)], [(0,), (0, 0), (0, 0, 0)], [(0,), (1,), (0, 1), (1, 0), (0, 1, 2)]):
        assert predict(record, paths, FREE).compression_rate == pytest.approx(replayed(record, paths))


@pytest.mark.parametrize("seed", range(5))
def test_the_most_frequent_paths_are_taken_parents_first(seed):
    record = record_of(seed, answers=40)
    kinds = np.repeat(record.kinds, record.lengths)
    weight = {kind: 1 / (kinds == kind).sum() for kind in set(kinds.tolist())}
    share: dict[tuple[int, ...], float] = {}
    for row, kind in zip(record.ranks.tolist(), kinds.tolist(), strict=True):
        for depth in range(1, HEADS + 1):
            if MISS not in row[:depth]:
                share[tuple(row[:depth])] = share.get(tuple(row[:depth]), 0) + weight[kind]
    rising = Costs(0.0, (0.0,) * HEADS, ((1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 9.0)))
    chosen = choose_tree(record, HEADS, rising, 64).paths
    assert len(chosen) == 3
    best = max(
        sum(share.get(path, 0) for path in paths)
        for paths in itertools.combinations(share, 3)
        if all(path[:-1] in paths or len(path) == 1 for path in paths)
    )
    assert sum(share[path] for path in chosen) == pytest.approx(best)
    assert all(path[:-1] in chosen or len(path) == 1 for path in chosen)


def test_the_size_is_that_of_the_best_rate_per_cost():
    record = record_of(1, answers=60)
    costs = Costs(0.0, (0.02, 0.05, 0.08), tuple((n, 1 + 0.09 * (n - 1)) for n in range(1, 30)))
    choice = choose_tree(record, HEADS, costs, 20)
    for other in ([], *([(0,) * d for d in range(1, n + 1)] for n in range(1, HEADS + 1)), choice.paths[:-1]):
        assert choice.speedup >= predict(record, other, costs).speedup
    assert 1 <= len(choice.paths) < 20
    depth = max(map(len, choice.paths))
    cost = costs.draft[depth - 1] + 1 + 0.09 * len(choice.paths)
    assert choice.cost == pytest.approx(cost)
    assert choice.speedup == pytest.approx(replayed(record, choice.paths) / cost)
    assert choice.prediction()["drafts"] == len(choice.paths)


def test_dear_drafts_are_not_made_and_free_ones_all():
    record = record_of(2)
    dear = Costs(0.0, (0.0, 0.0, 0.0), ((1, 1.0), (2, 3.0), (64, 90.0)))
    assert choose_tree(record, HEADS, dear, 63).paths == []
    assert choose_tree(record, HEADS, dear, 63).speedup == 1.0
    free = choose_tree(record, HEADS, FREE, 63)
    assert free.compression_rate == pytest.approx(replayed(record, free.paths))
    assert free.compression_rate >= predict(record, [(0,), (1,), (2,)], FREE).compression_rate


def test_no_more_heads_or_drafts_are_used_than_asked():
    record = record_of(3, answers=50)
    assert {len(path) for path in choose_tree(record, 1, FREE, 63).paths} == {1}
    assert len(choose_tree(record, HEADS, FREE, 4).paths) <= 4


def test_a_record_of_parts_that_do_not_fit_is_told_apart():
    record = record_of(4)
    assert record.fits()
    assert not RankRecord(record.ranks[:-1], record.lengths, record.kinds).fits()
    assert not RankRecord(record.ranks, record.lengths, record.kinds[:-1]).fits()
