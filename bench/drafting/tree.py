"""Trees of drafts: which draft follows which, and the positions and mask of one forward pass over all of them.

Drafts are numbered in the order in which they were proposed, parents before their children. -1 is the root: the newest
token, which is not a draft. In a chain every draft follows the one before. In a forward pass, row 0 is the root and
row i + 1 is draft i. (arXiv 2401.10774, section 2.1.2; SpecInfer, arXiv 2305.09781.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.engine.places import Places

ROOT = -1


class Tree:
    """A tree of n drafts, by their parents [n]. Use `tree_of`, which caches."""

    def __init__(self, parents: Sequence[int]):
        self.parents = tuple(parents)
        self.is_chain = self.parents == tuple(range(-1, len(self.parents) - 1))
        self.children: dict[int, list[int]] = {}  # of each draft, in the order of proposal
        self.depths = [0]  # by row: 0 for the root, 1 for a draft that follows it
        seen = [1]  # by row: bit r is set where the row sees row r: its ancestors and itself
        for draft, parent in enumerate(self.parents):
            assert -1 <= parent < draft, f"draft {draft} follows draft {parent}, which was not proposed before it"
            self.children.setdefault(parent, []).append(draft)
            self.depths.append(self.depths[parent + 1] + 1)
            seen.append(seen[parent + 1] | 1 << (draft + 1))
        self._seen = seen
        self._tensors: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def depth(self) -> int:
        """The number of drafts on the longest path."""
        return max(self.depths)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return depths [n + 1] and mask [n + 1, n + 1] of the rows, on a device; True where a row sees another."""
        if device not in self._tensors:
            import torch

            rows = range(len(self._seen))
            mask = torch.tensor([[bool(bits >> row & 1) for row in rows] for bits in self._seen])
            self._tensors[device] = (torch.tensor(self.depths, device=device), mask.to(device))
        return self._tensors[device]

    def places(self, start: int, device: torch.device, row: int = 0, width: int | None = None) -> Places:
        """Return the places of rows row..row+width (None: to the last) if the root is at position `start`."""
        from bench.engine.places import Places, Span

        width = len(self.depths) - row if width is None else width
        if self.is_chain:
            return Places.after(start + row, width)
        depths, seen = self.tensors(device)
        return Places((Span(start, 0, row, depths[row : row + width], seen[row : row + width, : row + width]),), width)


@functools.lru_cache(maxsize=256)
def _remembered(parents: tuple[int, ...]) -> Tree:
    return Tree(parents)


def tree_of(parents: Sequence[int]) -> Tree:
    """Return the tree with these parents [n]."""
    return _remembered(tuple(parents))


def chain_of(length: int) -> Tree:
    """Return the chain of `length` drafts."""
    return _remembered(tuple(range(-1, length - 1)))


def tree_from_paths(paths: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return the parent and the rank of each node of a tree, nodes sorted by length, then by ranks.

    `paths`: the nodes' rank paths, as papers list them: (0, 2) is the third choice after the first choice.

    Raises:
        ValueError: a node without its parent, a node twice, an empty path or a negative rank.

    """
    ordered = sorted({tuple(path) for path in paths}, key=lambda path: (len(path), path))
    if len(ordered) != len(paths):
        raise ValueError("a node is listed twice")
    numbers = {(): ROOT} | {path: number for number, path in enumerate(ordered)}
    for path in ordered:
        if not path or min(path) < 0:
            raise ValueError(f"{list(path)} is not a path of ranks")
        if path[:-1] not in numbers:
            raise ValueError(f"node {list(path)} has no parent {list(path[:-1])}")
    return [numbers[path[:-1]] for path in ordered], [path[-1] for path in ordered]
