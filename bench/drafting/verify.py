"""Verification: which drafts are accepted. Pure functions of the drafts, their tree and the target's output.

A path lists the accepted drafts by number from the root down. After it comes the *bonus*, a token of the target's own.
Rows of the target's output are those of the forward pass: row 0 is the newest token, row i + 1 is draft i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft
from bench.drafting.tree import ROOT, Tree

# A draft [n] and the target's logits [n + 1, V] -> the accepted drafts, by number, and the bonus.
Verify = Callable[[Draft, Tensor], tuple[list[int], int]]


def exact(sampler: Sampler | None) -> Verify:
    """Return lossless acceptance: output equals the target's, token for token (None: greedy) or in distribution."""

    def greedy(draft: Draft, logits: Tensor) -> tuple[list[int], int]:
        choices = logits.argmax(-1).tolist()
        accepted = accept_greedy(draft.tokens, draft.tree, choices)
        return accepted, choices[accepted[-1] + 1 if accepted else 0]

    def sampled(draft: Draft, logits: Tensor) -> tuple[list[int], int]:
        assert sampler is not None
        return accept_sampled(draft.tokens, draft.tree, sampler.probabilities(logits), draft.drawn, sampler)

    return greedy if sampler is None else sampled


def typical(sampler: Sampler, epsilon: float, delta: float, *, draw_bonus: bool = False) -> Verify:
    """Return typical acceptance, which is *not* lossless.

    The bonus is the target's most probable token, as in the authors' code, whose next step starts from it.
    `draw_bonus`: it is drawn from the target's distribution instead.
    """

    def verify(draft: Draft, logits: Tensor) -> tuple[list[int], int]:
        target = sampler.probabilities(logits)
        accepted = accept_typical(draft.tokens, draft.tree, target, epsilon, delta)
        last = target[accepted[-1] + 1 if accepted else 0]
        return accepted, sampler.draw(last) if draw_bonus else int(last.argmax())

    return verify


def accept_greedy(drafts: Sequence[int], tree: Tree, choices: Sequence[int]) -> list[int]:
    """Return the path of `drafts` [n] that the target would have chosen itself; of equal siblings, the first.

    `choices` [n + 1]: the target's argmax after every row. Leviathan et al. (arXiv 2211.17192) at temperature 0.
    """
    assert len(choices) == len(drafts) + 1
    path: list[int] = []
    node: int | None = ROOT
    while node is not None:
        wanted = choices[node + 1]
        node = next((child for child in tree.children.get(node, ()) if drafts[child] == wanted), None)
        if node is not None:
            path.append(node)
    return path


def accept_sampled(
    drafts: Sequence[int], tree: Tree, target: Tensor, drawn: Sequence[Tensor] | None, sampler: Sampler
) -> tuple[list[int], int]:
    """Return a path and its bonus such that emitted tokens are distributed as the target's own samples.

    `target` [n + 1, V]: probabilities after every row. `drawn`: of every draft, the distribution [V] that it was drawn
    from; siblings were drawn from one distribution without replacement. None: drafts are deterministic.

    A draft x is accepted with probability min(1, p(x) / q(x)), else p becomes the norm of (p - q)+ for its next
    sibling, q having lost the earlier ones (Leviathan et al., arXiv 2211.17192, section 2.3; Chen et al., arXiv
    2302.01318; siblings: SpecInfer, arXiv 2305.09781, section 4.3). A deterministic draft has a one-hot q.
    """
    path: list[int] = []
    node = ROOT
    while True:
        following, p = _next(drafts, tree.children.get(node, ()), target[node + 1], drawn, sampler)
        if following is None:
            return path, sampler.draw(p)
        path.append(following)
        node = following


def _next(
    drafts: Sequence[int], siblings: Sequence[int], p: Tensor, drawn: Sequence[Tensor] | None, sampler: Sampler
) -> tuple[int | None, Tensor]:
    """Return the accepted one of `siblings`, or None; and the distribution to draw the bonus from in that case."""
    q = drawn[siblings[0]] if drawn is not None and siblings else None
    for child in siblings:
        x = drafts[child]
        chance = 1.0 if q is None else float(q[x])
        if not chance > 0:
            continue  # earlier siblings used up the whole distribution: this one was not drawn
        rest = residual(p, q, x)
        # Rounding may leave nothing over where all of p was offered: then there is nothing else to take.
        if sampler.uniform() * chance < float(p[x]) or not bool(rest.any()):
            return child, p
        p, q = rest, None if q is None else without(q, x)
    return None, p


def residual(p: Tensor, q: Tensor | None, x: int) -> Tensor:
    """Return what is left of p [V] after x, drawn from q [V] (None: certain), was rejected: the norm of (p - q)+."""
    rest = without(p, x) if q is None else (p - q).clamp(min=0)
    total = rest.sum()
    return rest / total if total > 0 else torch.zeros_like(rest)


def without(p: Tensor, x: int) -> Tensor:
    """Return p [V] given that it is not x; all zeros if it can only be x."""
    rest = p.clone()
    rest[x] = 0
    total = rest.sum()
    return rest / total if total > 0 else torch.zeros_like(rest)


def accept_typical(drafts: Sequence[int], tree: Tree, target: Tensor, epsilon: float, delta: float) -> list[int]:
    """Return the path that typical acceptance keeps (arXiv 2401.10774, section 2.3.1): *not* lossless.

    A draft is plausible if p(x) > min(epsilon, delta exp(-H(p))), p being the target's [n + 1, V] after its parent. Of
    the longest plausible paths, the most probable one is kept.
    """
    entropy = -torch.xlogy(target, target).sum(-1)
    least = (delta * torch.exp(-entropy)).clamp(max=epsilon).tolist()
    reached: dict[int, tuple[float, list[int]]] = {ROOT: (0.0, [])}  # log probability and path
    for draft, parent in enumerate(tree.parents):
        chance = float(target[parent + 1, drafts[draft]])
        if parent in reached and chance > least[parent + 1]:
            log_p, path = reached[parent]
            reached[draft] = (log_p + math.log(chance), [*path, draft])
    return max(reached.values(), key=lambda found: (len(found[1]), found[0]))[1]
