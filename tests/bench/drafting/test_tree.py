"""Candidate trees by hand, and against a walk over every node of random ones."""

from __future__ import annotations

import random

import pytest
import torch

from bench.drafting.tree import Tree, chain_of, tree_from_paths, tree_of

CPU = torch.device("cpu")


def random_parents(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(-1, draft - 1) for draft in range(count)]


def ancestors(parents: list[int], draft: int) -> list[int]:
    """The drafts above one, root not included, the nearest first."""
    found = []
    while draft != -1:
        draft = parents[draft]
        found.append(draft)
    return found[:-1]


def test_a_tree_worked_out_by_hand():
    #        root
    #       0    1
    #     2   4    3
    #         5
    tree = tree_of([-1, -1, 0, 1, 0, 4])
    assert tree.children == {-1: [0, 1], 0: [2, 4], 1: [3], 4: [5]}
    assert tree.depths == [0, 1, 1, 2, 2, 2, 3]
    assert tree.depth == 3
    assert not tree.is_chain
    depths, mask = tree.tensors(CPU)
    assert depths.tolist() == tree.depths
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 0, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40, 127])
def test_random_trees_are_what_a_walk_over_every_node_finds(count):
    for seed in range(5):
        parents = random_parents(count, seed)
        tree = tree_of(parents)
        depths, mask = tree.tensors(CPU)
        above = {draft: ancestors(parents, draft) for draft in range(count)}
        assert depths.tolist() == tree.depths == [0, *(len(above[draft]) + 1 for draft in range(count))]
        assert tree.depth == max(len(drafts) + 1 for drafts in above.values())
        for row in range(count + 1):
            seen = {0, row} | {draft + 1 for draft in above.get(row - 1, ())}
            assert set(mask[row].nonzero().flatten().tolist()) == seen
        for parent in range(-1, count):
            following = [draft for draft in range(count) if parents[draft] == parent]
            assert tree.children.get(parent, []) == following
        assert tree.is_chain == all(len(above[draft]) == draft for draft in range(count))


@pytest.mark.parametrize("length", [0, 1, 4, 127])
def test_a_chain_is_the_tree_in_which_each_follows_the_one_before(length):
    tree = chain_of(length)
    assert tree.is_chain
    assert tree.parents == tuple(range(-1, length - 1))
    assert tree.depth == length
    assert torch.equal(tree.tensors(CPU)[1], torch.ones(length + 1, length + 1).tril().bool())
    assert tree_of(list(range(-1, length - 1))) is tree


@pytest.mark.parametrize("parents", [[-1, -1], [-1, 0, 0], [-1, 0, -1]])
def test_what_branches_is_no_chain(parents):
    assert not tree_of(parents).is_chain


def test_equal_trees_and_their_tensors_are_made_once():
    assert tree_of([-1, 0, 0]) is tree_of((-1, 0, 0))
    assert tree_of([-1, 0, 0]) is not tree_of([-1, 0, 1])
    first, again = (tree_of([-1, 0, 0]).tensors(CPU) for _ in range(2))
    assert first[0] is again[0]
    assert first[1] is again[1]


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ([0], "draft 0 follows draft 0"),
        ([-1, 2, 0], "draft 1 follows draft 2"),
        ([-1, 0, -2], "draft 2 follows draft -2"),
    ],
)
def test_a_draft_that_follows_none_before_it_is_refused(parents, said):
    with pytest.raises(AssertionError, match=said):
        Tree(parents)


def test_paths_are_sorted_by_length_and_then_by_ranks():
    #            parent, rank: (0,) (2,)  (0, 1) (2, 0) (2, 3)  (2, 0, 5)
    paths = [(2, 0, 5), (2, 3), (0,), (2, 0), (2,), (0, 1)]
    assert tree_from_paths(paths) == ([-1, -1, 0, 1, 1, 3], [0, 2, 1, 0, 3, 5])
    assert tree_from_paths([[0], [0, 0], [0, 0, 0]]) == ([-1, 0, 1], [0, 0, 0])
    assert tree_from_paths([]) == ([], [])


def test_paths_give_back_the_random_tree_that_they_come_from():
    for seed in range(20):
        rng = random.Random(seed)
        paths: set[tuple[int, ...]] = {()}
        while len(paths) < 15:
            paths.add((*rng.choice(sorted(paths)), rng.randrange(4)))
        given = sorted(paths - {()}, key=lambda path: rng.random())
        parents, ranks = tree_from_paths(given)
        tree_of(parents)  # refuses a node before its parent
        named = [tuple(ranks[i] for i in [*reversed(ancestors(parents, node)), node]) for node in range(len(parents))]
        assert named == sorted(given, key=lambda path: (len(path), path))


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ([(0,), (1, 0)], r"node \[1, 0\] has no parent \[1\]"),
        ([(0,), (0, 0, 0)], r"node \[0, 0, 0\] has no parent \[0, 0\]"),
        ([(0,), (1,), [0]], "a node is listed twice"),
        ([(0,), ()], r"\[\] is not a path of ranks"),
        ([(0,), (0, -1)], r"\[0, -1\] is not a path of ranks"),
    ],
)
def test_paths_that_make_no_tree_are_refused(paths, said):
    with pytest.raises(ValueError, match=said):
        tree_from_paths(paths)
