"""What batch normalisation computes a channel: statistics, and the vectors between its passes, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...call import Fold
from ...ops.layout import Layout
from .views import steps


def bn_statistics(layout: Layout, y: Tensor, moments: Tensor) -> None:
    values = steps(layout, y)
    values = (values[:, :1] if layout.repeated else values).double()
    dims = (0, 1, 2, 4)  # all but channels
    count = values.numel() // layout.channels
    mean = values.sum(dims) / count
    deviations = values - mean.reshape(layout.channels, 1)
    moments[0] = mean
    moments[1] = (deviations * deviations).sum(dims) / count


def bn_fold(call: Fold, folded: Tensor) -> None:
    moments, weight, bias, running_mean, running_var, total, values, momentum, eps = call
    real = folded.dtype
    mean, var = moments[0].to(real), moments[1]
    # Not rsqrt, which is not rounded correctly on every device.
    invstd = (1.0 / torch.sqrt(var + eps)).to(real)
    scale = invstd if weight is None else weight * invstd
    centre = mean * scale
    folded[0], folded[1], folded[2] = mean, invstd, scale
    folded[3] = 0.0 - centre if bias is None else bias - centre
    if running_mean is not None and running_var is not None:
        n = _number(total, values)
        unbiased = (var * (n / (n - 1.0))).to(real)
        folded[4] = running_mean * (1.0 - momentum) + mean * momentum
        folded[5] = running_var * (1.0 - momentum) + unbiased * momentum


def bn_coefficients(sums: Tensor, invstd: Tensor, total: Tensor | None, values: int, coefficients: Tensor) -> None:
    n = _number(total, values)
    grad_weight = sums[1] * invstd
    coefficients[0] = sums[0] / n
    coefficients[1] = grad_weight * invstd / n
    coefficients[2] = grad_weight
    coefficients[3] = sums[0]


def _number(total: Tensor | None, values: int) -> Tensor:
    """How many values a channel there were; a tensor, so that PyTorch divides by it and not by its reciprocal."""
    return torch.tensor(float(values), dtype=torch.float64) if total is None else values * total
