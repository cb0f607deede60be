"""Which static tree of drafts is fastest, given how often each rank was right and the forward-pass costs here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.drafting.knobs import Costs

MISS = 255  # in place of a rank: the token was not among the ones that were ranked
Path = tuple[int, ...]  # the rank in each head, as published trees are listed


@dataclass(frozen=True)
class RankRecord:
    """How drafting heads did on held-out answers of the target: N answers of T tokens in all, concatenated.

    At an answer's j-th token, head i's rank of token j + 1 + i (0: its first choice; MISS: none, or past the end).
    """

    ranks: NDArray[np.uint8]  # [T, heads]
    lengths: NDArray[np.int32]  # [N], in tokens
    kinds: NDArray[np.int8]  # [N]: kinds of text weigh the same, as tasks do in the overall figure

    def fits(self) -> bool:
        """Return whether the parts belong together: those of a damaged file do not."""
        ranks, lengths, kinds = self.ranks, self.lengths, self.kinds
        if (ranks.ndim, lengths.ndim, kinds.ndim) != (2, 1, 1) or len(kinds) != len(lengths):
            return False
        return bool((lengths >= 1).all() and (kinds >= 0).all() and lengths.sum() == len(ranks))


@dataclass(frozen=True)
class Choice:
    """A tree and what to expect of it under greedy decoding."""

    paths: list[Path]
    compression_rate: float  # tokens per step on the held-out answers, replayed step by step
    cost: float  # of a step, in vanilla steps

    @property
    def speedup(self) -> float:
        """Over vanilla, in decode time."""
        return self.compression_rate / self.cost

    def prediction(self) -> dict[str, float]:
        """Return the figures for `run.json`."""
        figures = {"compression_rate": self.compression_rate, "step_cost": self.cost, "speedup": self.speedup}
        return {"drafts": len(self.paths)} | {key: round(value, 4) for key, value in figures.items()}


def choose_tree(record: RankRecord, heads: int, costs: Costs, most: int) -> Choice:
    """Return the tree of up to `most` drafts with the most expected tokens per unit of time.

    Of all trees of n drafts, the one of the n paths that are right most often accepts most. These paths do form a tree,
    as a path is never right more often than its parent. So one tree for each n is compared by its cost.
    """
    paths = _by_frequency(record, heads, min(most, costs.most - 1))
    accepted = _accepted(record, paths)
    options = [_weigh(record, paths[:n], (accepted < n).sum(1), costs) for n in range(len(paths) + 1)]
    return max(options, key=lambda choice: choice.speedup)


def predict(record: RankRecord, paths: Sequence[Path], costs: Costs) -> Choice:
    """Return what to expect of a given tree."""
    ordered = sorted(paths, key=lambda path: (len(path), path))
    return _weigh(record, ordered, (_accepted(record, ordered) < len(ordered)).sum(1), costs)


def shares(record: RankRecord, paths: Sequence[Path]) -> list[float]:
    """Return how often each path is right, by node as in `tree_from_paths`; the mean over kinds of text."""
    kinds = np.repeat(record.kinds, record.lengths)
    counts = np.bincount(kinds)
    weights = 1 / counts[kinds] / np.count_nonzero(counts)
    ordered = sorted(paths, key=lambda path: (len(path), path))
    return [float(weights[(record.ranks[:, : len(path)] == path).all(1)].sum()) for path in ordered]


def _weigh(record: RankRecord, paths: list[Path], depth: NDArray[np.int64], costs: Costs) -> Choice:
    heads = max(map(len, paths), default=0)
    drafting = costs.draft[heads - 1] if heads else 0.0
    return Choice(paths, _replay(record, depth), drafting + costs.verifying(len(paths) + 1))


def _by_frequency(record: RankRecord, heads: int, most: int) -> list[Path]:
    """Return the `most` paths that are right most often, parents before children."""
    kinds = np.repeat(record.kinds, record.lengths)
    weights = 1 / np.bincount(kinds)[kinds]
    found: list[tuple[float, Path]] = []
    for depth in range(1, heads + 1):
        ranks = record.ranks[:, :depth]
        right = (ranks != MISS).all(1)
        paths, where = np.unique(ranks[right], axis=0, return_inverse=True)
        shares = np.bincount(where.ravel(), weights[right])
        found += [(share, tuple(path)) for share, path in zip(shares.tolist(), paths.tolist(), strict=True)]
    found.sort(key=lambda item: (-item[0], len(item[1]), item[1]))
    return [path for _, path in found[:most]]


def _accepted(record: RankRecord, paths: Sequence[Path]) -> NDArray[np.int64]:
    """Return [T, heads]: at each token, the place in `paths` of the right path of 1, 2, .. drafts; len(paths): none."""
    places = {path: place for place, path in enumerate(paths)}
    distinct, where = np.unique(record.ranks, axis=0, return_inverse=True)
    looked_up = [
        [places.get(tuple(row[:depth]), len(paths)) for depth in range(1, len(row) + 1)] for row in distinct.tolist()
    ]
    return np.array(looked_up, dtype=np.int64).reshape(distinct.shape)[where.ravel()]


def _replay(record: RankRecord, depth: NDArray[np.int64]) -> float:
    """Return the tokens per step if `depth` [T] drafts are accepted at a step's start; the mean over kinds of text."""
    ends = np.cumsum(record.lengths) - 1  # the last tokens, after which nothing is drafted
    at = ends - record.lengths + 1
    steps = np.zeros(len(at), dtype=np.int64)
    while (going := at < ends).any():
        steps[going] += 1
        at[going] = np.minimum(at[going] + depth[at[going]] + 1, ends[going])
    tokens = np.bincount(record.kinds, record.lengths - 1)
    taken = np.bincount(record.kinds, steps)
    return float((tokens[taken > 0] / taken[taken > 0]).mean()) if taken.any() else 1.0
