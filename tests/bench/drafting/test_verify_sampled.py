"""Verification of drafts by sampling leaves the target's distribution: every way weighed by hand, then real draws."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats

from bench.drafting.sampling import Sampler
from bench.drafting.tree import chain_of, tree_of
from bench.drafting.verify import accept_sampled, residual, without
from tests.bench.drafting.test_verify import RARE


def random_distributions(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Some even, some peaked, some with zeros, some one-hot."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        p = rng.dirichlet(np.full(size, (0.2, 1.0, 5.0)[i % 3]))
        if i % 4 == 1:
            p[rng.permutation(size)[: rng.integers(1, size)]] = 0
        if i % 10 == 3 or p.sum() == 0:
            p = np.eye(size)[rng.integers(size)]
        yield p / p.sum()


def normed(rest: np.ndarray) -> np.ndarray:
    return rest / rest.sum() if rest.sum() > 0 else np.zeros_like(rest)


@pytest.mark.parametrize("size", [2, 5, 40])
def test_residual_and_without_are_worked_out_in_float64(size):
    ps, qs = random_distributions(200, size, 1), random_distributions(200, size, 2)
    nothing_left = 0
    for p, q in zip(ps, qs, strict=True):
        found = residual(torch.tensor(p, dtype=torch.float32), torch.tensor(q, dtype=torch.float32), 0)
        expected = normed(np.maximum(p - q, 0)) if not np.array_equal(p, q) else np.zeros(size)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        for x in range(min(size, 5)):
            others = normed(np.where(np.arange(size) == x, 0, p))
            nothing_left += others.sum() == 0
            for rest in (without(torch.tensor(p), x), residual(torch.tensor(p), None, x)):
                assert rest[x] == 0
                np.testing.assert_allclose(rest.numpy(), others, atol=1e-12)
            np.testing.assert_allclose(residual(torch.tensor(p), torch.eye(size).double()[x], x), others, atol=1e-12)
    assert nothing_left > 0


def test_residual_and_without_leave_what_they_are_given():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.1, 0.8])
    residual(p, q, 2), residual(p, None, 0), without(p, 1)
    assert p.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert q.tolist() == pytest.approx([0.1, 0.1, 0.8])


class Coin:
    """A uniform number that is not yet known: comparing it with a bound branches."""

    def __init__(self, branch: Callable[[list[float]], int], scale: float = 1.0):
        self.branch, self.scale = branch, scale

    def __mul__(self, factor: float) -> Coin:
        return Coin(self.branch, self.scale * float(factor))

    __rmul__ = __mul__

    def __lt__(self, bound: float) -> bool:
        below = min(1.0, max(0.0, float(bound) / self.scale))
        return self.branch([1 - below, below]) == 1


class Exhaustive:
    """In place of a sampler: `outcomes` runs a function again and again until it has taken every way through it."""

    def outcomes(self, run: Callable[[], object]) -> Counter:
        """What `run` returns -> its exact probability."""
        found: Counter = Counter()
        script: list[int] = []
        while True:
            self.script, self.taken, self.weight = script, [], 1.0
            found[run()] += self.weight
            while self.taken and not self.taken[-1][1]:
                self.taken.pop()
            if not self.taken:
                return found
            script = [choice for choice, _ in self.taken[:-1]] + [self.taken[-1][1][0]]

    def branch(self, weights: list[float]) -> int:
        """One of the possible choices, weighted."""
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        at = len(self.taken)
        choice = self.script[at] if at < len(self.script) else possible[0]
        self.taken.append((choice, [i for i in possible if i > choice]))
        self.weight *= weights[choice]
        return choice

    def uniform(self) -> Coin:
        return Coin(self.branch)

    def draw(self, p: torch.Tensor) -> int:
        return self.branch(p.tolist())

    def distinct(self, q: np.ndarray, count: int) -> list[int]:
        """Drawn one after the other without replacement; filled with impossible ones in rising order."""
        found: list[int] = []
        while len(found) < count:
            left = np.where(np.isin(np.arange(len(q)), found), 0, q)
            if left.sum() <= 0:
                return [*found, *(x for x in range(len(q)) if x not in found)][:count]
            found.append(self.branch((left / left.sum()).tolist()))
        return found


def test_every_way_is_taken_once():
    ways = Exhaustive()
    assert ways.outcomes(lambda: tuple(ways.distinct(np.array([0.5, 0.3, 0.2]), 2))) == pytest.approx(
        {(0, 1): 0.3, (0, 2): 0.2, (1, 0): 0.15 / 0.7, (1, 2): 0.06 / 0.7, (2, 0): 0.125, (2, 1): 0.075}
    )
    assert ways.outcomes(lambda: 0.5 * ways.uniform() < 0.1) == pytest.approx({False: 0.8, True: 0.2})


def first_token(p: np.ndarray, drafts: list[int], drawn: np.ndarray | None, sampler) -> int:
    """The first token that is emitted where `drafts` are siblings below the root."""
    target = torch.from_numpy(np.stack([p, *[np.eye(len(p), dtype=p.dtype)[0]] * len(drafts)]))
    q = None if drawn is None else [torch.from_numpy(drawn)] * len(drafts)
    path, bonus = accept_sampled(drafts, tree_of([-1] * len(drafts)), target, q, sampler)
    return drafts[path[0]] if path else bonus


def assert_distribution(found: Counter, p: np.ndarray) -> None:
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose([found[token] for token in range(len(p))], p, atol=1e-12)


@pytest.mark.parametrize("size", [3, 4])
def test_deterministic_siblings_leave_the_targets_distribution(size):
    ways = Exhaustive()
    for p in random_distributions(12, size, 3):
        for count in range(size + 1):
            for drafts in itertools.permutations(range(size), count):
                assert_distribution(ways.outcomes(lambda p=p, d=drafts: first_token(p, list(d), None, ways)), p)


@pytest.mark.parametrize(("size", "count"), [(3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3), (4, 4)])
def test_siblings_drawn_without_replacement_leave_the_targets_distribution(size, count):
    """Some have fewer possible tokens than siblings."""
    ways = Exhaustive()
    ps, qs = list(random_distributions(12, size, 4)), list(random_distributions(12, size, 5))
    assert {1, 2, size} <= {int((q > 0).sum()) for q in qs}
    for p, q in [*zip(ps, qs, strict=True), *zip(ps, ps, strict=True)]:
        found = ways.outcomes(lambda p=p, q=q: first_token(p, ways.distinct(q, count), q, ways))
        assert_distribution(found, p)


def next_of(table: dict[tuple[int, ...], np.ndarray], size: int, rng: np.random.Generator):
    """context -> a random distribution, the same whenever asked."""

    def look(context: tuple[int, ...]) -> np.ndarray:
        if context not in table:
            table[context] = rng.dirichlet(np.ones(size))
        return table[context]

    return look


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "deterministic"])
@pytest.mark.parametrize("seed", range(4))
def test_two_levels_of_a_tree_leave_the_targets_joint_distribution(sampled, seed):
    """The first two tokens: two siblings below the root, two below each of them, over three tokens."""
    ways, rng, size = Exhaustive(), np.random.default_rng(seed), 3
    p, q = (next_of({}, size, rng) for _ in range(2))
    parents = [-1, -1, 0, 0, 1, 1]

    def run():
        choose = ways.distinct if sampled else lambda q, count: np.argsort(-q)[:count].tolist()
        above = choose(q(()), 2)
        drafts = [*above, *(token for first in above for token in choose(q((first,)), 2))]
        contexts = [(), *((token,) for token in above), *((above[i // 2], drafts[2 + i]) for i in range(4))]
        target = torch.from_numpy(np.stack([p(context) for context in contexts]))
        drawn = [torch.from_numpy(q(context)) for context in [(), (), *contexts[1:2] * 2, *contexts[2:3] * 2]]
        path, bonus = accept_sampled(drafts, tree_of(parents), target, drawn if sampled else None, ways)
        assert path in ([], [0], [1], [0, 2], [0, 3], [1, 4], [1, 5])
        emitted = [*(drafts[i] for i in path), bonus]
        return tuple(emitted if len(emitted) > 1 else [*emitted, ways.draw(torch.from_numpy(p(tuple(emitted))))])[:2]

    found = ways.outcomes(run)
    for first, second in itertools.product(range(size), repeat=2):
        assert found[first, second] == pytest.approx(p(())[first] * p((first,))[second], abs=1e-12)


def hashable(found: tuple[list[int], int]) -> tuple[tuple[int, ...], int]:
    return tuple(found[0]), found[1]


def test_the_bonus_behind_an_accepted_path_is_the_targets_sample():
    ways = Exhaustive()
    target = torch.tensor([[0, 1, 0], [0, 0, 1], [0.2, 0.3, 0.5]], dtype=torch.float64)
    found = ways.outcomes(lambda: hashable(accept_sampled([1, 2], chain_of(2), target, None, ways)))
    assert found == pytest.approx({((0, 1), 0): 0.2, ((0, 1), 1): 0.3, ((0, 1), 2): 0.5})


def test_a_draft_as_probable_for_the_target_as_where_it_was_drawn_is_always_kept():
    """The residual is then nothing, up to rounding."""
    sampler = Sampler(1.0)
    q = torch.rand(50, generator=torch.Generator().manual_seed(2)).softmax(-1)
    for noise in (1.0, 1 + 1e-7, 1 - 1e-7):
        for token in range(50):
            path, _ = accept_sampled([token], chain_of(1), torch.stack((q * noise, q)), [q], sampler)
            assert path == [0]


class Unlucky(Sampler):
    """Its uniform numbers are the largest there are."""

    def uniform(self) -> float:
        return 1 - 2**-53


@pytest.mark.parametrize("q", [None, torch.tensor([0.5, 0.25, 0.25])], ids=["deterministic", "drawn"])
def test_where_rounding_leaves_nothing_else_the_draft_is_kept(q):
    p = (torch.tensor([1.0, 0.0, 0.0]) if q is None else q) * (1 - 1e-6)
    target = torch.stack((p, torch.tensor([0.0, 1.0, 0.0])))
    assert accept_sampled([0], chain_of(1), target, q if q is None else [q], Unlucky(1.0)) == ([0], 1)


P = np.array([0.08, 0.4, 0.02, 0.3, 0.2])
Q = np.array([0.3, 0.1, 0.2, 0.15, 0.25])
POINTED = np.array([0.0, 0.7, 0.0, 0.3, 0.0])
DRAWS = 2000


def drawn_distinct(rng: random.Random, q: np.ndarray, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        left = [0.0 if x in found else float(q[x]) for x in range(len(q))]
        if not any(left):
            return [*found, *(x for x in range(len(q)) if x not in found)][:count]
        found += rng.choices(range(len(q)), left)
    return found


@pytest.mark.parametrize(
    ("q", "count", "drafts"),
    [
        (None, 1, [3]),
        (None, 3, [4, 1, 2]),
        (Q, 1, None),
        (Q, 3, None),
        (Q, 5, None),
        (POINTED, 2, None),
        (POINTED, 4, None),
        (P, 3, None),
    ],
    ids=[
        "one deterministic",
        "deterministic siblings",
        "one drawn",
        "drawn siblings",
        "all there are",
        "its whole support",
        "more siblings than its support",
        "drawn from the target's own",
    ],
)
@pytest.mark.parametrize("p", [P, POINTED], ids=["p", "pointed p"])
def test_real_draws_follow_the_target(p, q, count, drafts):
    sampler, rng = Sampler(1.0), random.Random(1)
    sampler.seed(f"{count} {drafts}")
    counts = np.zeros(5)
    for _ in range(DRAWS):
        siblings = drafts or drawn_distinct(rng, q, count)
        given = None if q is None else q.astype(np.float32)
        counts[first_token(p.astype(np.float32), siblings, given, sampler)] += 1
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], DRAWS * p[p > 0]).pvalue > RARE


@pytest.mark.parametrize(("q", "drafts"), [(None, [2]), (Q, None)], ids=["deterministic", "drawn"])
def test_a_residual_left_out_is_noticed(q, drafts, monkeypatch):
    monkeypatch.setattr("bench.drafting.verify.residual", lambda p, q, x: p)
    with pytest.raises(AssertionError):
        test_real_draws_follow_the_target(P, q, len(drafts or [1]), drafts)
