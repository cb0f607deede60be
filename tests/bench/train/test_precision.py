"""The soft cross-entropy against torch's in float64, and trainings whose products are in bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.train import precision
from bench.train.entropy import soft_cross_entropy


@pytest.mark.parametrize("rows", [0, 1, 64, 150])
def test_the_soft_cross_entropy_and_its_gradient_are_those_of_float64(rows):
    generator = torch.Generator().manual_seed(rows)
    logits = (4 * torch.randn(rows, 50, generator=generator)).requires_grad_()
    teacher = 4 * torch.randn(rows, 50, generator=generator)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, teacher.double().softmax(-1), reduction="sum")
    found = soft_cross_entropy(logits, teacher)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_its_gradient_of_bfloat16_logits_is_in_bfloat16():
    logits = torch.randn(5, 50).bfloat16().requires_grad_()
    soft_cross_entropy(logits, torch.randn(5, 50).bfloat16()).backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.float().sum(-1).abs().max() < 0.02  # q and p both sum to one


def test_products_are_in_the_format_asked_for():
    x, w = torch.randn(3, 8), torch.randn(8, 8)
    device = torch.device("cpu")
    assert precision.chosen("float32", device) == torch.float32
    for asked in ("float32", "bfloat16"):
        dtype = precision.chosen(asked, device)
        with precision.products(dtype, device):
            assert (x @ w).dtype == dtype
