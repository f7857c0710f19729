"""Inputs of convolutions that are not those of PyTorch, and how near these must come to those in float64."""

import torch


def of(shape, *, seed=0):
    """Return random numbers of a shape in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_near(found, exact):
    assert found.shape == exact.shape and exact.std() > 0
    assert float((found - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
