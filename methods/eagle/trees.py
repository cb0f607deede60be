"""The trees of the papers, drafted level by level: EAGLE-1's is static, EAGLE-2's is chosen after all levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.drafting.sequence import Draft
from bench.drafting.stopping import Candidate
from bench.drafting.tree import ROOT, tree_from_paths, tree_of
from bench.drafting.tree_files import RankPath


@dataclass(frozen=True, slots=True)
class _Node:
    """A candidate for the step's tree."""

    parent: int  # number of the node that it follows
    candidate: Candidate
    score: float  # the product of confidences on its path


class WholeTree:
    """A rule that ends with a tree. Only its nodes that something may follow are drafted further; see `expand`."""

    def begin(self) -> None:
        """Begin a step."""
        self.nodes: list[_Node] = []
        self.expanded = [ROOT]  # node by draft, the newest token first: those that the draft model reads
        self.levels = 0

    def goes_on(self) -> bool:
        """Return whether to make another level of drafts."""
        return True

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """Note all candidates of a level and return those to draft further, at most `most`."""
        first = len(self.nodes)
        for one in candidates:
            parent = self.expanded[one.parent + 1]
            above = 1.0 if parent == ROOT else self.nodes[parent].score
            self.nodes.append(_Node(parent, one, above * one.confidence))
        self.levels += 1
        further = self.expand(first)[:most]
        self.expanded += further
        return [self.nodes[node].candidate for node in further]

    def expand(self, first: int) -> list[int]:
        """Return the nodes from `first` on that are drafted further."""
        raise NotImplementedError

    def taken(self) -> list[int]:
        """Return the nodes of the tree in rising order, each one's parent among them."""
        raise NotImplementedError

    def finish(self, draft: Draft) -> Draft:
        """Return the tree in place of the drafts that were read."""
        taken = self.taken()
        numbers = {ROOT: ROOT} | {node: number for number, node in enumerate(taken)}
        nodes = [self.nodes[node] for node in taken]
        return replace(
            draft,
            tokens=[node.candidate.token for node in nodes],
            parents=[numbers[node.parent] for node in nodes],
            confidences=[node.candidate.confidence for node in nodes],
        )

    def end(self, emitted: Sequence[int]) -> None:
        """End a step, with the tokens that it emitted."""


class StaticTree(WholeTree):
    """Drafts the same ranks in every step (arXiv 2401.15077, section 4.1)."""

    def __init__(self, paths: Sequence[RankPath]):
        parents, ranks = tree_from_paths(paths)
        self.shape = tree_of(parents)
        # Of each node of the tree, and of the newest token, the ranks that follow it.
        self.following = {node: [ranks[child] for child in children] for node, children in self.shape.children.items()}
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        super().begin()
        self.within = [ROOT]  # by draft as `expanded`: the place in the tree

    def goes_on(self) -> bool:
        """Return whether the tree has another level."""
        return self.levels < self.shape.depth

    def keep(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """Note the candidates of the tree's ranks and return those that the tree goes on from."""
        offered: dict[int, list[Candidate]] = {}
        for one in candidates:
            offered.setdefault(one.parent, []).append(one)
        chosen: list[Candidate] = []
        self._places: list[int] = []
        for draft, every in offered.items():
            place = self.within[draft + 1]
            chosen += [every[rank] for rank in self.following[place]]
            self._places += self.shape.children[place]
        return super().keep(chosen, len(chosen))

    def expand(self, first: int) -> list[int]:
        """Those that have children in the tree."""
        further = [i for i, place in enumerate(self._places) if place in self.shape.children]
        self.within += [self._places[i] for i in further]
        return [first + i for i in further]

    def taken(self) -> list[int]:
        """All."""
        return list(range(len(self.nodes)))


class BestTree(WholeTree):
    """Expands the best paths of each level, and takes the best of all candidates (arXiv 2406.16858, section 4).

    A candidate's score is the product of the draft model's probabilities on its path.
    """

    def __init__(self, drafts: int):
        self.drafts = drafts
        self.begin()

    def _best(self, nodes: Sequence[int]) -> list[int]:
        return sorted(
            nodes, key=lambda node: -self.nodes[node].score
        )  # of equal ones the first: parents before children

    def expand(self, first: int) -> list[int]:
        """The best paths (section 4.1); as many as are kept."""
        return self._best(range(first, len(self.nodes)))

    def taken(self) -> list[int]:
        """The best of all candidates (section 4.2)."""
        return sorted(self._best(range(len(self.nodes)))[: self.drafts])
