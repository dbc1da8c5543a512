"""Vectors of one value a channel between the passes of batch normalisation, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def bn_fold(
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    count: Tensor | None,
    values: int,
    momentum: float,
    eps: float,
    folded: Tensor,
) -> None:
    real = folded.dtype
    mean, var = moments[0].to(real), moments[1]
    # Not rsqrt, which is not rounded correctly on every device.
    invstd = (1.0 / torch.sqrt(var + eps)).to(real)
    scale = invstd if weight is None else weight * invstd
    centre = mean * scale
    folded[0], folded[1], folded[2] = mean, invstd, scale
    folded[3] = 0.0 - centre if bias is None else bias - centre
    if running_mean is not None and running_var is not None:
        total = _total(count, values)
        unbiased = (var * (total / (total - 1.0))).to(real)
        folded[4] = running_mean * (1.0 - momentum) + mean * momentum
        folded[5] = running_var * (1.0 - momentum) + unbiased * momentum


def bn_coefficients(sums: Tensor, invstd: Tensor, count: Tensor | None, values: int, coefficients: Tensor) -> None:
    total = _total(count, values)
    grad_weight = sums[1] * invstd
    coefficients[0] = sums[0] / total
    coefficients[1] = grad_weight * invstd / total
    coefficients[2] = grad_weight
    coefficients[3] = sums[0]


def _total(count: Tensor | None, values: int) -> Tensor:
    """How many values a channel there were; a tensor, so that PyTorch divides by it and not by its reciprocal."""
    return torch.tensor(float(values), dtype=torch.float64) if count is None else values * count
