"""What `bn_lif` normalises by: the batch's own statistics, over processes where wanted, or the running ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ops.lif import state_dtype


@dataclass(frozen=True)
class Folded:
    """Statistics, and what they make of y with a weight and a bias."""

    rows: Tensor  # [4, C] in the dtype of the arithmetic: mean, 1/sqrt(variance + eps), scale, shift
    values: int | None  # of y, a channel, that the statistics were taken of; None: they do not depend on y
    count: Tensor | None  # where processes share their statistics, the number of all their values; else None


def module_arguments(norm: Any) -> dict[str, Any]:
    """The arguments of `bn_lif` that a batch normalisation holds, for one call, which it counts."""
    running = norm.running_mean, norm.running_var
    momentum: float = 0.0
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    elif norm.training:
        # As nn.BatchNorm2d: in training without tracking, buffers that are there stay as they are.
        running = None, None
    return {
        "weight": norm.weight,
        "bias": norm.bias,
        "running_mean": running[0],
        "running_var": running[1],
        "training": norm.training or norm.running_mean is None,
        "momentum": momentum,
        "eps": norm.eps,
    }


def fold_batch_statistics(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    *,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: Any,
) -> Folded:
    """By statistics of y over all but channels; moves the running statistics towards them.

    As nn.BatchNorm2d has it: y is normalised by the biased variance, the unbiased one goes into the running variance;
    and one frame of y that stands for all time steps counts as that many.
    """
    ops, real = torch.ops.ckd_kernels, state_dtype(y.dtype)
    moments = ops.bn_statistics(y, backend, time_dim, time_steps, channel_dim)
    values, count = y.numel() // y.shape[channel_dim], None
    if group is not None:
        moments, count = _over_processes(moments, values, group)
    elif values == 0:
        running_mean = running_var = None  # nothing was seen
    repeats = time_steps // y.shape[time_dim] if y.shape[time_dim] > 0 else 1
    total = repeats if count is not None else values * repeats
    running = [None if t is None else t.to(real) for t in (running_mean, running_var)]
    rows = ops.bn_fold(moments, weight, bias, *running, count, total, momentum, eps, real, backend)
    if running_mean is not None and running_var is not None:
        running_mean.copy_(rows[4])
        running_var.copy_(rows[5])
    return Folded(rows[:4], values, count)


def fold_running_statistics(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    backend: str,
    *,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> Folded:
    """By the running statistics, which do not depend on y."""
    moments = torch.stack([running_mean, running_var]).double()
    real = state_dtype(y.dtype)
    rows = torch.ops.ckd_kernels.bn_fold(moments, weight, bias, None, None, None, 1, 0.0, eps, real, backend)
    return Folded(rows, None, None)


def _over_processes(moments: Tensor, values: int, group: Any) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all processes' values together, always added up in the order of their ranks."""
    distributed = torch.distributed
    own = torch.cat([moments.flatten(), moments.new_full((1,), values)])
    every = own.new_empty(distributed.get_world_size(group) * own.numel())
    distributed.all_gather_into_tensor(every, own, group=group)
    every = every.view(-1, own.numel())
    counts = every[:, -1]
    means, variances = every[:, :-1].unflatten(1, (2, -1)).unbind(1)
    total = counts.sum()
    weights = (counts / total).unsqueeze(1)
    mean = (weights * means).sum(0)
    var = (weights * (variances + (means - mean) ** 2)).sum(0)
    return torch.stack([mean, var]), total
