"""The loss of a draft's distribution against the target's, in little memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = 64  # at a time, so that their distributions stay in the processor's cache


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return -sum p log q over all rows, q = softmax(logits), p = softmax(teacher), both [m, V]. Gradients go to q.

    The logits may be in bfloat16; the distributions are computed in float32.
    """
    loss: Tensor = _SoftCrossEntropy.apply(logits, teacher)
    return loss


class _SoftCrossEntropy(torch.autograd.Function):
    """Keeps the gradient, q - p, in place of both distributions."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), device=logits.device)
        for rows in range(0, len(logits), _ROWS):
            here = slice(rows, rows + _ROWS)
            log_q = logits[here].float().log_softmax(-1)
            p = teacher[here].float().softmax(-1)
            total -= torch.dot(p.flatten(), log_q.flatten())
            gradient[here] = log_q.exp_().sub_(p)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None
