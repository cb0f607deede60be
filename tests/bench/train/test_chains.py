"""Calibration of the confidences of chains, against its definition."""

from __future__ import annotations

import pytest
import torch

from bench.drafting.stopping import CALIBRATED_AT
from bench.train.chains import monotone


def test_calibration_gives_the_true_rates():
    # Below 0.4 three in ten are right, from there to 0.7 half, then eight in ten; the right ones first, in each part.
    parts = [(0.0, 0.4, 30), (0.4, 0.7, 50), (0.7, 1.0, 80)]
    x = torch.cat([torch.linspace(low + 1e-3, high - 1e-3, 100) for low, high, _ in parts])
    y = torch.cat([(torch.arange(100) < right).float() for *_, right in parts])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    found = dict(zip(CALIBRATED_AT, monotone(x[order].split(70), y[order].split(70)), strict=True))
    for at, rate in found.items():
        if at not in (0.4, 0.7):  # between two parts
            assert rate == (0.3 if at < 0.4 else 0.5 if at < 0.7 else 0.8)


def test_calibration_is_the_least_squares_fit_that_never_falls():
    generator = torch.Generator().manual_seed(1)
    outcomes = (torch.rand(21, generator=generator) < 0.5).double()
    order = torch.randperm(21, generator=generator)
    found = monotone([torch.tensor(CALIBRATED_AT).double()[order]], [outcomes[order]])
    means = [[float(outcomes[a : b + 1].mean()) for b in range(21)] for a in range(21)]
    expected = [max(min(means[a][b] for b in range(i, 21)) for a in range(i + 1)) for i in range(21)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert 2 < len(set(expected)) < 21


def test_drafts_of_one_confidence_have_one_worth():
    sure = torch.ones(10)  # as probabilities that round to 1 are
    for outcomes in (torch.arange(10) < 7, torch.arange(10) >= 3):
        assert monotone([sure], [outcomes.float()])[-1] == pytest.approx(0.7)


def test_calibration_of_nothing_expects_nothing():
    assert monotone([torch.zeros(0)], [torch.zeros(0)]) == (0.0,) * 21
