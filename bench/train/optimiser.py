"""The optimisers of trainings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAMES = {
    "adamw": "AdamW (0.9, 0.95)",
    "muon": "Muon for matrices between hidden states, AdamW (0.9, 0.95) for the rest",
}
_SIDES = 8  # the most times that one side of a matrix between hidden states is as long as the other


class Optimiser:
    """AdamW, as the published forms were trained; or Muon (Jordan et al., 2024; steps scaled as in Liu et al., 2025,
    arXiv:2502.16982, section 2.2) for the matrices between hidden states, and AdamW for norms, biases and LM heads.
    """

    def __init__(self, module: nn.Module, name: str, weight_decay: float):
        self.module = module
        parameters = [p for p in module.parameters() if p.requires_grad]
        matrices, others = [], parameters
        if name == "muon":
            matrices = [p for p in parameters if _is_between_states(p)]
            others = [p for p in parameters if not _is_between_states(p)]
        # Muon takes single matrices. Those of a stack [.., m, n] are views of it.
        self.stacks = [(p, [nn.Parameter(m) for m in p.detach().flatten(0, -3)]) for p in matrices if p.ndim > 2]
        single = [*(p for p in matrices if p.ndim == 2), *(m for _, views in self.stacks for m in views)]
        self.parts: list[torch.optim.Optimizer] = []
        if single:
            self.parts.append(torch.optim.Muon(single, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True))

    def step(self, rate: float) -> None:
        """Change the parameters by their gradients at a learning rate, and forget the gradients."""
        for stack, views in self.stacks:
            if stack.grad is not None:
                for view, gradient in zip(views, stack.grad.flatten(0, -3), strict=True):
                    view.grad = gradient
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        self.module.zero_grad(set_to_none=True)


def _is_between_states(parameter: Tensor) -> bool:
    """Whether a parameter maps hidden states to hidden states. An LM head has a row for every token."""
    return parameter.ndim > 1 and max(parameter.shape[-2:]) <= _SIDES * min(parameter.shape[-2:])
