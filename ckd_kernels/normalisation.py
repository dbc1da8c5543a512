"""What `bn_lif` normalises by: the batch's own statistics, over processes where wanted, or the running ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ops.lif import state_dtype


@dataclass(frozen=True)
class Statistics:
    """Of every channel, in the dtype of the arithmetic."""

    mean: Tensor  # [C]
    invstd: Tensor  # [C], 1/sqrt(variance + eps)
    count: int | Tensor | None  # values of y, a channel and over all processes, that they were taken of; None: running


def module_arguments(norm: nn.Module) -> dict[str, Any]:
    """The arguments of `bn_lif` that a batch normalisation holds, for one call, which it counts."""
    running = norm.running_mean, norm.running_var
    momentum: float = 0.0
    if norm.training and norm.track_running_stats:
        count: Any = norm.num_batches_tracked
        count.add_(1)
        momentum = 1.0 / float(count) if norm.momentum is None else norm.momentum  # type: ignore[assignment]
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


def batch_statistics(
    y: Tensor,
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
) -> Statistics:
    """Statistics of y over all but channels, and the running statistics moved towards them.

    As nn.BatchNorm2d has it: y is normalised by the biased variance, the unbiased one goes into the running variance;
    and one frame of y that stands for all time steps counts as that many.
    """
    with torch.no_grad():
        moments = torch.ops.ckd_kernels.bn_statistics(y.detach(), backend, time_dim, time_steps, channel_dim)
        own = y.numel() // y.shape[channel_dim]
        count: int | Tensor = own
        if group is not None:
            moments, count = _over_processes(moments, own, group)
        mean, var = moments
        if running_mean is not None and running_var is not None and not (isinstance(count, int) and count == 0):
            values = count * (time_steps // y.shape[time_dim])
            unbiased = var * (values / (values - 1))
            running_mean.mul_(1.0 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
            running_var.mul_(1.0 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
        real = state_dtype(y.dtype)
        return Statistics(mean.to(real), _invstd(var, eps).to(real), count)


def running_statistics(y: Tensor, running_mean: Tensor, running_var: Tensor, eps: float) -> Statistics:
    """The running statistics, which do not depend on y."""
    real = state_dtype(y.dtype)
    with torch.no_grad():
        return Statistics(running_mean.to(real), _invstd(running_var.double(), eps).to(real), None)


def _invstd(var: Tensor, eps: float) -> Tensor:
    # Not rsqrt, which is not rounded correctly on every device.
    return 1.0 / torch.sqrt(var + eps)


def _over_processes(moments: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all processes' values together, always added up in the order of their ranks."""
    distributed = torch.distributed
    own = torch.cat([moments.flatten(), moments.new_full((1,), count)])
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
