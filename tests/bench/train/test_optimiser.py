"""Optimisers of trainings, against torch's own on single matrices."""

import pytest
import torch
from torch import nn

from bench.train.optimiser import Optimiser
from bench.train_config import TrainConfig
from methods.kangaroo.knobs import KangarooTraining
from methods.medusa.knobs import MedusaTraining


class Parts(nn.Module):
    """A stack of matrices, a matrix, a norm, and an LM head of many more rows than columns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stack = nn.Parameter(torch.randn(2, 6, 5))
        self.matrix = nn.Parameter(torch.randn(4, 8))
        self.norm = nn.Parameter(torch.randn(5))
        self.head = nn.Parameter(torch.randn(90, 5))


def steps(module, optimiser):
    """Three steps with given gradients at three learning rates."""
    generator = torch.Generator().manual_seed(1)
    for rate in (0.1, 0.05, 0.02):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser(rate)


def by_torch(module, matrices, others):
    """Steps of torch's optimisers on copies of single tensors."""
    muon = torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw") if matrices else None
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01)

    def step(rate):
        for part in filter(None, (muon, adamw)):
            part.param_groups[0]["lr"] = rate
            part.step()

    return step


def test_muon_takes_matrices_and_each_of_a_stack_and_adamw_the_rest():
    module, expected = Parts(), Parts()
    first, second = (nn.Parameter(matrix.clone()) for matrix in expected.stack.detach())
    reference = by_torch(expected, [expected.matrix, first, second], [expected.norm, expected.head])

    def expected_step(rate):
        first.grad, second.grad = expected.stack.grad
        reference(rate)

    optimiser = Optimiser(module, "muon", 0.01)
    steps(module, optimiser.step)
    steps(expected, expected_step)
    torch.testing.assert_close(module.stack.detach(), torch.stack((first.detach(), second.detach())))
    for name in ("matrix", "norm", "head"):
        torch.testing.assert_close(getattr(module, name), getattr(expected, name))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_adamw_takes_everything():
    module, expected = Parts(), Parts()
    steps(module, Optimiser(module, "adamw", 0.01).step)
    steps(expected, by_torch(expected, [], list(expected.parameters())))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter, getattr(expected, name))


def test_what_has_no_gradient_stays():
    module = Parts()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimiser = Optimiser(module, "muon", 0.01)
    module.matrix.grad = torch.ones_like(module.matrix)
    optimiser.step(0.1)
    assert not torch.equal(module.matrix, before.pop("matrix"))
    assert all(torch.equal(getattr(module, name), value) for name, value in before.items())


@pytest.mark.parametrize(
    ("config", "name", "rate"),
    [
        (TrainConfig(), "muon", 7e-4),
        (KangarooTraining(), "muon", 7e-4),
        (KangarooTraining(architecture="paper"), "adamw", 2e-3),
        (MedusaTraining(architecture="paper"), "adamw", 2e-3),
        (MedusaTraining(architecture="paper", optimiser="muon"), "muon", 7e-4),
        (TrainConfig(optimiser="adamw", learning_rate=0.5), "adamw", 0.5),
    ],
)
def test_published_forms_are_trained_with_their_papers_optimiser(config, name, rate):
    assert (config.chosen_optimiser, config.peak_rate) == (name, rate)
